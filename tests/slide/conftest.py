"""Small slides made for the tests, and faults put into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from numpy.typing import NDArray


def smooth_picture(height: int, width: int, seed: int = 3) -> NDArray[np.uint8]:
    """Stained-looking waves with grain, uint8 (H, W, 3): JPEG keeps them, swapped axes do not pass."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    grain = np.random.default_rng(seed).normal(0, 6, (height, width)).astype(np.float32)
    red = 200 + 40 * np.sin(columns / 23) * np.cos(rows / 41)
    green = 150 + 60 * np.sin(columns / 57 + rows / 33)
    blue = 190 + 50 * np.cos(rows / 19) * np.sin(columns / 71)
    return (
        np.stack([red + grain, green + grain, blue - grain], axis=2)
        .clip(0, 255)
        .astype(np.uint8)
    )


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """An image of odd, unequal sides."""
    return smooth_picture(1033, 1501)
