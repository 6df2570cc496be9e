"""Slides through OpenSlide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_msamil.slide import open_slide
from napari_msamil.slide.array_slide import ArraySlide
from napari_msamil.slide.openslide_file import _background, _bounds, _tile_size
from napari_msamil.slide.pyramid import lazy_pyramid
from napari_msamil.slide.write import halved_levels, write_pyramid_tiff

if TYPE_CHECKING:
    from pathlib import Path


def test_written_pyramid_reads_back_its_pixels_size_and_objective(
    tmp_path: Path, picture: np.ndarray
) -> None:
    path = write_pyramid_tiff(
        tmp_path / "a.tiff", picture, mpp=0.2277, objective=40, compression="deflate"
    )
    levels = halved_levels(picture)
    with open_slide(path, backend="openslide") as slide:
        assert slide.info.vendor == "aperio"
        assert slide.info.mpp == pytest.approx(0.2277)
        assert slide.info.mpp_source == "tag"
        assert slide.info.objective_power == 40
        assert slide.info.level_sizes_wh == ((1501, 1033), (751, 517), (376, 259))
        for index, level in enumerate(levels):
            np.testing.assert_array_equal(
                slide.read_level(index, (0, 0), level.shape[1::-1]), level
            )


def test_openslide_and_array_slide_agree_on_level_zero(
    tmp_path: Path, picture: np.ndarray
) -> None:
    path = write_pyramid_tiff(
        tmp_path / "a.tiff", picture, mpp=0.5, compression="deflate"
    )
    with (
        open_slide(path) as slide,
        ArraySlide(halved_levels(picture), mpp=0.5) as array,
    ):
        for xy, size in [
            ((-7, -3), (50, 31)),
            ((1400, 900), (300, 200)),
            ((700, 300), (257, 129)),
        ]:
            np.testing.assert_array_equal(
                slide.read_region(xy, 0, size), array.read_region(xy, 0, size)
            )
        np.testing.assert_array_equal(
            slide.thumbnail((71, 93)), array.thumbnail((71, 93))
        )


def test_dask_levels_equal_read_level(tmp_path: Path, picture: np.ndarray) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tiff", picture[:1032, :1496], mpp=0.5)
    with open_slide(path) as slide:
        for level, array in enumerate(lazy_pyramid(slide)):
            whole = slide.read_level(level, (0, 0), slide.info.level_sizes_wh[level])
            np.testing.assert_array_equal(array.compute(), whole)


def test_scanned_part_background_and_tiles_are_taken_from_the_properties() -> None:
    properties = {
        "openslide.bounds-x": "100", "openslide.bounds-y": "7", "openslide.bounds-width": "50",
        "openslide.bounds-height": "60", "openslide.background-color": "FF80A0",
        "openslide.level[0].tile-width": "240", "openslide.level[0].tile-height": "256",
    }  # fmt: skip
    assert _bounds(properties) == (100, 7, 50, 60)
    assert _background(properties) == (255, 128, 160)
    assert _tile_size(properties, 0) == (240, 256)
    damaged = dict.fromkeys(properties, "-1x")
    assert _bounds(damaged) is None
    assert _background(damaged) == (255, 255, 255)
    assert _tile_size(damaged, 0) == (256, 256)
    assert _bounds({}) is None
