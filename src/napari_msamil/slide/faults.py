"""How viewers show pixels that cannot be read: striped, never white, and told of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.errors import RegionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_msamil.slide.base import Slide

FAULT_RGB = (255, 0, 255)
"""Stripes over unreadable pixels: a colour no stain has, so that they cannot be taken for glass."""
STRIPE_PX = 16
PART_PX = 256


def striped(width: int, height: int) -> NDArray[np.uint8]:
    """Diagonal stripes that mark unreadable pixels, uint8 (height, width, 3)."""
    rows, columns = np.ogrid[:height, :width]
    out = np.full((height, width, 3), 128, np.uint8)
    out[(rows + columns) // STRIPE_PX % 2 == 0] = FAULT_RGB
    return out


def read_for_display(
    slide: Slide,
    level: int,
    xy: tuple[int, int],
    size_wh: tuple[int, int],
    on_fault: Callable[[RegionError], None] | None = None,
) -> NDArray[np.uint8]:
    """Read a region for a viewer; parts that cannot be decoded are striped.

    Args:
        slide: The slide.
        level: Pyramid level.
        xy: Top-left corner in pixels of that level.
        size_wh: Size in pixels of that level.
        on_fault: Told of every part that cannot be read.

    Returns:
        uint8 (H, W, 3). Never use it for a model: stripes are not tissue.
    """
    try:
        return slide.read_level(level, xy, size_wh)
    except RegionError:
        pass
    out = np.empty((size_wh[1], size_wh[0], 3), np.uint8)
    for y in range(0, size_wh[1], PART_PX):
        for x in range(0, size_wh[0], PART_PX):
            w, h = min(PART_PX, size_wh[0] - x), min(PART_PX, size_wh[1] - y)
            try:
                part = slide.read_level(level, (xy[0] + x, xy[1] + y), (w, h))
            except RegionError as error:
                part = striped(w, h)
                if on_fault is not None:
                    on_fault(error)
            out[y : y + h, x : x + w] = part
    return out
