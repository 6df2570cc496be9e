"""Pillow's resize with a fractional box: the definition, and the same bits several times faster with numba.

Where patches are not read pixel for pixel, Pillow's filter takes more time than decoding. Its arithmetic is whole
numbers of 22 fractional bits, first along rows, then along columns, each step rounded to bytes. The kernels here do
the same sums in an order that vectorises. numba is optional (extra `fast`, part of `all`); without it Pillow does the work.
"""

from __future__ import annotations

import functools
import platform
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Box = tuple[float, float, float, float]
    Resize = Callable[
        [NDArray[np.uint8], int, Image.Resampling, Box], NDArray[np.uint8]
    ]
    Taps = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]
    Kernels = tuple[Callable[..., None], Callable[..., None]]

FRACTION_BITS = 22
"""Of Pillow's weights for bytes: 32 − 8 − 2."""
STRIP = 16
"""Rows worked on at once: 64 bytes per pixel column, the widest vector there is."""
FILTERS = {Image.Resampling.BOX: 0.5, Image.Resampling.BILINEAR: 1.0}
"""Filters with kernels here, and their radius; Lanczos is left to Pillow (its sines differ between libraries)."""
PROVEN_ON = ("x86_64", "AMD64")
"""Elsewhere compilers may contract the sums of Pillow's weights, which could move a last bit."""


def pillow_resize(
    region: NDArray[np.uint8],
    size_px: int,
    filter_: Image.Resampling,
    box: Box,
) -> NDArray[np.uint8]:
    """Pillow's own: what a resized patch is.

    Args:
        region: uint8 (H, W, 3).
        size_px: Side of the patch.
        filter_: Pillow's filter.
        box: Left, top, right, bottom of the patch in pixels of the region.

    Returns:
        uint8 (size_px, size_px, 3).
    """
    image = Image.fromarray(region)
    return np.asarray(image.resize((size_px, size_px), filter_, box))


@functools.cache
def fast_resize() -> Resize | None:
    """The compiled resize, or None where numba is missing or does not give Pillow's bits.

    The first call on a machine compiles for a few seconds; the code is kept beside this file or in numba's cache.
    """
    if platform.machine() not in PROVEN_ON:
        return None
    try:
        resize = exact_resize(_compiled())
    except (ImportError, RuntimeError):
        # RuntimeError: numba found no folder that it may keep its code in.
        return None
    return resize if _gives_pillows_bits(resize) else None


def exact_resize(kernels: Kernels) -> Resize:
    """A resize that runs kernels: the compiled ones, or in tests the plain functions of this module."""

    def resize(
        region: NDArray[np.uint8],
        size_px: int,
        filter_: Image.Resampling,
        box: Box,
    ) -> NDArray[np.uint8]:
        height, width = region.shape[:2]
        if filter_ not in FILTERS or height > width:
            # Pillow 13 takes the steps in the other order where height is reduced more than width.
            return pillow_resize(region, size_px, filter_, box)
        return _two_steps(kernels, region, size_px, filter_, box)

    return resize


def _two_steps(
    kernels: Kernels,
    region: NDArray[np.uint8],
    size_px: int,
    filter_: Image.Resampling,
    box: Box,
) -> NDArray[np.uint8]:
    """Along rows and then along columns, each only where it changes something, as Pillow does."""
    along_rows, along_columns = kernels
    height, width = region.shape[:2]
    left, top, right, bottom = box
    pixels = np.ascontiguousarray(region)
    first, count, weights = taps(height, top, bottom, size_px, filter_)
    begin, end = int(first[0]), int(first[-1] + count[-1])
    if size_px != width or left != 0 or right != size_px:
        turned = np.empty((end - begin, size_px, 3), np.uint8)
        x_taps = taps(width, left, right, size_px, filter_)
        along_rows(pixels[begin:end], turned, *x_taps)
        pixels, first = turned, first - begin
    if size_px == height and top == 0 and bottom == size_px:
        return pixels
    out = np.empty((size_px, size_px, 3), np.uint8)
    along_columns(
        pixels.reshape(len(pixels), -1), out.reshape(size_px, -1), first, count, weights
    )
    return out


@functools.lru_cache(maxsize=512)
def taps(
    n_in: int, low: float, high: float, n_out: int, filter_: Image.Resampling
) -> Taps:
    """Pillow's weights along one axis (`precompute_coeffs` of its Resample.c), operation by operation.

    Args:
        n_in: Pixels along the axis.
        low: Where the box begins; Pillow keeps it, and the end, in single precision.
        high: Where it ends.
        n_out: Pixels wanted.
        filter_: One of `FILTERS`.

    Returns:
        First input pixel of each output pixel (n_out,), how many it takes (n_out,), and their weights in units of
        2⁻²², int32 (n_out, most).
    """
    start, stop = np.float32(low), np.float32(high)
    scale = float(stop - start) / n_out
    stretch = max(scale, 1.0)
    support = FILTERS[filter_] * stretch
    centre = float(start) + (np.arange(n_out) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), n_in) - first
    raw = np.zeros((n_out, int(count.max())))
    total = np.zeros(n_out)
    for tap in range(raw.shape[1]):
        at = (tap + first - centre + 0.5) * (1.0 / stretch)
        raw[:, tap] = np.where(tap < count, _shape(at, filter_), 0.0)
        total += raw[:, tap]
    share = raw / np.where(total == 0.0, 1.0, total)[:, None]
    weights = (0.5 + share * (1 << FRACTION_BITS)).astype(np.int32)
    return first, count, weights


