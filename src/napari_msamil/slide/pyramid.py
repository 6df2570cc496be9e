"""The lazy pyramid a viewer shows: one dask array per level, read when looked at."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

from napari_msamil.slide.faults import read_for_display
from napari_msamil.slide.tile_archive import TILE_PX
from napari_msamil.slide.virtual import VirtualPyramid, needs_virtual_levels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_msamil.errors import RegionError
    from napari_msamil.slide.base import Slide

    ReadBox = Callable[[int, int, int, int], tuple[NDArray[np.uint8], bool]]

CHUNK_PX = 512
"""Aim of a chunk's side: 256–512 gave the shortest stalls in napari, 1024 and more the longest."""
CACHE_BYTES = 256 << 20


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
    """One level as an array-like (H, W, 3) that dask slices; every slice is one read.

    Args:
        number: Position in the pyramid shown, the key of its chunks.
        size_wh: Size of the level.
        read: Reads x, y, width, height in its pixels; says whether the pixels are final and may be kept.
        cache: Chunks shared by all levels.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(
        self, number: int, size_wh: tuple[int, int], read: ReadBox, cache: ChunkCache
    ) -> None:
        self.shape = (size_wh[1], size_wh[0], 3)
        self._number = number
        self._read = read
        self._cache = cache

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        rows, columns, channels = key
        top, bottom, row_step = rows.indices(self.shape[0])
        left, right, column_step = columns.indices(self.shape[1])
        spot = (self._number, left, top, right, bottom)
        chunk = self._cache.get(spot)
        if chunk is None:
            if bottom <= top or right <= left:
                return np.empty(
                    (max(bottom - top, 0), max(right - left, 0), 3), np.uint8
                )
            chunk, is_final = self._read(left, top, right - left, bottom - top)
            chunk.flags.writeable = False
            if is_final:
                self._cache.put(spot, chunk)
        return chunk[::row_step, ::column_step, channels]


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
    virtual: VirtualPyramid | None = None,
) -> list[da.Array]:
    """The slide as a list of dask arrays (H, W, 3), finest first, for napari's `multiscale=True, rgb=True`.

    A slide whose coarsest level is large gets virtual levels below it. Without `virtual` they are built by a
    background thread that starts here and ends when the slide is closed. Show such layers with `cache=False`
    (the arrays have a bounded cache of their own), so that tiles which were a preview are read again.

    Args:
        slide: An open slide; it must stay open as long as the arrays are used.
        on_fault: Told of every part that cannot be decoded; such parts are striped, never white.
        cache_bytes: Bound on decoded chunks held for all levels together.
        virtual: What `start_virtual_levels` gave, for callers that follow its progress.
    """
    cache = ChunkCache(cache_bytes)
    info = slide.info
    reads: list[ReadBox] = [
        partial(_read_stored, slide, level, on_fault)
        for level in range(info.level_count)
    ]
    sizes = list(info.level_sizes_wh)
    chunks = [chunk_size(tile) for tile in info.level_tile_sizes_wh]
    if virtual is None:
        virtual = start_virtual_levels(slide)
    if virtual is not None:
        reads += [
            partial(virtual.read, level + 1)
            for level in range(len(virtual.level_sizes_wh))
        ]
        sizes += virtual.level_sizes_wh
        chunks += [(TILE_PX, TILE_PX)] * len(virtual.level_sizes_wh)
    return [
        da.from_array(  # type: ignore[no-untyped-call]
            LevelArray(number, sizes[number], read, cache),
            chunks=(*chunks[number], 3),
            name=f"{info.name}-level{number}-{id(cache):x}",
            asarray=False,
            fancy=False,
            meta=np.empty((0, 0, 0), np.uint8),
        )
        for number, read in enumerate(reads)
    ]


def start_virtual_levels(slide: Slide) -> VirtualPyramid | None:
    """Virtual levels of a slide that needs them, being built in the background; None for most slides."""
    if not needs_virtual_levels(slide.info):
        return None
    virtual = VirtualPyramid(slide)
    virtual.start()
    return virtual


def _read_stored(
    slide: Slide,
    level: int,
    on_fault: Callable[[RegionError], None] | None,
    x: int,
    y: int,
    w: int,
    h: int,
) -> tuple[NDArray[np.uint8], bool]:
    return read_for_display(slide, level, (x, y), (w, h), on_fault), True
