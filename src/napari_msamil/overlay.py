"""A result as arrays that lie over the slide: values, scale and translation. Knows no viewer.

A cell of d level-0 pixels is placed with scale d·mpp and translation (d − 1)/2·mpp on each axis, so
that the outer edge of the grid falls on the slide's outer edge exactly (pixel centres sit on whole numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.patches import PatchGrid
    from napari_msamil.result import SlideResult


@dataclass(frozen=True, eq=False)
class Overlay:
    """One grid of values over a slide.

    Attributes:
        name: What it shows, for example `attention 20x`.
        scale_name: The scale its patches belong to.
        values: float32 (rows, columns), NaN where no patch lies.
        cell_px0: Side of a cell in level-0 pixels.
        mpp_yx: µm per level-0 pixel along y and x.
    """

    name: str
    scale_name: str
    values: NDArray[np.float32]
    cell_px0: float
    mpp_yx: tuple[float, float]

    @property
    def scale_yx_um(self) -> tuple[float, float]:
        """Size of a cell in µm, y then x."""
        return self.cell_px0 * self.mpp_yx[0], self.cell_px0 * self.mpp_yx[1]

    @property
    def translate_yx_um(self) -> tuple[float, float]:
        """Centre of the first cell in µm, y then x, where the centre of level-0 pixel (0, 0) is the origin."""
        half = (self.cell_px0 - 1) / 2
        return half * self.mpp_yx[0], half * self.mpp_yx[1]


def patch_map(
    grid: PatchGrid, values: NDArray[np.floating], scale: int
) -> NDArray[np.float32]:
    """Lay one value per patch out on the grid of one scale.

    Args:
        grid: The patches.
        values: (N,), one per patch of the whole grid.
        scale: Index of the scale to show.

    Returns:
        float32 (rows, columns), NaN where no patch lies; the mean where patches overlap.
    """
    size, step = grid.size_px0[scale], grid.step_px0[scale]
    width, height = grid.size_wh0
    reach = max(1, round(size / step))
    columns, rows = max(1, -(-width // step)), max(1, -(-height // step))
    total, count = np.zeros(rows * columns), np.zeros(rows * columns)
    here = np.flatnonzero(grid.scale == scale)
    first_xy = np.round(grid.coords_xy0[here] / step).astype(int)
    for dy in range(reach):
        for dx in range(reach):
            x = np.minimum(first_xy[:, 0] + dx, columns - 1)
            y = np.minimum(first_xy[:, 1] + dy, rows - 1)
            cell = y * columns + x
            total += np.bincount(cell, values[here], rows * columns)
            count += np.bincount(cell, minlength=rows * columns)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32).reshape(rows, columns)


def value_maps(
    result: SlideResult, values: NDArray[np.floating], label: str
) -> list[Overlay]:
    """One overlay per scale for any value per patch (N,)."""
    mpp = result.info.mpp_yx or (result.grid.mpp, result.grid.mpp)
    return [
        Overlay(
            f"{label} {spec.name}",
            spec.name,
            patch_map(result.grid, values, index),
            result.grid.step_px0[index],
            mpp,
        )
        for index, spec in enumerate(result.grid.spec.scales)
    ]


def attention_maps(result: SlideResult) -> list[Overlay]:
    """Attention per scale; it sums to 1 over all scales together."""
    return value_maps(result, result.attention, "attention")


def mean_attention(result: SlideResult) -> Overlay:
    """Attention of all scales as one picture, as many times the average patch's.

    Cells are the finest scale's; each has the mean of the patches of every scale that cover its centre.
    """
    maps = attention_maps(result)
    cell = min(one.cell_px0 for one in maps)
    width, height = result.grid.size_wh0
    x = (np.arange(-(-width // int(cell))) + 0.5) * cell
    y = (np.arange(-(-height // int(cell))) + 0.5) * cell
    layers = []
    for one in maps:
        rows = np.minimum(y // one.cell_px0, one.values.shape[0] - 1).astype(int)
        columns = np.minimum(x // one.cell_px0, one.values.shape[1] - 1).astype(int)
        layers.append(one.values[np.ix_(rows, columns)])
    stack = np.stack(layers).astype(np.float64)
    with np.errstate(invalid="ignore"):
        mean = np.nansum(stack, axis=0) / np.isfinite(stack).sum(0)
    patches = max(int(result.valid.sum()), 1)
    return Overlay(
        "attention", "", (mean * patches).astype(np.float32), cell, maps[0].mpp_yx
    )


def query_maps(result: SlideResult, query: int) -> list[Overlay]:
    """Attention of one DMQ query per scale; empty for methods without queries."""
    if result.query_attention is None:
        return []
    return value_maps(result, result.query_attention[query], f"query {query}")
