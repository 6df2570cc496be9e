"""Pixels of patches: `read_patch` says what they are, `read_patches` reads many of them in threads."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.cells import Cells, cell_grid
from napari_msamil.config import ReadLevel, Resampler
from napari_msamil.errors import RegionError
from napari_msamil.resample import fast_resize, pillow_resize
from napari_msamil.slide.levels import (
    MAX_UPSAMPLING,
    level_box,
    level_for_downsample,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray

    from napari_msamil.cells import CellGrid, CellKey
    from napari_msamil.patches import PatchGrid
    from napari_msamil.resample import Resize
    from napari_msamil.slide.base import Slide, SlideInfo

_FILTERS = {
    Resampler.AREA: Image.Resampling.BOX,
    Resampler.BILINEAR: Image.Resampling.BILINEAR,
    Resampler.LANCZOS: Image.Resampling.LANCZOS,
}
LEAD = 8
"""Patches by which decoding runs ahead of cutting, so that no thread waits for a cell that another one decodes …"""
LEAD_BYTES = 48 << 20
"""… and how many bytes of regions that may be."""


@dataclass(frozen=True, eq=False)
class PatchBatch:
    """Some patches of a grid, all of one size in pixels.

    Attributes:
        index: int64 (B,), positions in the grid.
        pixels: uint8 (B, H, W, 3).
    """

    index: NDArray[np.int64]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class PatchSource:
    """Where the pixels of one scale come from.

    Attributes:
        level: Pyramid level that is read.
        downsample: True downsample of that level.
        size_px0: Side of a patch in level-0 pixels.
        size_px: Side of the finished patch.
        filter: Pillow's filter between the two.
    """

    level: int
    downsample: float
    size_px0: int
    size_px: int
    filter: Image.Resampling

    def region(
        self, xy0: NDArray[np.int64]
    ) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float]]:
        """The level region (x, y, w, h) that covers the patch at `xy0`, and the patch's box inside it."""
        x, y = xy0.tolist()
        return level_box((x, y, self.size_px0, self.size_px0), self.downsample)

    def resample(
        self,
        region: NDArray[np.uint8],
        box: tuple[float, float, float, float],
        resize: Resize = pillow_resize,
    ) -> NDArray[np.uint8]:
        """Make the patch, uint8 (size_px, size_px, 3), of the level region that covers it."""
        size = (self.size_px, self.size_px)
        whole = (0.0, 0.0, float(self.size_px), float(self.size_px))
        if region.shape[:2] == size and box == whole:
            return region
        return resize(region, self.size_px, self.filter, box)


def patch_source(info: SlideInfo, grid: PatchGrid, scale: int) -> PatchSource:
    """The level, and the filter, that patches of one scale are made with.

    The level with the nearest downsample is taken, unless its pixels would have to be enlarged by more than
    `MAX_UPSAMPLING`: a 10x patch of a slide of 0.499 µm with levels 1 and 4 comes from level 0, as at 0.5 µm.
    """
    spec = grid.spec
    size_px, size_px0 = spec.scales[scale].size_px, grid.size_px0[scale]
    level, wanted = 0, size_px0 / size_px
    if spec.read_level is ReadLevel.NEAREST:
        level = level_for_downsample(info, wanted).level
        while level > 0 and info.level_downsamples[level] > wanted * MAX_UPSAMPLING:
            level -= 1
    return PatchSource(
        level,
        info.level_downsamples[level],
        size_px0,
        size_px,
        _FILTERS[spec.resampler],
    )


def read_patch(slide: Slide, grid: PatchGrid, index: int) -> NDArray[np.uint8]:
    """Read one patch: the definition that everything faster must equal bit for bit.

    The integer-aligned region of the level that covers the patch is read, and Pillow's filter with the exact
    fractional box makes the patch of it.

    Args:
        slide: The open slide.
        grid: The patches.
        index: Position in the grid.

    Returns:
        uint8 (H, W, 3), H = W = `size_px` of the patch's scale.

    Raises:
        RegionError: The region cannot be decoded.
    """
    source = patch_source(slide.info, grid, int(grid.scale[index]))
    region, inner = source.region(grid.coords_xy0[index])
    pixels = slide.read_level(source.level, region[:2], region[2:])
    return source.resample(pixels, inner)


