"""Small slides made for the tests, and faults put into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from numpy.typing import NDArray


def smooth_picture(height: int, width: int, seed: int = 3) -> NDArray[np.uint8]:
    """Stained-looking waves with grain, uint8 (H, W, 3): JPEG keeps them, swapped axes do not pass."""
    y, x = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    rng = np.random.default_rng(seed)
    grain = rng.integers(-9, 10, (height, width), dtype=np.int8).astype(np.float32)
    red = 200 + 40 * np.outer(np.cos(y / 41), np.sin(x / 23))
    green = (
        150
        + 60 * np.outer(np.cos(y / 33), np.sin(x / 57))
        + 30 * np.sin(y / 33)[:, None]
    )
    blue = 190 + 50 * np.outer(np.cos(y / 19), np.sin(x / 71))
    return (
        np.stack([red + grain, green + grain, blue - grain], axis=2)
        .clip(0, 255)
        .astype(np.uint8)
    )


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """An image of odd, unequal sides."""
    return smooth_picture(1033, 1501)
