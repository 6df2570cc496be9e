"""A mask over a whole slide: the type that tissue, lesion and annotation code hand on.

The mask grid covers exactly the whole of level 0, also where its two scale factors differ
(the paper's 1024 × 1024 thumbnail, s1 = W/1024 and s2 = H/1024).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import MaskError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MaskSource(StrEnum):
    """Who made the mask; stored with every result."""

    MODEL = "model"
    FILE = "file"
    USER = "user"
    TISSUE = "tissue"


@dataclass(frozen=True, eq=False)
class SlideMask:
    """A boolean mask over the whole of level 0.

    Attributes:
        mask: bool (H, W).
        size_wh0: Width and height of level 0 in pixels.
        source: Who made it.
        probability: float32 (H, W) lesion probability where a model made the mask, else None.
    """

    mask: NDArray[np.bool_]
    size_wh0: tuple[int, int]
    source: MaskSource
    probability: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_ or 0 in self.mask.shape:
            raise MaskError(
                f"A mask is a non-empty boolean image, not {self.mask.dtype} {self.mask.shape}."
            )

    @property
    def downsample_xy(self) -> tuple[float, float]:
        """Level-0 pixels per mask pixel along x and y (the paper's s1 and s2)."""
        height, width = self.mask.shape
        return self.size_wh0[0] / width, self.size_wh0[1] / height

    @property
    def fraction(self) -> float:
        """Share of the slide that is marked, 0 … 1."""
        return float(self.mask.mean())


def area_shares(
    mask: SlideMask, boxes_xywh0: NDArray[np.generic]
) -> NDArray[np.float64]:
    """Share of each box that is marked: the exact area average, with fractional edges, also where s1 ≠ s2.

    Args:
        mask: Mask over the whole slide.
        boxes_xywh0: (N, 4) left, top, width, height in level-0 pixels; whole or not. What lies outside the
            slide counts as unmarked.

    Returns:
        float64 (N,), 0 … 1.
    """
    return np.clip(box_means(mask.mask, mask.size_wh0, boxes_xywh0), 0.0, 1.0)


def box_means(
    values: NDArray[np.generic],
    size_wh0: tuple[int, int],
    boxes_xywh0: NDArray[np.generic],
) -> NDArray[np.float64]:
    """Mean of a picture over each box, where the picture covers the whole slide.

    A summed-area table is read between its knots. That is exact: the picture is constant in each cell, so its
    integral is bilinear there.

    Args:
        values: (H, W), truth values or numbers.
        size_wh0: Width and height of level 0.
        boxes_xywh0: (N, 4) left, top, width, height in level-0 pixels; outside the slide the picture is 0.

    Returns:
        float64 (N,).
    """
    boxes = np.asarray(boxes_xywh0, dtype=np.float64).reshape(-1, 4)
    height, width = values.shape
    step_x, step_y = size_wh0[0] / width, size_wh0[1] / height
    table = _summed_area(values)
    left, top = boxes[:, 0] / step_x, boxes[:, 1] / step_y
    right, bottom = left + boxes[:, 2] / step_x, top + boxes[:, 3] / step_y
    total = (
        _table_at(table, right, bottom)
        - _table_at(table, left, bottom)
        - _table_at(table, right, top)
        + _table_at(table, left, top)
    )
    means: NDArray[np.float64] = total / ((right - left) * (bottom - top))
    return means


def lattice_shares(
    mask: SlideMask, x0: NDArray[np.int64], y0: NDArray[np.int64], side: int
) -> NDArray[np.float64]:
    """What `area_shares` says of squares at every x0 with every y0, without one look-up per corner.

    The area is a product of two thin matrices with the mask, how much of each mask row and column lies in each row and
    column of the lattice: a million cells in some milliseconds, while somebody paints.

    Args:
        mask: Mask over the whole slide.
        x0: (X,), left edges in level-0 pixels.
        y0: (Y,), top edges.
        side: Side of the squares in level-0 pixels.

    Returns:
        float64 (X, Y), 0 … 1.
    """
    height, width = mask.mask.shape
    step_x, step_y = mask.downsample_xy
    rows = _overlaps(y0 / step_y, side / step_y, height) @ mask.mask.astype(np.float64)
    total = _overlaps(x0 / step_x, side / step_x, width) @ rows.T
    total *= step_x * step_y / side**2
    shares: NDArray[np.float64] = np.clip(total, 0.0, 1.0, out=total)
    return shares


def _overlaps(start: NDArray[np.float64], length: float, cells: int) -> Any:
    """How much of each cell [i, i + 1) lies in each span [start, start + length): sparse (spans, cells)."""
    from scipy.sparse import csr_array

    first = np.floor(start).astype(np.int64)
    reach = int(np.ceil(length)) + 1
    cell = first[:, None] + np.arange(reach)
    lower = np.maximum(cell, start[:, None])
    upper = np.minimum(cell + 1, start[:, None] + length)
    part = np.where((cell >= 0) & (cell < cells), np.maximum(upper - lower, 0), 0)
    pointer = np.arange(len(start) + 1) * reach
    where = np.clip(cell, 0, cells - 1)
    return csr_array((part.ravel(), where.ravel(), pointer), shape=(len(start), cells))


def _summed_area(values: NDArray[np.generic]) -> NDArray[Any]:
    """The sum above and to the left of each corner, (H + 1, W + 1)."""
    height, width = values.shape
    kind = np.int64 if values.dtype == np.bool_ else np.float64
    table = np.zeros((height + 1, width + 1), dtype=kind)
    np.cumsum(values, axis=1, dtype=kind, out=table[1:, 1:])
    for row in range(2, height + 1):  # ten times as fast as a sum along axis 0
        table[row] += table[row - 1]
    return table


def _table_at(
    table: NDArray[np.int64] | NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> NDArray[np.float64]:
    rows, columns = table.shape
    x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
    column = np.minimum(x.astype(np.int64), columns - 2)
    row = np.minimum(y.astype(np.int64), rows - 2)
    part_x, part_y = x - column, y - row
    above = table[row, column] * (1 - part_x) + table[row, column + 1] * part_x
    below = table[row + 1, column] * (1 - part_x) + table[row + 1, column + 1] * part_x
    result: NDArray[np.float64] = above * (1 - part_y) + below * part_y
    return result