def reading_order(info: SlideInfo, grid: PatchGrid) -> NDArray[np.int64]:
    """Every position of a grid, so that pixels are decoded once and coarse patches come early.

    Levels from coarse to fine; inside a level block by block of the largest patch that is read from it, and inside
    a block the coarse scale before the fine one. Scales that are read from one level so share its tiles.
    """
    sources = [patch_source(info, grid, k) for k in range(len(grid.spec.scales))]
    level = np.array([s.level for s in sources])
    block = np.array(
        [max(s.size_px0 for s in sources if s.level == one) for one in level]
    )
    x, y = grid.coords_xy0.T
    side = block[grid.scale]
    keys = (x, y, -grid.scale.astype(np.int64), x // side, y // side)
    return np.lexsort((*keys, -level[grid.scale])).astype(np.int64)


class PatchReader:
    """Reads patches in threads, a bounded number ahead; each cell of the slide under them is decoded once.

    Iterating gives batches. Memory depends on the batch and on `cells.MAX_BYTES`, not on slide or grid.

    Attributes:
        cells: The decoded cells.
        read_s: Seconds that threads read and decoded, all together.
        prepare_s: Seconds that threads cut and resampled, all together.
        threads: How many there are.
    """

    def __init__(
        self,
        slide: Slide,
        grid: PatchGrid,
        *,
        order: NDArray[np.int64] | None = None,
        batch_size: int = 8,
        threads: int | None = None,
        on_fault: Callable[[int, RegionError], None] | None = None,
    ) -> None:
        self.cells = Cells(slide)
        self.read_s = 0.0
        self.prepare_s = 0.0
        self.threads = threads or min(8, os.cpu_count() or 1)
        self._slide = slide
        self._grid = grid
        self._order = reading_order(slide.info, grid) if order is None else order
        self._batch_size = batch_size
        self._on_fault = on_fault
        self._sources = [
            patch_source(slide.info, grid, k) for k in range(len(grid.spec.scales))
        ]
        self._cell_grids: dict[int, CellGrid | None] = {}
        self._lead = LEAD
        self._resize = fast_resize() or pillow_resize
        self._clock = threading.Lock()

    @property
    def busy_s(self) -> float:
        """Seconds that reading threads worked, all together."""
        return self.read_s + self.prepare_s

    def __iter__(self) -> Generator[PatchBatch]:
        """Batches of patches of one size in pixels; closing the iterator stops the threads."""
        self._plan()
        ahead = 2 * (self._batch_size + self.threads)
        ready: dict[int, list[tuple[int, NDArray[np.uint8]]]] = {}
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="msamil-read")
        try:
            jobs = self._jobs(pool)
            waiting = deque(islice(jobs, ahead))
            while waiting:
                done, job = waiting.popleft()
                pixels = self._result(done, job)
                waiting.extend(islice(jobs, 1))
                if pixels is None:
                    continue
                same = ready.setdefault(len(pixels), [])
                same.append((done, pixels))
                if len(same) == self._batch_size:
                    yield _batch(ready.pop(len(pixels)))
            for same in ready.values():
                yield _batch(same)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _plan(self) -> None:
        """Cut the levels into cells, and announce every region that will be read from them."""
        regions: dict[int, list[tuple[int, int, int, int]]] = {}
        for index in self._order.tolist():
            regions.setdefault(self._source(index).level, []).append(
                self._region(index)
            )
        for level, found in regions.items():
            array = np.array(found, np.int64)
            largest = 3 * int(array[:, 2:].prod(axis=1).max())
            self._lead = max(1, min(self._lead, LEAD_BYTES // largest))
            cells = self._cut(level, array)
            self._cell_grids[level] = cells
            if cells is not None:
                self.cells.plan(cells, array)

    def _cut(self, level: int, regions: NDArray[np.int64]) -> CellGrid | None:
        """Cells of a level: its tiles, or blocks that follow the patches; None where patches share no pixels."""
        sides = regions[:, 2]
        smallest = int(sides.min())
        squares = (regions[:, 2] == regions[:, 3]).all()
        if not squares or (sides % smallest).any():  # they lie between pixels
            scales = sum(source.level == level for source in self._sources)
            shared = scales > 1 or self._grid.spec.stride < 1
            cells = cell_grid(self._slide, level)
            return cells if cells is None or cells.tiled or shared else None
        x, y = regions[sides == sides.max()][:, :2].min(axis=0).tolist()
        return cell_grid(self._slide, level, ((x, y), smallest))

    def _jobs(
        self, pool: ThreadPoolExecutor
    ) -> Generator[tuple[int, Future[NDArray[np.uint8]]]]:
        """Patches at work; the cells of each are under way before those of `LEAD` patches earlier are cut."""
        coming: deque[int] = deque()
        for index in self._order.tolist():
            self._fetch(pool, index)
            coming.append(index)
            if len(coming) > self._lead:
                first = coming.popleft()
                yield first, pool.submit(self._read, first)
        for first in coming:
            yield first, pool.submit(self._read, first)

    def _fetch(self, pool: ThreadPoolExecutor, index: int) -> None:
        """Have the cells under a patch decoded that nobody else decodes."""
        cells = self._cell_grids[self._source(index).level]
        if cells is not None:
            keys = self.cells.claim(cells, self._region(index))
            if keys:
                pool.submit(self._decode, cells, keys)

    def _decode(self, cells: CellGrid, keys: list[CellKey]) -> None:
        start = time.thread_time()
        for key in keys:
            self.cells.fill(cells, key)
        with self._clock:
            self.read_s += time.thread_time() - start

    def _read(self, index: int) -> NDArray[np.uint8]:
        """One patch."""
        start = time.thread_time()
        source = self._source(index)
        region, inner = source.region(self._grid.coords_xy0[index])
        cells = self._cell_grids[source.level]
        if cells is None:
            pixels = self._slide.read_level(source.level, region[:2], region[2:])
        else:
            pixels = self.cells.region(cells, region)
        read = time.thread_time()
        patch = source.resample(pixels, inner, self._resize)
        with self._clock:
            if cells is None:
                self.read_s += read - start
                start = read
            self.prepare_s += time.thread_time() - start
        return patch

    def _source(self, index: int) -> PatchSource:
        return self._sources[int(self._grid.scale[index])]

    def _region(self, index: int) -> tuple[int, int, int, int]:
        return self._source(index).region(self._grid.coords_xy0[index])[0]

    def _result(
        self, index: int, job: Future[NDArray[np.uint8]]
    ) -> NDArray[np.uint8] | None:
        """The patch, or None where it cannot be read and somebody wants to hear of it."""
        try:
            return job.result()
        except RegionError as error:
            if self._on_fault is None:
                raise
            self._on_fault(index, error)
            return None


def _batch(patches: list[tuple[int, NDArray[np.uint8]]]) -> PatchBatch:
    index = np.array([i for i, _ in patches], np.int64)
    return PatchBatch(index, np.stack([pixels for _, pixels in patches]))


def read_patches(
    slide: Slide,
    grid: PatchGrid,
    *,
    order: NDArray[np.int64] | None = None,
    batch_size: int = 8,
    threads: int | None = None,
    on_fault: Callable[[int, RegionError], None] | None = None,
) -> Iterator[PatchBatch]:
    """Read patches in threads, a bounded number ahead of the caller.

    Args:
        slide: The open slide.
        grid: The patches.
        order: Positions in the grid to read, in this order; None reads all in `reading_order`. Any order is served,
            but only one that goes through the slide region by region decodes each tile once.
        batch_size: Patches per batch at most; a batch never mixes sizes in pixels.
        threads: Reading threads; None takes the number of processors, at most 8.
        on_fault: Called with position and error for a patch that cannot be read; it is left out of its
            batch and never painted over. None raises the error.

    Yields:
        Batches in the order asked for.

    Raises:
        RegionError: A patch cannot be read and there is no `on_fault`.
    """
    yield from PatchReader(
        slide,
        grid,
        order=order,
        batch_size=batch_size,
        threads=threads,
        on_fault=on_fault,
    )
