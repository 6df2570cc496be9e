"""Which item is visited when, with what weight, and at what learning rate: pure functions of seed and position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .config import LoopSpec


@dataclass(frozen=True)
class Visit:
    """One visit of one training item.

    Attributes:
        item: Index of the item.
        epoch, position: When; together with the seed they determine every draw.
        weight: What the loss is multiplied with before backward (accumulation, class weight).
    """

    item: int
    epoch: int
    position: int
    weight: float

    def rng(self, seed: int) -> np.random.Generator:
        """The generator of this visit, the same whenever the visit is repeated."""
        return np.random.default_rng([seed, self.epoch, self.position, 7919])


def epoch_visits(labels: Sequence[int], spec: LoopSpec, epoch: int) -> list[Visit]:
    """The visits of one epoch, in order: a permutation, or draws that even out the classes.

    The weight of a visit is one over the number of visits of its accumulation window.
    """
    rng = np.random.default_rng([spec.seed, epoch])
    count = len(labels)
    if spec.balance == "sampler":
        share = class_weights(np.asarray(labels))[np.asarray(labels)]
        order = rng.choice(count, size=count, p=share / share.sum())
    else:
        order = rng.permutation(count)
    windows = [
        min(spec.accumulate, count - start)
        for start in range(0, count, spec.accumulate)
    ]
    return [
        Visit(int(item), epoch, place, 1.0 / windows[place // spec.accumulate])
        for place, item in enumerate(order)
    ]


def class_weights(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Weight per class, inverse to its frequency, with mean one over the items."""
    counts = np.bincount(labels)
    weights = np.where(counts > 0, len(labels) / np.maximum(counts, 1), 0.0)
    return np.asarray(weights / (counts > 0).sum())


def schedule(step: int, total: int, spec: LoopSpec) -> float:
    """Share of the base learning rate at a step: linear warm-up, then half a cosine down to `final_lr`."""
    rise = int(spec.warmup * total)
    if step < rise:
        return (step + 1) / (rise + 1)
    along = (step - rise) / max(total - rise, 1)
    return spec.final_lr + (1 - spec.final_lr) * 0.5 * (1 + math.cos(math.pi * along))
