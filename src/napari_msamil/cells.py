"""Level pixels from cells that are decoded once: storage tiles, or blocks of them where only OpenSlide can read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.errors import RegionError
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
        origin_xy: Corner of cell (0, 0) in pixels of the level; cells of column or row -1 lie before it.
    """

    level: int
    size_wh: tuple[int, int]
    cell_wh: tuple[int, int]
    tiled: bool
    origin_xy: tuple[int, int] = (0, 0)

    def spans(self, regions_xywh: NDArray[np.int64]) -> NDArray[np.int64]:
        """First and last column, first and last row of the cells under regions: int64 (N, 4)."""
        x, y, w, h = regions_xywh.T
        pairs = []
        for start, length, side, cell, origin in zip(
            (x, y), (w, h), self.size_wh, self.cell_wh, self.origin_xy, strict=True
        ):
            least, most = -origin // cell, (side - 1 - origin) // cell
            pairs += [
                np.clip((start - origin) // cell, least, most),
                np.clip((start + length - 1 - origin) // cell, least, most),
            ]
        return np.column_stack(pairs)

    def keys(self, region_xywh: tuple[int, int, int, int]) -> list[CellKey]:
        """The cells under a region, row by row."""
        span = self.spans(np.array([region_xywh]))[0].tolist()
        first_column, last_column, first_row, last_row = span
        return [
            (self.level, column, row)
            for row in range(first_row, last_row + 1)
            for column in range(first_column, last_column + 1)
        ]

    def box(self, key: CellKey) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of a cell in pixels of the level, without what lies outside."""
        (cell_w, cell_h), (width, height) = self.cell_wh, self.size_wh
        left = self.origin_xy[0] + key[1] * cell_w
        top = self.origin_xy[1] + key[2] * cell_h
        right, bottom = min(left + cell_w, width), min(top + cell_h, height)
        return max(left, 0), max(top, 0), right, bottom


def cell_grid(
    slide: Slide, level: int, lattice: tuple[tuple[int, int], int] | None = None
) -> CellGrid | None:
    """How a level is cut, or None where cells would not give the same pixels as reading a region at once.

    OpenSlide takes positions in level-0 pixels and interpolates where these fall between pixels of the level, so
    what it gives depends on the corner asked for, unless the downsample is a whole number.

    Args:
        slide: The slide.
        level: The level.
        lattice: Corner and side in pixels of the level of the squares that will be read; blocks that follow it are
            read without a pixel too many. Storage tiles lie where they lie.
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
    if lattice is None or lattice[1] > 2 * BLOCK_PX:
        block = _block(tile_w), _block(tile_h)
        return CellGrid(level, size_wh, block, tiled=False)
    (x, y), side = lattice
    side *= max(1, round(BLOCK_PX / side))
    return CellGrid(level, size_wh, (side, side), False, (x % side, y % side))


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
        keys = grid.keys(region_xywh)
        try:
            for key in keys:
                _paste(out, (x, y), self._get(grid, key), grid, key)
        finally:
            self._release(keys)
        return out

    def claim(
        self, grid: CellGrid, region_xywh: tuple[int, int, int, int]
    ) -> list[CellKey]:
        """Cells under a region that nobody has or decodes; who claims them is to `fill` them."""
        with self._lock:
            keys = [key for key in grid.keys(region_xywh) if key not in self._cells]
            for key in keys:
                self._cells[key] = Future()
        return keys

    def fill(self, grid: CellGrid, key: CellKey) -> None:
        """Decode a claimed cell, unless a reader in need of it was faster; faults are told to readers."""
        with self._lock:
            cell = self._cells.get(key)
            mine = cell is not None and self._start(cell)
        if cell is not None and mine:
            self._finish(grid, key, cell)

    def _start(self, cell: Future[NDArray[np.uint8]]) -> bool:
        """Whether the caller, who holds the lock, is the one to decode a cell."""
        if cell.running() or cell.done():
            return False
        self.decoded += 1
        return cell.set_running_or_notify_cancel()

    def _finish(
        self, grid: CellGrid, key: CellKey, cell: Future[NDArray[np.uint8]]
    ) -> None:
        try:
            pixels = self._decode(grid, key)
            self._keep(key, cell, pixels)
        except RegionError as error:
            cell.set_exception(error)
        finally:
            if not cell.done():
                # Something unforeseen: other readers are to see for themselves.
                with self._lock:
                    self._cells.pop(key, None)
                cell.set_exception(CancelledError())

    def _keep(
        self, key: CellKey, cell: Future[NDArray[np.uint8]], pixels: NDArray[np.uint8]
    ) -> None:
        """Hand a cell to its readers; beyond the bound of memory the cells not used for longest go."""
        with self._lock:
            cell.set_result(pixels)
            if self._cells.get(key) is cell:
                self._bytes += pixels.nbytes
            for old in list(self._cells):
                if self._bytes <= self._max_bytes:
                    break
                if self._cells[old].done():
                    self._drop(old)

    def _get(self, grid: CellGrid, key: CellKey) -> NDArray[np.uint8]:
        while True:
            with self._lock:
                cell = self._cells.setdefault(key, Future())
                self._cells.move_to_end(key)
                mine = self._start(cell)
            if mine:
                self._finish(grid, key, cell)
            try:
                return cell.result()
            except CancelledError:
                continue

    def _decode(self, grid: CellGrid, key: CellKey) -> NDArray[np.uint8]:
        if grid.tiled and isinstance(self._slide, TileSource):
            return self._slide.tile(*key)
        left, top, right, bottom = grid.box(key)
        size = right - left, bottom - top
        return self._slide.read_level(grid.level, (left, top), size)

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
    x, y = corner_xy
    left, top, right, bottom = grid.box(key)
    x1, y1 = max(x, left), max(y, top)
    x2, y2 = min(x + out.shape[1], right), min(y + out.shape[0], bottom)
    if x1 < x2 and y1 < y2:
        part = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
        out[y1 - y : y2 - y, x1 - x : x2 - x] = part
