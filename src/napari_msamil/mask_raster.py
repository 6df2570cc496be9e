"""Between outlines and mask pixels, both ways, exactly: a pixel is marked if its centre lies inside.

Outlines follow pixel edges, so a mask written as polygons and read back at its own resolution is the same mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import shapely

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from napari_msamil.masks import SlideMask


def fill_polygons(
    polygons: Iterable[shapely.Polygon | shapely.MultiPolygon],
    size_wh0: tuple[int, int],
    shape_hw: tuple[int, int],
) -> NDArray[np.bool_]:
    """The union of polygons as a mask over a slide.

    Args:
        polygons: In level-0 pixels; holes stay open.
        size_wh0: Width and height of level 0.
        shape_hw: Rows and columns of the mask.

    Returns:
        bool (H, W): pixels whose centre lies inside any polygon.
    """
    out = np.zeros(shape_hw, dtype=np.bool_)
    step = np.array([size_wh0[0] / shape_hw[1], size_wh0[1] / shape_hw[0]])
    for polygon in polygons:
        for part in shapely.get_parts(polygon):
            rings = [
                shapely.get_coordinates(r) for r in (part.exterior, *part.interiors)
            ]
            out |= _even_odd([ring / step - 0.5 for ring in rings], shape_hw)
    return out


def _even_odd(
    rings: list[NDArray[np.float64]], shape_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Scan-line fill: rings cross the line of pixel centres of a row; between odd and even crossings is inside.

    Args:
        rings: Closed rings (n, 2), x then y, where pixel centres have whole coordinates.
        shape_hw: Rows and columns.
    """
    height, width = shape_hw
    toggles = np.zeros((height, width + 1), dtype=np.int32)
    for ring in rings:
        (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
        first = np.clip(np.ceil(np.minimum(y0, y1)), 0, height).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y0, y1)), 0, height).astype(np.int64)
        count = last - first
        edge = np.repeat(np.arange(len(count)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        row += first[edge]
        along = (row - y0[edge]) / (y1[edge] - y0[edge])
        x = x0[edge] + along * (x1[edge] - x0[edge])
        column = np.clip(np.ceil(x), 0, width).astype(np.int64)
        np.add.at(toggles, (row, column), 1)
    inside: NDArray[np.bool_] = np.cumsum(toggles[:, :-1], axis=1) % 2 == 1
    return inside


def mask_polygons(mask: SlideMask) -> list[shapely.Polygon]:
    """Outlines of a mask along the edges of its pixels, with holes, in level-0 pixels."""
    if not mask.mask.any():
        return []
    padded = np.zeros((mask.mask.shape[0], mask.mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask.mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    _, ends = np.nonzero(change == -1)
    # The union is taken in whole mask pixels, where no rounding can open a seam between two rows.
    shape = shapely.union_all(shapely.box(starts, rows, ends, rows + 1))
    shape = shapely.simplify(shape, 0)
    scaled = shapely.transform(shape, lambda xy: xy * np.asarray(mask.downsample_xy))
    return list(shapely.get_parts(scaled))
