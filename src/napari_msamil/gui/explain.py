"""Questions to an answer that need no patch to be encoded again. Pure: no window, no layers.

Each asks the aggregator anew with some of the cached features left out; an answer takes milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.errors import MsamilError
from napari_msamil.gui.strings import ERROR, WHAT_IF
from napari_msamil.progress import Progress, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.progress import ProgressGen
    from napari_msamil.result import SlideResult

DELETED = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the patches that the faithfulness curve deletes."""

ALONE_BATCH = 512
"""Bags of one patch that are classified at once."""


@dataclass(frozen=True, eq=False)
class WhatIf:
    """Probabilities (C,) with all patches, without those in a region, and with those only."""

    full: NDArray[np.float32]
    without: NDArray[np.float32]
    only: NDArray[np.float32]
    inside: int
    total: int


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Probability of the predicted class while patches are deleted.

    Attributes:
        class_name: The predicted class.
        deleted: (S,) share of patches deleted.
        attended: (S,) most attended first.
        random: (R, S) random patches, R repeats.
    """

    class_name: str
    deleted: NDArray[np.float64]
    attended: NDArray[np.float64]
    random: NDArray[np.float64]

    @property
    def gap(self) -> float:
        """Area between the random curve and the attended one, 0 … 1; positive: attention points at evidence."""
        return float(
            np.trapezoid(self.random.mean(axis=0) - self.attended, self.deleted)
        )


def answer_for(
    loaded: LoadedModel, result: SlideResult, keep: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Probabilities (C,) with only the patches of `keep` (N,); NaN where none is left.

    Raises:
        MsamilError: The result was loaded from disk and has no features.
    """
    from napari_msamil.inference import FeatureBag, aggregate

    if len(result.features) != len(result.grid):
        raise MsamilError(ERROR.no_features)
    valid = result.valid & keep
    if not valid.any():
        return np.full(len(result.classes), np.nan, np.float32)
    bag = FeatureBag(
        features=result.features,
        grid=result.grid,
        encoder_id="",
        valid=valid,
        faults={},
        timings_s={},
    )
    logits = aggregate(loaded, bag).logits[0].float().cpu().numpy()
    powers = np.exp((logits - logits.max()) / loaded.config.temperature)
    return np.asarray(powers / powers.sum(), dtype=np.float32)


def what_if_steps(
    loaded: LoadedModel, result: SlideResult, inside: NDArray[np.bool_]
) -> ProgressGen[WhatIf]:
    """Answer without a region, and with the region only.

    Args:
        loaded: The model that gave the result.
        result: The answer in question.
        inside: (N,), patches that belong to the region.

    Raises:
        MsamilError: The region holds no patch, or all of them.
    """
    if not inside.any():
        raise MsamilError(WHAT_IF.empty_region)
    if inside.all():
        raise MsamilError(WHAT_IF.all_inside)
    yield Progress(Stage.AGGREGATE, 0, 2)
    without = answer_for(loaded, result, ~inside)
    yield Progress(Stage.AGGREGATE, 1, 2)
    only = answer_for(loaded, result, inside)
    full = np.asarray(result.probabilities, np.float32)
    return WhatIf(full, without, only, int(inside.sum()), len(inside))


def contribution_steps(
    loaded: LoadedModel, result: SlideResult
) -> ProgressGen[dict[str, float]]:
    """Change of the predicted class's probability when a scale is left out, by scale name."""
    best = int(np.argmax(result.probabilities))
    found = {}
    scales = result.grid.spec.scales
    for code, spec in enumerate(scales):
        yield Progress(Stage.AGGREGATE, code, len(scales))
        left = answer_for(loaded, result, result.grid.scale != code)
        found[spec.name] = float(left[best] - result.probabilities[best])
    return found


def trust_steps(
    loaded: LoadedModel, result: SlideResult, repeats: int = 8, seed: int = 0
) -> ProgressGen[Faithfulness]:
    """Delete the most attended patches step by step, and random ones for comparison.

    Args:
        loaded: The model that gave the result.
        result: The answer in question.
        repeats: How many random orders.
        seed: Of those orders.
    """
    best = int(np.argmax(result.probabilities))
    count = len(result.grid)
    rng = np.random.default_rng(seed)
    by_attention = np.argsort(-result.attention, kind="stable")
    orders = [by_attention, *(rng.permutation(count) for _ in range(repeats))]
    curves = np.zeros((len(orders), len(DELETED)))
    for row, order in enumerate(orders):
        for column, share in enumerate(DELETED):
            yield Progress(Stage.AGGREGATE, row * len(DELETED) + column, curves.size)
            keep = np.ones(count, bool)
            keep[order[: math.floor(share * count)]] = False
            curves[row, column] = answer_for(loaded, result, keep)[best]
    return Faithfulness(
        result.classes[best], np.asarray(DELETED), curves[0], curves[1:]
    )


