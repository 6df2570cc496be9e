"""Pixels of patches: `read_patch` says what they are, `read_patches` reads many of them in threads."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.config import ReadLevel, Resampler
from napari_msamil.errors import RegionError
from napari_msamil.slide.levels import level_box, level_for_downsample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from napari_msamil.patches import PatchGrid
    from napari_msamil.slide.base import Slide, SlideInfo

_FILTERS = {
    Resampler.AREA: Image.Resampling.BOX,
    Resampler.BILINEAR: Image.Resampling.BILINEAR,
    Resampler.LANCZOS: Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, eq=False)
class PatchBatch:
    """Some patches of a grid, all of one scale.

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
        self, region: NDArray[np.uint8], box: tuple[float, float, float, float]
    ) -> NDArray[np.uint8]:
        """Make the patch, uint8 (size_px, size_px, 3), of the level region that covers it."""
        size = (self.size_px, self.size_px)
        if region.shape[:2] == size and box == (
            0.0,
            0.0,
            float(size[0]),
            float(size[1]),
        ):
            return region
        return np.asarray(Image.fromarray(region).resize(size, self.filter, box))


def patch_source(info: SlideInfo, grid: PatchGrid, scale: int) -> PatchSource:
    """The level, and the filter, that patches of one scale are made with."""
    spec = grid.spec
    size_px, size_px0 = spec.scales[scale].size_px, grid.size_px0[scale]
    level = 0
    if spec.read_level is ReadLevel.NEAREST:
        level = level_for_downsample(info, size_px0 / size_px).level
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


def coarse_first(grid: PatchGrid) -> NDArray[np.int64]:
    """Reading order for streaming: the coarsest scale first, each scale in grid order."""
    return np.argsort(-grid.scale.astype(np.int64), kind="stable")


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
        order: Positions in the grid to read, in this order; None reads all, the coarsest scale first.
        batch_size: Patches per batch at most; a batch never mixes scales.
        threads: Reading threads; None takes the number of processors, at most 8.
        on_fault: Called with position and error for a patch that cannot be read; it is left out of its
            batch and never painted over. None raises the error.

    Yields:
        Batches in the order asked for.

    Raises:
        RegionError: A patch cannot be read and there is no `on_fault`.
    """
    wanted = coarse_first(grid) if order is None else np.asarray(order, np.int64)
    workers = threads or min(8, os.cpu_count() or 1)
    waiting: deque[tuple[NDArray[np.int64], list[Future[NDArray[np.uint8]]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="msamil-read")
    try:
        for index in _batches(grid, wanted, batch_size):
            jobs = [pool.submit(read_patch, slide, grid, int(i)) for i in index]
            waiting.append((index, jobs))
            if len(waiting) > 1 + 2 * workers // batch_size:
                yield from _collect(*waiting.popleft(), on_fault)
        while waiting:
            yield from _collect(*waiting.popleft(), on_fault)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(
    grid: PatchGrid, order: NDArray[np.int64], batch_size: int
) -> Iterator[NDArray[np.int64]]:
    """Cut an order into batches of one scale each."""
    scale = grid.scale[order]
    for run in np.split(order, np.flatnonzero(np.diff(scale)) + 1):
        for start in range(0, len(run), batch_size):
            yield run[start : start + batch_size]


def _collect(
    index: NDArray[np.int64],
    jobs: list[Future[NDArray[np.uint8]]],
    on_fault: Callable[[int, RegionError], None] | None,
) -> Iterator[PatchBatch]:
    """Wait for one batch; leave out, and report, what cannot be read."""
    found: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    for i, job in zip(index.tolist(), jobs, strict=True):
        try:
            pixels.append(job.result())
        except RegionError as error:
            if on_fault is None:
                raise
            on_fault(i, error)
        else:
            found.append(i)
    if found:
        yield PatchBatch(np.array(found, np.int64), np.stack(pixels))
