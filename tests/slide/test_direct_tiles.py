"""The direct tile path gives OpenSlide's pixels, or is not used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pytest
import tifffile

from napari_msamil.errors import RegionError, SlideError
from napari_msamil.slide import TileSource, open_slide
from napari_msamil.slide.write import (
    aperio_description,
    halved_levels,
    write_pyramid_tiff,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DIRECT = [
    "CMU-1-Small-Region.svs",
    "small.svs",
    "boxes.tiff",
    "yb10kx5k.zstd.tiff",
    "tcga-cr-7395_generic_bigtiff_5level.tif",
]


@pytest.mark.parametrize("name", DIRECT)
def test_direct_path_equals_openslide_on_real_slides(
    shared_data: Path, name: str
) -> None:
    path = shared_data / "slides" / name
    with open_slide(path) as direct, open_slide(path, backend="openslide") as other:
        assert direct.info.backend == "direct"
        assert direct.info.quickhash == other.info.quickhash
        for level, (width, height) in enumerate(direct.info.level_sizes_wh):
            size = (min(width, 1700), min(height, 1500))
            np.testing.assert_array_equal(
                direct.read_level(level, (0, 0), size),
                other.read_level(level, (0, 0), size),
            )


@pytest.mark.parametrize("compression", ["jpeg", "deflate", "none"])
def test_direct_path_equals_openslide_on_written_slides(
    tmp_path: Path, picture: NDArray[np.uint8], compression: str
) -> None:
    path = write_pyramid_tiff(
        tmp_path / "a b ü.tiff", picture, mpp=0.5, compression=compression
    )
    with (
        open_slide(path, backend="direct") as direct,
        open_slide(path, backend="openslide") as other,
    ):
        for xy in [(-5, 7), (255, 257), (1300, 900)]:
            np.testing.assert_array_equal(
                direct.read_region(xy, 0, (333, 222)),
                other.read_region(xy, 0, (333, 222)),
            )


def jpeg2000_slide(path: Path, picture: NDArray[np.uint8], *, compression: int) -> Path:
    """A tiled JPEG 2000 slide of one level with Aperio's description."""
    tile = 256
    height, width = picture.shape[:2]
    padded = np.pad(
        picture, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge"
    )
    tiles = [
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(padded[y : y + tile, x : x + tile]),
            level=42, codecformat="j2k", mct=False, bitspersample=8, reversible=False,
        )
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]  # fmt: skip
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            iter(tiles), shape=picture.shape, dtype=np.uint8, tile=(tile, tile), photometric="rgb",
            compression=compression, description=aperio_description(width, height, 0.25, 40), metadata=None,
        )  # fmt: skip
    return path


def test_jpeg_2000_slide_is_read_directly_and_equals_openslide(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    path = jpeg2000_slide(tmp_path / "j.svs", picture, compression=33005)
    with open_slide(path) as direct, open_slide(path, backend="openslide") as other:
        assert direct.info.backend == "direct"
        whole = direct.read_level(0, (0, 0), direct.info.size_wh0)
        np.testing.assert_array_equal(
            whole, other.read_level(0, (0, 0), direct.info.size_wh0)
        )
        error = np.mean((whole.astype(float) - picture) ** 2)
        assert 10 * np.log10(255**2 / error) > 35


def test_slide_that_decodes_differently_falls_back_to_openslide(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    """Aperio's 33003 holds YCbCr that OpenSlide converts; a decoder that gives the raw planes must not be used."""
    path = jpeg2000_slide(tmp_path / "j.svs", picture, compression=33003)
    with open_slide(path) as slide, open_slide(path, backend="openslide") as other:
        np.testing.assert_array_equal(
            slide.read_level(0, (0, 0), (999, 777)),
            other.read_level(0, (0, 0), (999, 777)),
        )


def test_levels_of_odd_sizes_are_read_exactly(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    """OpenSlide resamples such levels by up to half a level-0 pixel; the direct path must not."""
    path = write_pyramid_tiff(
        tmp_path / "a.tiff", picture, mpp=0.5, compression="deflate"
    )
    with open_slide(path, backend="direct") as slide:
        for level, pixels in enumerate(halved_levels(picture)):
            np.testing.assert_array_equal(
                slide.read_level(level, (119, 37), (200, 161)), pixels[37:198, 119:319]
            )


def test_tiles_make_up_the_level(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = write_pyramid_tiff(
        tmp_path / "a.tiff", picture, mpp=0.5, compression="deflate", tile_px=128
    )
    with open_slide(path) as slide:
        assert isinstance(slide, TileSource)
        assert slide.info.level_tile_sizes_wh[0] == (128, 128)
        np.testing.assert_array_equal(slide.tile(0, 3, 5), picture[640:768, 384:512])
        edge = slide.tile(0, 11, 8)
        np.testing.assert_array_equal(edge[:9, :93], picture[1024:, 1408:])
        with pytest.raises(SlideError, match="no tile 12, 0"):
            slide.tile(0, 12, 0)


def test_ndpi_and_dicom_stay_with_openslide(shared_data: Path) -> None:
    for name in ("stritt_TRITC.ndpi", "boxes_dcm"):
        with open_slide(shared_data / "slides" / name) as slide:
            assert slide.info.backend == "openslide"
        with pytest.raises(SlideError, match="OpenSlide"):
            open_slide(shared_data / "slides" / name, backend="direct")


def test_one_corrupt_tile_is_a_region_error_and_harms_no_other(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tiff", picture, mpp=0.5)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[8], page.databytecounts[8]  # column 2, row 1
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(count))
    for backend in ("auto", "openslide"):
        with open_slide(path, backend=backend) as slide:
            with pytest.raises(RegionError, match=r"a\.tiff.*cannot be decoded"):
                slide.read_region((512, 256), 0, (256, 256))
            clean = slide.read_region((256, 256), 0, (256, 256))
            difference = np.abs(clean.astype(int) - picture[256:512, 256:512])
            assert difference.mean() < 8
            with pytest.raises(RegionError):
                slide.read_region((500, 300), 0, (256, 256))


def test_closed_slide_says_so(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = write_pyramid_tiff(tmp_path / "a.tiff", picture, mpp=0.5)
    for backend in ("direct", "openslide"):
        slide = open_slide(path, backend=backend)
        slide.close()
        slide.close()
        with pytest.raises(SlideError, match="is closed"):
            slide.read_region((0, 0), 0, (10, 10))
