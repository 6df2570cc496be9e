"""A whole level squeezed by a whole factor, in bounded memory, over parts that cannot be read."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.errors import RegionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Box = tuple[int, int, int, int]
    ReadBox = Callable[[Box], NDArray[np.uint8]]

BLOCK_PX = 2048
"""Aim of the side of a block decoded at a time when a whole level is squeezed: 12 MB."""
PART_PX = 64
"""Aim of the side of the parts in which a block is read once more, where something of it cannot be decoded. Parts follow
the factor, not the tiles: small ones lose little around a tile."""
MAX_THREADS = 4


def reduced_level(
    read: ReadBox, size_wh: tuple[int, int], tile_wh: tuple[int, int], factor: int
) -> NDArray[np.uint8]:
    """A level as means of `factor` × `factor` pixels, block by block in threads.

    What cannot be decoded takes the nearest colour that could be: damaged tissue stays tissue for a mask, so that its
    patches are tried, skipped, counted and reported, and no hole looks like glass.

    Args:
        read: Reads a box (x, y, width, height) of the level.
        size_wh: Size of the level.
        tile_wh: Its storage tiles; blocks follow them where that is possible.
        factor: How many pixels become one along each side.

    Returns:
        uint8 (⌈H / factor⌉, ⌈W / factor⌉, 3).

    Raises:
        RegionError: Nothing of the level can be decoded.
    """
    width, height = size_wh
    out = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    missing = np.zeros(out.shape[:2], bool)
    faults: list[RegionError] = []

    def reduce(box: Box) -> None:
        pixels = read(box)
        if factor > 1:
            pixels = np.asarray(Image.fromarray(pixels).reduce(factor))
        top, left = box[1] // factor, box[0] // factor
        out[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels

    def reduce_block(block: Box) -> None:
        try:
            reduce(block)
        except RegionError:
            part = factor * max(1, PART_PX // factor)
            for box in _boxes(block, (part, part)):
                try:
                    reduce(box)
                except RegionError as error:
                    faults.append(error)
                    x, y, w, h = box
                    missing[
                        y // factor : -(-(y + h) // factor),
                        x // factor : -(-(x + w) // factor),
                    ] = True

    steps = (_block_side(factor, tile_wh[0]), _block_side(factor, tile_wh[1]))
    blocks = list(_boxes((0, 0, width, height), steps))
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1, len(blocks))) as pool:
        for _ in pool.map(reduce_block, blocks):
            pass
    return _filled(out, missing, faults[0]) if faults else out


def _boxes(around: Box, step_wh: tuple[int, int]) -> Iterator[Box]:
    """The boxes of a grid inside a box, row by row."""
    left, top, width, height = around
    for y in range(top, top + height, step_wh[1]):
        for x in range(left, left + width, step_wh[0]):
            yield (
                x,
                y,
                min(step_wh[0], left + width - x),
                min(step_wh[1], top + height - y),
            )


def _filled(
    pixels: NDArray[np.uint8], missing: NDArray[np.bool_], fault: RegionError
) -> NDArray[np.uint8]:
    """Pixels with the nearest readable colour in the missing ones."""
    from scipy.ndimage import distance_transform_edt

    if missing.all():
        raise fault
    rows, columns = distance_transform_edt(
        missing, return_distances=False, return_indices=True
    )
    filled: NDArray[np.uint8] = pixels[rows, columns]
    return filled


def _block_side(factor: int, tile_px: int) -> int:
    """A multiple of `factor` near `BLOCK_PX`, and of the tile where that is possible: no tile is decoded twice."""
    unit = math.lcm(factor, tile_px)
    if unit > 2 * BLOCK_PX:
        unit = factor
    return unit * max(1, BLOCK_PX // unit)
