"""A coarse picture of a slide without a pyramid, from a bounded number of reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.errors import RegionError, SlideError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from napari_msamil.slide.base import Slide

MAX_READS = 192
"""Reads of one block each: 192 of 256² decode in about 0.2 s."""
LARGEST_BLOCK_PX = 1024


def coarse_picture(
    slide: Slide, size_wh: tuple[int, int], max_reads: int = MAX_READS
) -> NDArray[np.uint8]:
    """The coarsest stored level squeezed to `size_wh`, from samples spread over it; uint8 (H, W, 3).

    A `thumbnail` stored in the file is taken where it shows the same field. Otherwise blocks are read on grids that
    get finer and finer; what was not read takes the mean colour of the nearest block before it.

    Args:
        slide: The slide.
        size_wh: Size of the picture.
        max_reads: Bound on the number of blocks read.
    """
    stored = _stored_thumbnail(slide)
    if stored is not None:
        return np.asarray(stored.resize(size_wh, Image.Resampling.BILINEAR)).copy()
    info = slide.info
    level = info.level_count - 1
    width, height = info.level_sizes_wh[level]
    block_w, block_h = _block_size(info.level_tile_sizes_wh[level])
    columns, rows = -(-width // block_w), -(-height // block_h)
    out = np.empty((size_wh[1], size_wh[0], 3), np.uint8)
    out[:] = info.background_rgb
    for reads, (column, row, span) in enumerate(_coarse_to_fine(columns, rows)):
        if reads >= max_reads:
            break
        x, y = column * block_w, row * block_h
        try:
            block = slide.read_level(
                level, (x, y), (min(block_w, width - x), min(block_h, height - y))
            )
        except RegionError:
            continue
        _paint(out, (x, y, span * block_w, span * block_h), (width, height), block)
    return out


def _stored_thumbnail(slide: Slide) -> Image.Image | None:
    if "thumbnail" not in slide.info.associated_images:
        return None
    try:
        pixels = slide.associated_image("thumbnail")
    except SlideError:
        return None
    width, height = slide.info.size_wh0
    if abs(pixels.shape[1] / pixels.shape[0] / (width / height) - 1) > 0.02:
        return None
    return Image.fromarray(pixels)


def _block_size(tile_size_wh: tuple[int, int]) -> tuple[int, int]:
    width, height = tile_size_wh
    if min(width, height) < 64 or max(width, height) > LARGEST_BLOCK_PX:
        return 512, 512
    return width, height


def _coarse_to_fine(columns: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """Cells of a grid with the span each stands for, in passes that halve the span."""
    span = 1
    while span * 2 < max(columns, rows):
        span *= 2
    first = True
    while span >= 1:
        for row in range(0, rows, span):
            for column in range(0, columns, span):
                if first or row % (2 * span) or column % (2 * span):
                    yield column, row, span
        first, span = False, span // 2


def _paint(
    out: NDArray[np.uint8],
    box_xywh: tuple[int, int, int, int],
    level_size_wh: tuple[int, int],
    block: NDArray[np.uint8],
) -> None:
    """Fill the field a block stands for with its mean, and its own place with its pixels."""
    scale_x, scale_y = out.shape[1] / level_size_wh[0], out.shape[0] / level_size_wh[1]
    x, y, w, h = box_xywh
    left, top = int(x * scale_x), int(y * scale_y)
    right, bottom = int(np.ceil((x + w) * scale_x)), int(np.ceil((y + h) * scale_y))
    own_w = max(1, round(block.shape[1] * scale_x))
    own_h = max(1, round(block.shape[0] * scale_y))
    small = np.asarray(
        Image.fromarray(block).resize((own_w, own_h), Image.Resampling.BOX)
    )
    # The mean of the block's small picture is the block's mean, many times faster.
    out[top:bottom, left:right] = small.mean(axis=(0, 1)).astype(np.uint8)
    own = out[top : top + own_h, left : left + own_w]
    own[:] = small[: own.shape[0], : own.shape[1]]
