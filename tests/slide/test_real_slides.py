"""Every real file at hand: what it is, how large, at which pixel size, by whose word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openslide
import pytest

from napari_msamil.errors import ResolutionError, SlideError
from napari_msamil.slide import Slide, open_slide, require_mpp, require_scale
from napari_msamil.slide.opening import is_slide
from napari_msamil.slide.pyramid import lazy_pyramid

if TYPE_CHECKING:
    from pathlib import Path

Row = tuple[str, int, int, int, float | None, str | None, int | None]
"""Backend, width, height, levels, mpp, its source, objective power."""
SLIDES: dict[str, Row] = {
    "slides/CMU-1-Small-Region.svs": ("direct", 2220, 2967, 1, 0.499, "tag", 20),
    "slides/stritt_TRITC.ndpi": ("openslide", 3968, 4864, 7, 0.228175, "tag", 40),
    "slides/dicom_CMU-1-Small-Region": ("openslide", 2220, 2967, 1, 0.499, "tag", None),
    "slides/dicom_camelyon_jpeg": ("openslide", 1152, 700, 1, 28.9685, "tag", None),
    "slides/yb10kx5k.zstd.tiff": ("direct", 10000, 5000, 5, None, None, None),
    "slides/small.svs": ("direct", 16, 16, 1, 0.499, "tag", 20),
    "slides/boxes.tiff": ("direct", 300, 250, 4, None, None, None),
    "slides/boxes_dcm": ("openslide", 16, 16, 1, 0.499, "tag", 20),
    "slides/dicom_highdicom_sm_image": ("openslide", 50, 50, 1, 0.499, "tag", None),
    "slides/tcga-cr-7395_generic_bigtiff_5level.tif": (
        "direct",
        4443,
        3567,
        5,
        0.5,
        "tiff",
        None,
    ),
    "masks/hs2p_test-mask.tif": ("direct", 864, 800, 2, 4.031984, "tiff", None),
    "images/OS-2-ndpi.ome.tif": ("tifffile", 2202, 2202, 1, 0.2271, "tag", None),
    "images/boxes.png": ("plain", 300, 250, 1, None, None, None),
    "images/histoprep_slide.jpeg": ("plain", 2500, 2500, 1, None, None, None),
}
BROKEN = {
    "derived_text.svs": "neither a slide nor an image",
    "derived_zero-byte.svs": "is empty",
    "highdicom_sm_image_grayscale.dcm": "BitsAllocated",
    "highdicom_sm_image_jpegls.dcm": "transfer syntax",
    "histolab_broken.svs": "neither a slide nor an image",
    "openslide_unopenable.tiff": "Unsupported TIFF compression",
}


@pytest.mark.parametrize("name", SLIDES)
def test_slide_is_what_the_table_says(shared_data: Path, name: str) -> None:
    backend, width, height, levels, mpp, source, objective = SLIDES[name]
    with open_slide(shared_data / name) as slide:
        info = slide.info
        assert isinstance(slide, Slide)
        assert (info.backend, info.size_wh0, info.level_count) == (
            backend,
            (width, height),
            levels,
        )
        assert info.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-4))
        assert info.mpp_source == source
        assert info.objective_power == objective
        assert len(info.quickhash) == 64
        corner = slide.read_region((width - 5, height - 3), 0, (9, 8))
        assert corner.shape == (8, 9, 3)
        assert (corner[3:] == info.background_rgb).all()
        assert (corner[:, 5:] == info.background_rgb).all()
        arrays = lazy_pyramid(slide)
        assert [a.shape for a in arrays] == [
            (h, w, 3) for w, h in info.level_sizes_wh
        ] or not levels
        assert slide.thumbnail((31, 17)).shape == (17, 31, 3)


def test_table_names_every_slide(shared_data: Path) -> None:
    there = {f"slides/{path.name}" for path in (shared_data / "slides").iterdir()}
    there |= {f"images/{path.name}" for path in (shared_data / "images").iterdir()}
    assert there <= set(SLIDES)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_one_sentence_that_names_it(
    shared_data: Path, name: str
) -> None:
    with pytest.raises(SlideError, match=BROKEN[name]) as caught:
        open_slide(shared_data / "broken" / name)
    assert name in str(caught.value)
    assert str(shared_data) not in str(caught.value)


def test_every_file_of_the_broken_folder_is_listed(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "broken").iterdir()} == set(BROKEN)


@pytest.mark.parametrize("folder", ["boxes_dcm", "dicom_CMU-1-Small-Region"])
def test_dicom_opens_by_its_folder_and_by_any_file(
    shared_data: Path, folder: str
) -> None:
    path = shared_data / "slides" / folder
    hashes = set()
    for file in [path, *path.iterdir()]:
        with open_slide(file) as slide:
            hashes.add(slide.info.quickhash)
            assert slide.info.path == file
    assert len(hashes) == 1


def test_overview_coarser_than_every_scale_opens_and_is_refused_for_classification(
    shared_data: Path,
) -> None:
    with open_slide(shared_data / "slides" / "dicom_camelyon_jpeg") as slide:
        assert require_mpp(slide.info) == pytest.approx(28.9685)
        with pytest.raises(ResolutionError, match=r"28\.97"):
            require_scale(slide.info, 0.5)


def test_screen_resolution_is_no_pixel_size_and_the_user_can_give_one(
    shared_data: Path,
) -> None:
    path = shared_data / "slides" / "boxes.tiff"
    with open_slide(path) as slide:
        assert "352.8" in slide.info.warnings[0]
        with pytest.raises(ResolutionError, match="--mpp"):
            require_mpp(slide.info)
    with open_slide(path, mpp=0.25) as slide:
        assert (slide.info.mpp, slide.info.mpp_source) == (0.25, "user")


def test_boxes_have_their_exact_colours_in_every_container(shared_data: Path) -> None:
    """TIFF, PNG with a palette: the same pixels."""
    with (
        open_slide(shared_data / "slides" / "boxes.tiff") as tiff,
        open_slide(shared_data / "images" / "boxes.png") as png,
    ):
        np.testing.assert_array_equal(
            tiff.read_level(0, (0, 0), (300, 250)),
            png.read_level(0, (0, 0), (300, 250)),
        )


def test_same_skin_as_svs_and_dicom_shows_the_same_pixels(shared_data: Path) -> None:
    with (
        open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as svs,
        open_slide(shared_data / "slides" / "dicom_CMU-1-Small-Region") as dicom,
    ):
        first = svs.thumbnail((222, 296)).astype(int)
        assert (
            np.abs(first - dicom.thumbnail((222, 296))).mean() < 2
        )  # one was encoded once more


@pytest.mark.parametrize(
    "name", [name for name in SLIDES if SLIDES[name][0] in ("direct", "openslide")]
)
def test_regions_equal_openslide_asked_plainly(shared_data: Path, name: str) -> None:
    path = shared_data / name
    file = next(path.iterdir()) if path.is_dir() else path
    plain = openslide.OpenSlide(file)
    with open_slide(path) as slide:
        width, height = slide.info.size_wh0
        for x, y in [(0, 0), (width // 3, height // 2), (width - 11, height - 7)]:
            expected = plain.read_region((x, y), 0, (211, 133))
            alpha = np.asarray(expected)[..., 3:] / 255
            pixels = np.asarray(expected.convert("RGB")) * alpha + 255 * (1 - alpha)
            np.testing.assert_array_equal(
                slide.read_region((x, y), 0, (211, 133)), pixels.round()
            )
    plain.close()


def test_only_real_slides_are_taken_for_slides(shared_data: Path) -> None:
    assert is_slide(shared_data / "slides" / "boxes.tiff")
    assert is_slide(shared_data / "slides" / "boxes_dcm")
    assert is_slide(shared_data / "images" / "OS-2-ndpi.ome.tif")
    assert not is_slide(shared_data / "images" / "boxes.png")
    assert not is_slide(shared_data / "broken" / "derived_text.svs")
    assert not is_slide(shared_data / "nothing.svs")
    assert not is_slide(shared_data / "images")
