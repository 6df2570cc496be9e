"""Digit bags: small images of digits as instances, so that the truth of every instance is known.

A bag is positive if it holds at least one digit of the target class; the share of positives plays the part of the
lesion's size. scikit-learn's 1797 digits of 8 x 8 pixels need no download. Training and test bags draw from digits
that do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_msamil.errors import ExtraMissingError

from ..bag_dataset import BagDataset
from ..bags import StoredBag

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class DigitBagSpec:
    """What bags are drawn.

    Attributes:
        target: Digit that makes a bag positive.
        bags: Number of bags of a part, half of them positive.
        size: Mean number of instances.
        spread: Standard deviation of that number.
        positives: Share of target digits in a positive bag, at least one instance.
        noise: Deviation of noise added to the pixels (0 … 1).
    """

    target: int = 9
    bags: int = 100
    size: int = 100
    spread: int = 20
    positives: float = 0.05
    noise: float = 0.3


def digit_parts(
    spec: DigitBagSpec, seed: int, bags: tuple[int, int, int] = (100, 50, 100)
) -> tuple[BagDataset, ...]:
    """Training, validation and test bags from disjoint digits.

    Args:
        spec: What bags are drawn.
        seed: Of the split of the digits and of the draws.
        bags: Number of bags of the three parts.

    Returns:
        One data set per part; their `truth` marks the target digits.

    Raises:
        ExtraMissingError: scikit-learn is not installed.
    """
    images, digits = _digits()
    rng = np.random.default_rng([seed, 17])
    order = rng.permutation(len(digits))
    cuts = np.array_split(order, [len(order) // 2, len(order) * 2 // 3])
    parts = []
    for rows, count in zip(cuts, bags, strict=True):
        drawn = [
            _bag(images[rows], digits[rows], spec, number, rng)
            for number in range(count)
        ]
        labels = [number % 2 for number in range(count)]
        parts.append(BagDataset(drawn, labels))
    return tuple(parts)


def _bag(
    images: NDArray[np.float32],
    digits: NDArray[np.int64],
    spec: DigitBagSpec,
    number: int,
    rng: np.random.Generator,
) -> StoredBag:
    """One bag; odd numbers are positive."""
    size = max(int(rng.normal(spec.size, spec.spread)), 4)
    wanted = max(round(size * spec.positives), 1) if number % 2 else 0
    positive = rng.choice(np.flatnonzero(digits == spec.target), wanted)
    negative = rng.choice(np.flatnonzero(digits != spec.target), size - wanted)
    rows = rng.permutation(np.concatenate([positive, negative]).astype(np.int64))
    pixels = images[rows] + rng.normal(0, spec.noise, (size, images.shape[1]))
    return StoredBag(
        features=torch.as_tensor(pixels.astype(np.float32)),
        coords_xy0=torch.zeros(size, 2, dtype=torch.int64),
        scale=torch.zeros(size, dtype=torch.int8),
        valid=torch.ones(size, dtype=torch.bool),
        size_px0=(8,),
        size_wh0=(0, 0),
        mpp=float("nan"),
        scale_names=("digit",),
        encoder_id="digits",
        slide=f"bag-{number}",
        instance_labels=torch.as_tensor((digits[rows] == spec.target).astype(np.int8)),
    )


def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pixels in 0 … 1 (1797, 64) and the digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ExtraMissingError("Digit bags", "train") from error
    found = load_digits()
    return (found.data / 16).astype(np.float32), found.target.astype(np.int64)
