"""Figures of a segmentation: IoU and Dice per slide with intervals over patients, and what a mere threshold reaches.

Everything is computed from counts: how many lesion pixels and how many others have each of 256 levels (of the
probability, or of a colour). One pass over a slide gives its IoU at every threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .intervals import DRAWS, Interval, resamples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .segment_data import SegmentItem

LEVELS = 256
QUANTITIES = ("grey", "saturation", "red", "green", "blue")


@dataclass(frozen=True, eq=False)
class LevelCounts:
    """Known pixels of one slide by level.

    Attributes:
        lesion: int64 (256,), pixels of the lesion at each level.
        other: int64 (256,), the rest.
    """

    lesion: NDArray[np.int64]
    other: NDArray[np.int64]

    def overlaps(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """If all pixels from level t up are marked: lesion marked (256,), others marked (256,), lesion in all."""
        marked = np.cumsum(self.lesion[::-1])[::-1]
        wrong = np.cumsum(self.other[::-1])[::-1]
        return marked, wrong, int(self.lesion.sum())

    def iou(self) -> NDArray[np.float64]:
        """IoU at each threshold, float64 (256,); 1 where there is neither lesion nor mark."""
        marked, wrong, total = self.overlaps()
        union = total + wrong
        return np.where(union > 0, marked / np.maximum(union, 1), 1.0)

    def dice(self) -> NDArray[np.float64]:
        """Dice at each threshold, float64 (256,)."""
        iou = self.iou()
        return 2 * iou / (1 + iou)


@dataclass(frozen=True)
class Rule:
    """One threshold for all slides.

    Attributes:
        quantity: `grey`, `saturation`, `red`, `green` or `blue`.
        side: `above` or `below`: which side is marked.
        level: First marked level, counted from 0 upwards for `above` and from 255 downwards for `below`.
    """

    quantity: str
    side: str
    level: int

    @property
    def name(self) -> str:
        """Words for tables, for example `green below 238`."""
        cut = self.level if self.side == "above" else LEVELS - 1 - self.level
        return f"{self.quantity} {self.side} {cut}"

    def iou(self, item: SegmentItem) -> float:
        """IoU of the rule on one slide."""
        return float(_rule_curve(item, self.quantity, self.side)[self.level])


@dataclass(frozen=True)
class Baseline:
    """The best that one threshold for all slides reaches.

    Attributes:
        name: Quantity and direction, for example `grey below 141`.
        iou: Mean IoU over the slides it was chosen on.
        dice: Mean Dice there.
    """

    name: str
    iou: Interval
    dice: Interval


def count_levels(levels: NDArray[np.uint8], item: SegmentItem) -> LevelCounts:
    """Count the known pixels of a slide by level, uint8 (S, S), and lesion."""
    lesion = levels[item.known[0] & item.positive[0]]
    other = levels[item.known[0] & ~item.positive[0]]
    return LevelCounts(
        np.bincount(lesion, minlength=LEVELS), np.bincount(other, minlength=LEVELS)
    )


def level_of(threshold: float) -> int:
    """The level that a probability threshold stands for."""
    return min(LEVELS - 1, round(threshold * LEVELS))


def mean_iou(counts: Sequence[LevelCounts], threshold: float) -> float:
    """Mean IoU over slides."""
    return float(np.mean([c.iou()[level_of(threshold)] for c in counts]))


def mean_dice(counts: Sequence[LevelCounts], threshold: float) -> float:
    """Mean Dice over slides."""
    return float(np.mean([c.dice()[level_of(threshold)] for c in counts]))


def best_threshold(counts: Sequence[LevelCounts]) -> float:
    """The probability threshold with the best mean IoU; the middle of the plateau where several are equal."""
    mean = np.mean([c.iou() for c in counts], axis=0)[1:]
    best = np.flatnonzero(mean >= mean.max() - 1e-12) + 1
    return float(best[len(best) // 2]) / LEVELS


def mean_interval(
    values: Sequence[float], groups: Sequence[str], seed: int = 0
) -> Interval:
    """Mean over slides with its 95 % percentile bootstrap interval, whole patients drawn with replacement."""
    array = np.asarray(values, dtype=np.float64)
    index = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
    draws = [array[rows].mean() for rows in resamples(index, DRAWS, seed)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high))


def best_rule(items: Sequence[SegmentItem]) -> Rule:
    """The single threshold on grey, saturation or a colour, on either side, with the best mean IoU on these slides."""
    tried: list[tuple[float, Rule]] = []
    for quantity in QUANTITIES:
        for side in ("above", "below"):
            mean = np.mean([_rule_curve(i, quantity, side) for i in items], axis=0)
            level = int(mean.argmax())
            tried.append((float(mean[level]), Rule(quantity, side, level)))
    return max(tried, key=lambda pair: pair[0])[1]


def best_global_threshold(items: Sequence[SegmentItem]) -> Baseline:
    """What `best_rule` reaches on the very slides it was chosen on.

    That is more than a threshold can honestly reach, so a network has to beat an optimist.
    """
    rule = best_rule(items)
    iou = [rule.iou(item) for item in items]
    dice = [2 * value / (1 + value) for value in iou]
    groups = [item.group for item in items]
    return Baseline(rule.name, mean_interval(iou, groups), mean_interval(dice, groups))


def _rule_curve(item: SegmentItem, quantity: str, side: str) -> NDArray[np.float64]:
    """IoU of one slide at each level."""
    plane = _quantity(item.pixels, quantity)
    return count_levels(plane if side == "above" else 255 - plane, item).iou()


def _quantity(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    if name == "grey":
        return np.asarray(
            (pixels @ np.array([0.299, 0.587, 0.114])).round(), dtype=np.uint8
        )
    if name == "saturation":
        high, low = pixels.max(2).astype(np.float32), pixels.min(2)
        return np.asarray((high - low) / np.maximum(high, 1) * 255, dtype=np.uint8)
    return pixels[..., ("red", "green", "blue").index(name)]
