"""Magnification algebra."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.errors import ResolutionError
from napari_msamil.slide import level_for_mpp, require_mpp, require_scale
from napari_msamil.slide.levels import (
    level_box,
    level_for_downsample,
    level_sizes,
    size_px0,
)
from tests.strategies import slide_infos

checked = settings(deadline=None, max_examples=150)


@checked
@given(slide_infos(), st.floats(0.1, 20.0))
def test_chosen_level_is_the_nearest_by_ratio(info, mpp) -> None:
    choice = level_for_mpp(info, mpp)
    wanted = mpp / info.mpp
    distances = [abs(math.log(d / wanted)) for d in info.level_downsamples]
    assert distances[choice.level] == min(distances)
    assert choice.downsample == info.level_downsamples[choice.level]
    assert choice.downsample * choice.residual * info.mpp == pytest.approx(mpp)


@pytest.mark.parametrize(
    ("mpp", "level", "residual"),
    [
        (0.25, 1, 1.0),
        (0.5, 0, 1.0),
        (0.2277, 1, 2.0 / (4 * 0.2277) / (2.0 / 0.91)),
        (0.46, 0, 0.5 / 0.46),
    ],
)
def test_twenty_times_is_half_a_micrometre_on_every_scanner(
    mpp, level, residual
) -> None:
    """A slide of 40x, 20x, an odd 40x and an odd 20x, each with levels 1, 2, 4."""
    info = _info((4000, 3000), (2000, 1500), (1000, 750), mpp=mpp)
    choice = level_for_mpp(info, 0.5)
    assert choice.level == level
    if level == 0:
        assert choice.residual == pytest.approx(residual)
    else:
        assert choice.residual == pytest.approx(0.5 / mpp / 2)


def test_odd_level_ratio_is_kept_and_does_not_drift_at_the_far_edge() -> None:
    """At a downsample of 16.005 a rounded factor is off by 31 level-0 pixels at x = 100 000."""
    info = _info((100_000, 80_000), (6248, 4998), mpp=0.25)
    choice = level_for_downsample(info, 16)
    assert choice.level == 1
    assert choice.downsample == pytest.approx(16.0051, abs=1e-3)
    (x, _, w, _), (left, _, right, _) = level_box(
        (99_000, 0, 512, 512), choice.downsample
    )
    assert (x + left) * choice.downsample == pytest.approx(99_000, abs=1e-6)
    assert (x + right) * choice.downsample == pytest.approx(99_512, abs=1e-6)
    assert abs((x + left) * 16 - 99_000) > 30
    assert x + w <= 6249


@checked
@given(
    st.tuples(
        st.floats(-1e4, 2e5), st.floats(-1e4, 2e5), st.floats(1, 5e4), st.floats(1, 5e4)
    ),
    st.floats(1, 130),
)
def test_level_box_covers_the_box_with_less_than_a_pixel_to_spare(
    box, downsample
) -> None:
    (x, y, w, h), (left, top, right, bottom) = level_box(box, downsample)
    assert 0 <= left < 1
    assert 0 <= top < 1
    assert right <= w
    assert bottom <= h
    assert w - right < 1
    assert h - bottom < 1
    assert (x + left) * downsample == pytest.approx(box[0], abs=1e-3)
    assert (y + top) * downsample == pytest.approx(box[1], abs=1e-3)
    assert (x + right) * downsample == pytest.approx(box[0] + box[2], abs=1e-3)
    assert (y + bottom) * downsample == pytest.approx(box[1] + box[3], abs=1e-3)


def test_whole_downsamples_read_no_pixel_too_many() -> None:
    assert level_box((512, 1024, 512, 512), 4.0) == (
        (128, 256, 128, 128),
        (0.0, 0.0, 128.0, 128.0),
    )
    assert level_box((3 * 0.1 * 10, 0, 7, 7), 1.0)[0] == (3, 0, 7, 7)


def test_patch_sides_in_level_0_pixels_are_physical() -> None:
    assert size_px0(512, 0.5, 0.25) == 1024
    assert size_px0(512, 2.0, 0.5) == 2048
    assert size_px0(512, 0.5, 0.2277) == 1124
    assert size_px0(8, 0.25, 40.0) == 1


def test_slide_without_pixel_size_is_refused_with_the_remedy() -> None:
    info = _info((100, 100), mpp=None)
    with pytest.raises(ResolutionError, match="--mpp"):
        require_mpp(info)
    with pytest.raises(ResolutionError, match="--mpp"):
        level_for_mpp(info, 0.5)


def test_slide_coarser_than_a_scale_is_refused() -> None:
    assert require_scale(_info((9, 9), mpp=0.55), 0.5) == 0.55
    with pytest.raises(ResolutionError, match=r"28\.97.*0\.5 is needed"):
        require_scale(_info((9, 9), mpp=28.968), 0.5)


@checked
@given(st.integers(1, 200_000), st.integers(1, 200_000), st.integers(2, 4))
def test_level_sizes_shrink_to_the_bound(width, height, factor) -> None:
    sizes = level_sizes((width, height), factor, 512)
    assert sizes[0] == (width, height)
    assert max(sizes[-1]) <= 512
    assert all(max(size) > 512 for size in sizes[:-1])
    for fine, coarse in pairwise(sizes):
        assert coarse == (-(-fine[0] // factor), -(-fine[1] // factor))


def _info(*sizes, mpp):
    from pathlib import Path

    from napari_msamil.slide import SlideInfo

    info = SlideInfo(
        path=Path("a.svs"), vendor="aperio", backend="openslide", level_sizes_wh=sizes,
        level_downsamples=tuple((sizes[0][0] / w + sizes[0][1] / h) / 2 for w, h in sizes),
        level_tile_sizes_wh=((256, 256),) * len(sizes), mpp=mpp, mpp_yx=None, mpp_source=None,
    )  # fmt: skip
    return replace(info, mpp_yx=None if mpp is None else (mpp, mpp))
