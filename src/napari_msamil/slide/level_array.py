"""What a viewer slices: each level as an array-like that is read in whole chunks when it is looked at.

No dask between the viewer and the slide: a graph per view costs more than decoding its chunks, dask imports
`distributed` where that is installed (a second before the first picture), and with a client in the process it would
send views to the cluster, where the open file is not. `slide.pyramid` wraps these levels for programs that want dask.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from operator import index
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from napari_msamil.slide.faults import read_for_display
from napari_msamil.slide.tile_archive import TILE_PX
from napari_msamil.slide.virtual import VirtualPyramid, needs_virtual_levels

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import EllipsisType

    from numpy.typing import DTypeLike, NDArray

    from napari_msamil.errors import RegionError
    from napari_msamil.slide.base import Slide

    ReadBox = Callable[[int, int, int, int], tuple[NDArray[np.uint8], bool]]
    Entry = int | slice | EllipsisType
    Span = tuple[int, int]

CHUNK_PX = 512
"""Aim of a chunk's side: 256–512 gave the shortest stalls in napari, 1024 and more the longest."""
CACHE_BYTES = 256 << 20
MAX_THREADS = 8
OVERVIEW_DELAY_S = 1.0
"""The overview of a slide without a pyramid is made after its first, coarse picture is painted, not beside it."""


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
    """One level as an array-like (H, W, 3), uint8, for integers and slices; chunks are read whole and kept.

    Args:
        number: Position in the pyramid shown, the key of its chunks.
        size_wh: Size of the level.
        chunk_hw: Size of a chunk.
        read: Reads x, y, width, height in its pixels; says whether the pixels are final and may be kept.
        cache: Chunks shared by all levels.
        pool: Threads that read the chunks of one view.

    Attributes:
        chunks: Regular chunk size per axis, as zarr says it; napari widens a view to whole chunks by it.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        number: int,
        size_wh: tuple[int, int],
        chunk_hw: tuple[int, int],
        read: ReadBox,
        cache: ChunkCache,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.shape = (size_wh[1], size_wh[0], 3)
        self.chunks = (*chunk_hw, 3)
        self._number = number
        self._read = read
        self._cache = cache
        self._pool = pool

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        whole = self._box((0, self.shape[0]), (0, self.shape[1]))
        return np.array(whole, dtype) if copy else np.asarray(whole, dtype)

    def __getitem__(self, key: Entry | tuple[Entry, ...]) -> NDArray[np.uint8]:
        row, column, channel = _entries(key, self.ndim)
        (rows, take_y), (columns, take_x) = (
            _cover(entry, length)
            for entry, length in zip((row, column), self.shape, strict=False)
        )
        return self._box(rows, columns)[take_y, take_x, channel]

    def _box(self, rows: Span, columns: Span) -> NDArray[np.uint8]:
        """Pixels of a box, read-only where they are one chunk's."""
        (top, bottom), (left, right) = rows, columns
        if bottom <= top or right <= left:
            return np.empty((max(bottom - top, 0), max(right - left, 0), 3), np.uint8)
        high, wide = self.chunks[:2]
        cells = [
            (row, column)
            for row in range(top // high, -(-bottom // high))
            for column in range(left // wide, -(-right // wide))
        ]
        if len(cells) == 1:
            (row, column), y, x = cells[0], top % high, left % wide
            chunk = self._chunk(row, column)
            return chunk[y : y + bottom - top, x : x + right - left]
        out = np.empty((bottom - top, right - left, 3), np.uint8)

        def place(cell: tuple[int, int]) -> None:
            y, x = cell[0] * high, cell[1] * wide
            chunk = self._chunk(*cell)
            y0, x0 = max(y, top), max(x, left)
            y1, x1 = min(y + chunk.shape[0], bottom), min(x + chunk.shape[1], right)
            out[y0 - top : y1 - top, x0 - left : x1 - left] = chunk[
                y0 - y : y1 - y, x0 - x : x1 - x
            ]

        for _ in self._pool.map(place, cells):
            pass
        return out

    def _chunk(self, row: int, column: int) -> NDArray[np.uint8]:
        """One whole chunk, read-only."""
        spot = (self._number, row, column)
        chunk = self._cache.get(spot)
        if chunk is None:
            y, x = row * self.chunks[0], column * self.chunks[1]
            size = (
                min(self.chunks[1], self.shape[1] - x),
                min(self.chunks[0], self.shape[0] - y),
            )
            chunk, is_final = self._read(x, y, *size)
            chunk.flags.writeable = False
            if is_final:
                self._cache.put(spot, chunk)
        return chunk


def _entries(key: Entry | tuple[Entry, ...], ndim: int) -> list[int | slice]:
    """One entry per axis."""
    given = list(key) if isinstance(key, tuple) else [key]
    at = next((i for i, entry in enumerate(given) if entry is Ellipsis), len(given))
    missing = ndim - sum(entry is not Ellipsis for entry in given)
    if missing < 0:
        raise IndexError(f"{len(given)} indices for {ndim} axes")
    entries = [*given[:at], *[slice(None)] * missing, *given[at + 1 :]]
    return [
        entry if isinstance(entry, slice) else index(cast("int", entry))
        for entry in entries
    ]


def _cover(entry: int | slice, length: int) -> tuple[Span, int | slice]:
    """The span of an axis that an entry covers, and what to take of that span to have what numpy gives."""
    if not isinstance(entry, slice):
        spot = range(length)[entry]
        return (spot, spot + 1), 0
    wanted = range(length)[entry]
    if not wanted:
        return (0, 0), slice(None)
    low, high = sorted((wanted[0], wanted[-1]))
    return (low, high + 1), slice(None, None, wanted.step)


def chunk_size(tile_size_wh: tuple[int, int]) -> tuple[int, int]:
    """Chunk (height, width) near `CHUNK_PX`: a whole number of storage tiles, or `CHUNK_PX` where tiles are strips."""
    width, height = tile_size_wh
    if min(width, height) < 32 or max(width, height) > 2 * CHUNK_PX:
        return CHUNK_PX, CHUNK_PX
    return height * max(1, CHUNK_PX // height), width * max(1, CHUNK_PX // width)


def view_levels(
    slide: Slide,
    *,
    on_fault: Callable[[RegionError], None] | None = None,
    cache_bytes: int = CACHE_BYTES,
    virtual: VirtualPyramid | None = None,
) -> list[LevelArray]:
    """The slide as a list of array-likes (H, W, 3), finest first, for napari's `multiscale=True, rgb=True`.

    A slide whose coarsest level is large gets virtual levels below it. Without `virtual` they are built by a
    background thread that starts here and ends when the slide is closed.

    Args:
        slide: An open slide; it must stay open as long as the arrays are used.
        on_fault: Told of every part that cannot be decoded; such parts are striped, never white.
        cache_bytes: Bound on decoded chunks held for all levels together.
        virtual: What `start_virtual_levels` gave, for callers that follow its progress.
    """
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
        count = len(virtual.level_sizes_wh)
        reads += [partial(virtual.read, level + 1) for level in range(count)]
        sizes += virtual.level_sizes_wh
        chunks += [(TILE_PX, TILE_PX)] * count
    cache = ChunkCache(cache_bytes)
    pool = ThreadPoolExecutor(min(os.cpu_count() or 2, MAX_THREADS), "slide-view")
    return [
        LevelArray(number, size, chunk, read, cache, pool)
        for number, (size, chunk, read) in enumerate(
            zip(sizes, chunks, reads, strict=True)
        )
    ]


def start_virtual_levels(slide: Slide) -> VirtualPyramid | None:
    """Virtual levels of a slide that needs them, being built in the background; None for most slides."""
    if not needs_virtual_levels(slide.info):
        return None
    virtual = VirtualPyramid(slide)
    virtual.start(OVERVIEW_DELAY_S)
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
