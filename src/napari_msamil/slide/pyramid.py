"""The lazy pyramid a viewer shows: one dask array per level, read when looked at."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

from napari_msamil.errors import RegionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_msamil.slide.base import Slide

CHUNK_PX = 512
"""Aim of a chunk's side: 256–512 gave the shortest stalls in napari, 1024 and more the longest."""
CACHE_BYTES = 256 << 20
FAULT_RGB = (255, 0, 255)
"""Stripes over an unreadable chunk: a colour no stain has, so that it cannot be taken for glass."""


class ChunkCache:
    """The most recently read chunks, bounded by bytes; safe for threads.

    Args:
        max_bytes: Bound on the pixels held.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._chunks: OrderedDict[tuple[int, ...], NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()
        self.held_bytes = 0

    def get(self, key: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """The chunk of this key, or None."""
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._chunks.move_to_end(key)
            return chunk

    def put(self, key: tuple[int, ...], chunk: NDArray[np.uint8]) -> None:
        """Keep a chunk and drop the oldest ones beyond the bound."""
        with self._lock:
            if key in self._chunks or chunk.nbytes > self._max_bytes:
                return
            self._chunks[key] = chunk
            self.held_bytes += chunk.nbytes
            while self.held_bytes > self._max_bytes:
                _, old = self._chunks.popitem(last=False)
                self.held_bytes -= old.nbytes


class LevelArray:
    """One level as an array-like that dask slices; every slice is one read.

    Args:
        slide: The slide; it stays open as long as the array is used.
        level: Pyramid level.
        cache: Chunks shared by all levels.
        on_fault: Told of every unreadable chunk, which is shown striped.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        slide: Slide,
        level: int,
        cache: ChunkCache,
        on_fault: Callable[[RegionError], None] | None = None,
    ) -> None:
        width, height = slide.info.level_sizes_wh[level]
        self.shape = (height, width, 3)
        self._slide = slide
        self._level = level
        self._cache = cache
        self._on_fault = on_fault

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        rows, columns, channels = key
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        spot = (self._level, left, top, right, bottom)
        chunk = self._cache.get(spot)
        if chunk is None:
            chunk = self._read(left, top, right - left, bottom - top)
            self._cache.put(spot, chunk)
        return chunk[:, :, channels]

    def _read(self, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        try:
            return self._slide.read_level(self._level, (x, y), (w, h))
        except RegionError as error:
            if self._on_fault is not None:
                self._on_fault(error)
            return striped(w, h)


def striped(width: int, height: int) -> NDArray[np.uint8]:
    """Diagonal stripes that mark unreadable pixels, uint8 (height, width, 3)."""
    rows, columns = np.ogrid[:height, :width]
    out = np.full((height, width, 3), 128, np.uint8)
    out[(rows + columns) // 16 % 2 == 0] = FAULT_RGB
    return out


def chunk_size(tile_size_wh: tuple[int, int]) -> tuple[int, int]:
    """Chunk (height, width) near `CHUNK_PX`: a whole number of storage tiles, or `CHUNK_PX` where tiles are strips."""
    width, height = tile_size_wh
    if min(width, height) < 32 or max(width, height) > 2 * CHUNK_PX:
        return CHUNK_PX, CHUNK_PX
    return height * max(1, CHUNK_PX // height), width * max(1, CHUNK_PX // width)


def lazy_pyramid(
    slide: Slide,
    *,
    on_fault: Callable[[RegionError], None] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> list[da.Array]:
    """The slide as a list of dask arrays (H, W, 3), finest first, for napari's `multiscale=True, rgb=True`.

    Args:
        slide: An open slide; it must stay open as long as the arrays are used.
        on_fault: Told of every chunk that cannot be decoded; such chunks are striped, never white.
        cache_bytes: Bound on decoded chunks held for all levels together.
    """
    cache = ChunkCache(cache_bytes)
    info = slide.info
    return [
        da.from_array(  # type: ignore[no-untyped-call]
            LevelArray(slide, level, cache, on_fault),
            chunks=(*chunk_size(info.level_tile_sizes_wh[level]), 3),
            name=f"{info.name}-level{level}-{id(cache):x}",
            asarray=False,
            fancy=False,
            meta=np.empty((0, 0, 0), np.uint8),
        )
        for level in range(info.level_count)
    ]
