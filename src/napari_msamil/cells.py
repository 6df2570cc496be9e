"""Level pixels from cells that are decoded once: storage tiles, or blocks of them where only OpenSlide can read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.slide.base import TileSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.slide.base import Slide

MAX_BYTES = 192 << 20
"""Decoded cells kept at most; a cell dropped too early is decoded again."""
BLOCK_PX = 1024
"""Side of a cell, about, where a slide cannot decode single tiles."""
_WHOLE = 1e-9

CellKey = tuple[int, int, int]
"""Level, column, row."""


@dataclass(frozen=True)
class CellGrid:
    """How one level is cut into cells.

    Attributes:
        level: The level.
        size_wh: Its size in pixels.
        cell_wh: Size of a cell.
        tiled: Whether cells are storage tiles that the slide decodes one by one.
    """

    level: int
    size_wh: tuple[int, int]
    cell_wh: tuple[int, int]
    tiled: bool

    def spans(self, regions_xywh: NDArray[np.int64]) -> NDArray[np.int64]:
        """First and last column, first and last row of the cells under regions: int64 (N, 4)."""
        x, y, w, h = regions_xywh.T
        (cell_w, cell_h), (width, height) = self.cell_wh, self.size_wh
        columns, rows = (width - 1) // cell_w, (height - 1) // cell_h
        return np.column_stack(
            [
                np.clip(x // cell_w, 0, columns),
                np.clip((x + w - 1) // cell_w, 0, columns),
                np.clip(y // cell_h, 0, rows),
                np.clip((y + h - 1) // cell_h, 0, rows),
            ]
        )


def cell_grid(slide: Slide, level: int) -> CellGrid | None:
    """How a level is cut, or None where cells would not give the same pixels as reading a region at once.

    OpenSlide takes positions in level-0 pixels and interpolates where these fall between pixels of the level, so
    what it gives depends on the corner asked for, unless the downsample is a whole number.
    """
    info = slide.info
    size_wh, (tile_w, tile_h) = (
        info.level_sizes_wh[level],
        info.level_tile_sizes_wh[level],
    )
    if isinstance(slide, TileSource):
        return CellGrid(level, size_wh, (tile_w, tile_h), tiled=True)
    downsample = info.level_downsamples[level]
    if info.backend == "openslide" and abs(downsample - round(downsample)) > _WHOLE:
        return None
    block = _block(tile_w), _block(tile_h)
    return CellGrid(level, size_wh, block, tiled=False)


def _block(tile: int) -> int:
    """A whole number of tiles, near `BLOCK_PX`."""
    return tile * max(1, BLOCK_PX // tile) if tile <= 2 * BLOCK_PX else BLOCK_PX


class Cells:
    """Decoded cells, shared by reading threads; each is dropped after its last planned use.

    Attributes:
        decoded: How many cells were decoded so far.
    """

    def __init__(self, slide: Slide, max_bytes: int = MAX_BYTES) -> None:
        self._slide = slide
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._cells: OrderedDict[CellKey, Future[NDArray[np.uint8]]] = OrderedDict()
        self._uses: dict[CellKey, int] = {}
        self._bytes = 0
        self.decoded = 0

    def plan(self, grid: CellGrid, regions_xywh: NDArray[np.int64]) -> None:
        """Announce regions that will be read, so that cells are kept until then and no longer."""
        spans = grid.spans(regions_xywh)
        wide, high = (spans[:, [1, 3]] - spans[:, [0, 2]]).max(axis=0, initial=0) + 1
        for right in range(wide):
            for down in range(high):
                column, row = spans[:, 0] + right, spans[:, 2] + down
                inside = (column <= spans[:, 1]) & (row <= spans[:, 3])
                pairs = np.column_stack([column, row])[inside]
                found, counts = np.unique(pairs, axis=0, return_counts=True)
                for (c, r), n in zip(found.tolist(), counts.tolist(), strict=True):
                    key = (grid.level, c, r)
                    self._uses[key] = self._uses.get(key, 0) + n

    def region(
        self, grid: CellGrid, region_xywh: tuple[int, int, int, int]
    ) -> NDArray[np.uint8]:
        """Read a region of a level, once for each time it was planned.

        Returns:
            uint8 (h, w, 3); outside the slide the background colour.

        Raises:
            RegionError: A cell under it cannot be decoded.
        """
        x, y, w, h = region_xywh
        out = np.empty((h, w, 3), np.uint8)
        width, height = grid.size_wh
        if x < 0 or y < 0 or x + w > width or y + h > height:
            out[:] = self._slide.info.background_rgb
        first_c, last_c, first_r, last_r = grid.spans(np.array([region_xywh]))[
            0
        ].tolist()
        keys = [
            (grid.level, c, r)
            for r in range(first_r, last_r + 1)
            for c in range(first_c, last_c + 1)
        ]
        try:
            for key in keys:
                _paste(out, (x, y), self._get(grid, key), grid, key)
        finally:
            self._release(keys)
        return out

    def _get(self, grid: CellGrid, key: CellKey) -> NDArray[np.uint8]:
        with self._lock:
            cell = self._cells.get(key)
            mine = cell is None
            if cell is None:
                cell = self._cells[key] = Future()
                self.decoded += 1
            self._cells.move_to_end(key)
        if mine:
            try:
                pixels = self._decode(grid, key)
            except BaseException as error:
                cell.set_exception(error)
                raise
            cell.set_result(pixels)
            self._make_room(pixels.nbytes)
        return cell.result()

    def _decode(self, grid: CellGrid, key: CellKey) -> NDArray[np.uint8]:
        level, column, row = key
        if grid.tiled and isinstance(self._slide, TileSource):
            return self._slide.tile(level, column, row)
        (cell_w, cell_h), (width, height) = grid.cell_wh, grid.size_wh
        x, y = column * cell_w, row * cell_h
        size = min(cell_w, width - x), min(cell_h, height - y)
        return self._slide.read_level(level, (x, y), size)

    def _make_room(self, added: int) -> None:
        """Count new bytes; beyond the bound the cells not used for longest go."""
        with self._lock:
            self._bytes += added
            for key in list(self._cells):
                if self._bytes <= self._max_bytes:
                    break
                if self._cells[key].done():
                    self._drop(key)

    def _release(self, keys: list[CellKey]) -> None:
        with self._lock:
            for key in keys:
                left = self._uses.get(key, 1) - 1
                if left > 0:
                    self._uses[key] = left
                else:
                    self._uses.pop(key, None)
                    self._drop(key)

    def _drop(self, key: CellKey) -> None:
        cell = self._cells.pop(key, None)
        if cell is not None and cell.done() and cell.exception() is None:
            self._bytes -= cell.result().nbytes


def _paste(
    out: NDArray[np.uint8],
    corner_xy: tuple[int, int],
    pixels: NDArray[np.uint8],
    grid: CellGrid,
    key: CellKey,
) -> None:
    """Copy what a cell and a region share; a tile's padding beyond the level stays out."""
    (x, y), (cell_w, cell_h), (width, height) = corner_xy, grid.cell_wh, grid.size_wh
    left, top = key[1] * cell_w, key[2] * cell_h
    x1, y1 = max(x, left), max(y, top)
    x2 = min(x + out.shape[1], left + cell_w, width)
    y2 = min(y + out.shape[0], top + cell_h, height)
    if x1 < x2 and y1 < y2:
        part = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
        out[y1 - y : y2 - y, x1 - x : x2 - x] = part