def patches_inside(
    result: SlideResult, polygons_xy0: Sequence[NDArray[np.floating]]
) -> NDArray[np.bool_]:
    """Which patches (N,) have their centre in any of the polygons (K, 2), level-0 pixels x, y."""
    import shapely

    grid = result.grid
    sides = np.asarray(grid.size_px0)[grid.scale]
    centres = grid.coords_xy0 + sides[:, None] / 2
    region = shapely.union_all(
        [shapely.make_valid(shapely.Polygon(p)) for p in polygons_xy0 if len(p) >= 3]
    )
    found = shapely.contains_xy(region, centres[:, 0], centres[:, 1])
    return np.asarray(found, dtype=bool)


def instance_probability_steps(
    loaded: LoadedModel, result: SlideResult
) -> ProgressGen[NDArray[np.float32]]:
    """Probability (N,) of the predicted class per instance.

    Methods that score instances use those scores; for the others (AB-MIL, TransMIL, IAAM) each instance is
    classified as a bag of its own, as in Figure 1 of the MHIM-MIL supplementary.

    Raises:
        MsamilError: The result was loaded from disk and has no features.
    """
    logits = result.instance_logits
    if logits is None:
        logits = yield from _alone_steps(loaded, result)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    return np.asarray(shares[:, int(np.argmax(result.probabilities))], np.float32)


def _alone_steps(
    loaded: LoadedModel, result: SlideResult
) -> ProgressGen[NDArray[np.float32]]:
    """Logits (N, C), divided by the model's temperature, of every patch as a bag of its own."""
    import torch

    if len(result.features) != len(result.grid):
        raise MsamilError(ERROR.no_features)
    grid, aggregator = result.grid, loaded.model.aggregator.to("cpu").eval()
    places = (grid.coords_xy0 / np.asarray(grid.size_wh0, float)).astype(np.float32)
    inputs = (result.features, places, grid.scale.astype(np.int64))
    found = []
    for start in range(0, len(grid), ALONE_BATCH):
        yield Progress(Stage.AGGREGATE, start, len(grid))
        part = [
            torch.from_numpy(a[start : start + ALONE_BATCH])[:, None] for a in inputs
        ]
        with torch.inference_mode():
            found.append(aggregator(*part).logits.float().numpy())
    logits = np.concatenate(found) / loaded.config.temperature
    return np.asarray(logits, np.float32)


@dataclass(frozen=True, eq=False)
class Masked:
    """Which instances MHIM would mask (N,), and why: bool (N,) each."""

    high: NDArray[np.bool_]
    low: NDArray[np.bool_]
    random: NDArray[np.bool_]

    @property
    def kinds(self) -> NDArray[np.float32]:
        """0 masked as low, 0.5 at random, 1 as high (which wins), NaN not masked."""
        kinds = np.full(self.high.shape, np.nan, np.float32)
        for value, masked in ((0.0, self.low), (0.5, self.random), (1.0, self.high)):
            kinds[masked] = value
        return kinds

    @property
    def any(self) -> NDArray[np.bool_]:
        """The union: what a student would not see."""
        return self.high | self.low | self.random


def mhim_masked(
    attention: NDArray[np.floating],
    high: float,
    low: float,
    random: float,
    seed: int = 0,
) -> Masked:
    """Which instances a teacher with this attention would mask (MHIM-MIL supplementary, Algorithm 1).

    Each share is of the full bag and the union is masked. Heads vote: each marks its first instances and the
    most marked win, ties by mean attention.

    Args:
        attention: (N,) or (H, N).
        high: Share with the highest attention, 0 … 1.
        low: Share with the lowest.
        random: Share drawn at random.
        seed: Of the draw.
    """
    scores = np.atleast_2d(attention)
    count = scores.shape[1]
    drawn = np.zeros(count, bool)
    take = _count(random, count)
    drawn[np.random.default_rng(seed).permutation(count)[:take]] = True
    return Masked(_voted(scores, high), _voted(-scores, low), drawn)


def _count(share: float, total: int) -> int:
    return min(max(math.ceil(share * total - 1e-9), 0), total)


def _voted(scores: NDArray[np.floating], share: float) -> NDArray[np.bool_]:
    take = _count(share, scores.shape[1])
    first = np.argsort(-scores, axis=1, kind="stable")[:, :take]
    votes = np.zeros(scores.shape[1])
    np.add.at(votes, first.ravel(), 1)
    chosen = np.lexsort((-scores.mean(axis=0), -votes))[:take]
    marked = np.zeros(scores.shape[1], bool)
    marked[chosen] = True
    return marked