def _shape(at: NDArray[np.float64], filter_: Image.Resampling) -> NDArray[np.float64]:
    """The filter as a function of the distance in output pixels."""
    if filter_ is Image.Resampling.BOX:
        return ((at > -0.5) & (at <= 0.5)).astype(np.float64)
    return np.maximum(1.0 - np.abs(at), 0.0)


def along_rows(
    source: NDArray[np.uint8],
    out: NDArray[np.uint8],
    first: NDArray[np.int64],
    count: NDArray[np.int64],
    weights: NDArray[np.int32],
) -> None:
    """Weighted sums along rows: source (H, W, 3) to out (H, n_out, 3). Compiled by numba, so written for it.

    Sixteen rows are turned on their side, four bytes to the pixel, so that the innermost loop runs down a column.
    """
    columns = np.zeros((source.shape[1], STRIP), np.uint32)
    sums = np.zeros((out.shape[1], STRIP), np.uint32)
    columns_u8, sums_u8 = columns.view(np.uint8), sums.view(np.uint8)
    total = np.empty(4 * STRIP, np.int32)
    for top in range(0, source.shape[0], STRIP):
        rows = min(STRIP, source.shape[0] - top)
        for r in range(rows):
            for x in range(source.shape[1]):
                columns[x, r] = (
                    np.uint32(source[top + r, x, 0])
                    | (np.uint32(source[top + r, x, 1]) << np.uint32(8))
                    | (np.uint32(source[top + r, x, 2]) << np.uint32(16))
                )
        for x in range(out.shape[1]):
            total[:] = 1 << (FRACTION_BITS - 1)
            for tap in range(count[x]):
                weight = weights[x, tap]
                taken = columns_u8[first[x] + tap]
                for j in range(4 * STRIP):
                    total[j] += np.int32(taken[j]) * weight
            for j in range(4 * STRIP):
                sums_u8[x, j] = min(max(total[j] >> FRACTION_BITS, 0), 255)
        for r in range(rows):
            for x in range(out.shape[1]):
                value = sums[x, r]
                out[top + r, x, 0] = value & np.uint32(255)
                out[top + r, x, 1] = (value >> np.uint32(8)) & np.uint32(255)
                out[top + r, x, 2] = (value >> np.uint32(16)) & np.uint32(255)


def along_columns(
    source: NDArray[np.uint8],
    out: NDArray[np.uint8],
    first: NDArray[np.int64],
    count: NDArray[np.int64],
    weights: NDArray[np.int32],
) -> None:
    """Weighted sums of whole rows: source (H, W · 3) to out (n_out, W · 3). Compiled by numba."""
    total = np.empty(out.shape[1], np.int32)
    for y in range(out.shape[0]):
        total[:] = 1 << (FRACTION_BITS - 1)
        for tap in range(count[y]):
            weight = weights[y, tap]
            taken = source[first[y] + tap]
            for j in range(out.shape[1]):
                total[j] += np.int32(taken[j]) * weight
        for j in range(out.shape[1]):
            out[y, j] = min(max(total[j] >> FRACTION_BITS, 0), 255)


def _compiled() -> Kernels:
    """Both kernels as machine code that runs without Python's lock.

    Raises:
        ImportError: There is no numba, or it does not fit the installed numpy.
    """
    numba = import_module("numba")
    read3, read2 = (
        numba.types.Array(numba.uint8, n, "C", readonly=True) for n in (3, 2)
    )
    rest = (numba.int64[::1], numba.int64[::1], numba.int32[:, ::1])
    compile_to = functools.partial(numba.njit, nogil=True, cache=True)
    return (
        compile_to(numba.void(read3, numba.uint8[:, :, ::1], *rest))(along_rows),
        compile_to(numba.void(read2, numba.uint8[:, ::1], *rest))(along_columns),
    )


def _gives_pillows_bits(resize: Resize) -> bool:
    """Whether a resize equals the installed Pillow's, smaller and larger, on a fractional box."""
    region = np.random.default_rng(0).integers(0, 256, (41, 53, 3), np.uint8)
    box = (0.37, 1.0, 39.75, 40.38)
    return all(
        np.array_equal(
            resize(region, size, filter_, box),
            pillow_resize(region, size, filter_, box),
        )
        for filter_ in FILTERS
        for size in (19, 50)
    )
