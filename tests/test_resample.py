"""The kernels give Pillow's bits; run here as plain Python, and compiled where numba is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from napari_msamil.resample import (
    FILTERS,
    along_columns,
    along_rows,
    exact_resize,
    fast_resize,
    pillow_resize,
    taps,
)

FRACTIONS = st.floats(0, 0.999)


def region_of(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(deadline=None, max_examples=25)
@given(
    side=st.floats(2, 38),
    left=FRACTIONS,
    top=FRACTIONS,
    size=st.integers(2, 23),
    filter_=st.sampled_from(list(Image.Resampling)),
    seed=st.integers(0, 9),
)
def test_plain_kernels_give_pillows_bits(
    side: float,
    left: float,
    top: float,
    size: int,
    filter_: Image.Resampling,
    seed: int,
) -> None:
    box = (left, top, left + side, top + side)
    region = region_of(math.ceil(box[2]), math.ceil(box[3]), seed)
    ours = exact_resize((along_rows, along_columns))(region, size, filter_, box)
    np.testing.assert_array_equal(ours, pillow_resize(region, size, filter_, box))


@pytest.mark.parametrize("filter_", FILTERS)
@pytest.mark.parametrize(
    ("width", "height", "size", "box"),
    [
        (513, 513, 512, (0.0, 0.0, 513.0, 513.0)),
        (1026, 1026, 512, (0.0, 0.0, 1026.0, 1026.0)),
        (514, 513, 512, (0.25, 0.0, 513.25, 513.0)),
        (512, 513, 512, (0.0, 0.0, 512.0, 513.0)),
        (513, 512, 512, (0.0, 0.0, 513.0, 512.0)),
        (411, 300, 512, (0.1, 0.7, 299.3, 299.9)),
        (24, 25, 24, (0.0, 0.917, 23.917, 24.834)),
        (25, 24, 24, (0.917, 0.0, 24.834, 23.917)),
    ],
)
def test_compiled_kernels_give_pillows_bits(
    filter_: Image.Resampling,
    width: int,
    height: int,
    size: int,
    box: tuple[float, float, float, float],
) -> None:
    pytest.importorskip("numba")
    resize = fast_resize()
    assert resize is not None
    region = region_of(width, height, 1)
    region.setflags(write=False)
    for pixels in (region, region[::-1, ::-1]):
        np.testing.assert_array_equal(
            resize(pixels, size, filter_, box),
            pillow_resize(pixels, size, filter_, box),
        )


def test_weights_sum_to_one_and_stay_inside() -> None:
    first, count, weights = taps(77, 0.3, 76.9, 31, Image.Resampling.BILINEAR)
    assert np.abs(weights.sum(1) - (1 << 22)).max() <= weights.shape[1]
    assert first.min() >= 0
    assert (first + count).max() <= 77
