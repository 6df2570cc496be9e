"""What all slides share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from napari_msamil.errors import SlideError
from napari_msamil.slide.array_slide import ArraySlide
from napari_msamil.slide.base import Slide
from napari_msamil.slide.reduced import _block_side

from .conftest import smooth_picture

PICTURE = smooth_picture(211, 307)


@settings(deadline=None, max_examples=120)
@given(
    st.integers(-400, 400),
    st.integers(-400, 400),
    st.integers(0, 500),
    st.integers(0, 500),
)
def test_region_is_the_window_of_the_image_on_a_background(x, y, w, h) -> None:
    canvas = np.full((211 + 1000, 307 + 1000, 3), 255, np.uint8)
    canvas[500:711, 500:807] = PICTURE
    region = ArraySlide(PICTURE).read_region((x, y), 0, (w, h))
    if w and h and x + 500 + w <= canvas.shape[1] and y + 500 + h <= canvas.shape[0]:
        np.testing.assert_array_equal(
            region, canvas[y + 500 : y + 500 + h, x + 500 : x + 500 + w]
        )
    assert region.shape == (h, w, 3)


def test_region_of_a_coarse_level_starts_at_the_nearest_pixel() -> None:
    slide = ArraySlide([PICTURE, PICTURE[:53, :77]])
    factor = slide.info.level_downsamples[1]
    for x, y in [(0, 0), (101, 57), (200, 100)]:
        corner = (round(x / factor), round(y / factor))
        np.testing.assert_array_equal(
            slide.read_region((x, y), 1, (20, 10)),
            slide.read_level(1, corner, (20, 10)),
        )


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400))
def test_thumbnail_has_exactly_the_size_asked_for_and_the_mean_of_the_slide(
    w, h
) -> None:
    small = ArraySlide(PICTURE).thumbnail((w, h))
    assert small.shape == (h, w, 3)
    assert small.dtype == np.uint8
    if min(w, h) > 2:
        np.testing.assert_allclose(small.mean((0, 1)), PICTURE.mean((0, 1)), atol=4)


def test_thumbnail_is_anisotropic_and_puts_features_in_their_place() -> None:
    """The paper's thumbnail squeezes both axes to one side: s1 = W/1024, s2 = H/1024."""
    pixels = np.zeros((1600, 4800, 3), np.uint8)
    pixels[400:800, 2400:3600] = 255
    small = ArraySlide(pixels).thumbnail((96, 64))
    expected = np.zeros((64, 96), np.uint8)
    expected[16:32, 48:72] = 255
    np.testing.assert_allclose(small[..., 0].astype(int), expected, atol=100)
    assert (small[17:31, 49:71] == 255).all()
    assert not small[:15].any()


def test_thumbnail_does_not_depend_on_tiles_or_threads() -> None:
    pixels = smooth_picture(2500, 4300)
    first = ArraySlide(pixels, tile_size_wh=(256, 256)).thumbnail((130, 77))
    second = ArraySlide(pixels, tile_size_wh=(4300, 8)).thumbnail((130, 77))
    np.testing.assert_array_equal(first, second)
    whole = Image.fromarray(pixels).resize((130, 77), Image.Resampling.BOX)
    assert np.abs(first.astype(int) - np.asarray(whole)).mean() < 4


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 3000), st.integers(1, 70_000))
def test_blocks_are_whole_multiples_of_the_factor(factor, tile) -> None:
    side = _block_side(factor, tile)
    assert side % factor == 0
    assert side <= max(4096, factor)


def test_levels_and_sizes_that_do_not_exist_are_sentences() -> None:
    slide = ArraySlide(PICTURE, name="a.svs")
    assert isinstance(slide, Slide)
    with pytest.raises(SlideError, match="there is no level 1"):
        slide.read_region((0, 0), 1, (3, 3))
    with pytest.raises(SlideError, match="cannot be read"):
        slide.read_level(0, (0, 0), (-3, 3))
    with pytest.raises(SlideError, match="empty"):
        slide.thumbnail((0, 3))
    with pytest.raises(SlideError, match="uint8 image"):
        ArraySlide(PICTURE.astype(np.float32))
