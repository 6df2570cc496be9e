"""All halved levels of a slide in one pass over it, tile by tile, with bounded memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.slide.faults import read_for_display
from napari_msamil.slide.tile_archive import TILE_PX
from napari_msamil.slide.write import halve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from napari_msamil.slide.base import Slide

    PutTile = Callable[[int, int, int, NDArray[np.uint8]], None]

BAND_PX = 2 * TILE_PX
"""Rows of the slide read at a time: they make one row of tiles of the first virtual level."""


def halved_sizes(
    size_wh: tuple[int, int], stop_px: int = TILE_PX
) -> list[tuple[int, int]]:
    """Sizes of the halves of an image, partial pixels counted, until the longer side is at most `stop_px`."""
    sizes = []
    width, height = size_wh
    while max(width, height) > stop_px:
        width, height = -(-width // 2), -(-height // 2)
        sizes.append((width, height))
    return sizes


def reading_threads() -> int:
    """Threads for background reading: all cores but one, which is the viewer's, and at most 4."""
    return max(1, min(4, (os.cpu_count() or 2) - 1))


class LevelStream:
    """Streams the coarsest stored level of a slide into tiles of all its halves.

    Level 1 is half of it. Tiles of level 1 are made from blocks of 1024²; each coarser level keeps one row of tiles in
    memory until it is full: 512 · W · 3 bytes in all for a base of width W.

    Args:
        slide: The slide.
        put: Stores a tile: level, column, row, pixels. Called from several threads.
    """

    def __init__(self, slide: Slide, put: PutTile) -> None:
        self._slide = slide
        self._put = put
        self._base = slide.info.level_count - 1
        self._base_wh = slide.info.level_sizes_wh[self._base]
        self._sizes = halved_sizes(self._base_wh)
        self._held: list[list[NDArray[np.uint8]]] = [[] for _ in self._sizes]
        self._rows_done = [0] * len(self._sizes)

    @property
    def band_count(self) -> int:
        """Bands in all."""
        return -(-self._base_wh[1] // BAND_PX)

    def bands(self) -> Iterator[int]:
        """Do the work; yields the number of bands finished after each."""
        columns = range(-(-self._base_wh[0] // BAND_PX))
        with ThreadPoolExecutor(reading_threads(), "virtual-pyramid") as pool:
            for row in range(self.band_count):
                quarters = list(
                    pool.map(
                        lambda column, row=row: self._first_level(column, row), columns
                    )
                )
                if len(self._sizes) > 1:
                    self._push(1, np.concatenate(quarters, axis=1))
                yield row + 1
        for index in range(1, len(self._sizes)):
            self._flush(index)

    def _first_level(self, column: int, row: int) -> NDArray[np.uint8]:
        """One tile of level 1, stored; returns its half for level 2."""
        x, y = column * BAND_PX, row * BAND_PX
        size = (min(BAND_PX, self._base_wh[0] - x), min(BAND_PX, self._base_wh[1] - y))
        tile = halve(read_for_display(self._slide, self._base, (x, y), size))
        self._put(1, column, row, tile)
        return halve(tile)

    def _push(self, index: int, rows: NDArray[np.uint8]) -> None:
        """Rows of level `index + 1`, in order from the top."""
        self._held[index].append(rows)
        if sum(len(part) for part in self._held[index]) >= TILE_PX:
            self._flush(index)

    def _flush(self, index: int) -> None:
        if not self._held[index]:
            return
        band = np.concatenate(self._held[index])
        self._held[index] = []
        row = self._rows_done[index]
        self._rows_done[index] += 1
        for column in range(-(-band.shape[1] // TILE_PX)):
            tile = band[:, column * TILE_PX : (column + 1) * TILE_PX]
            self._put(index + 1, column, row, np.ascontiguousarray(tile))
        if index + 1 < len(self._sizes):
            self._push(index + 1, halve(band))
