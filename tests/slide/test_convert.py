"""Converting plain images to pyramids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from napari_msamil.errors import ResolutionError, SlideError
from napari_msamil.progress import finish
from napari_msamil.slide import open_slide
from napari_msamil.slide.convert import convert_image

from .conftest import smooth_picture

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def whole(path: Path) -> NDArray[np.uint8]:
    with open_slide(path) as slide:
        return slide.read_level(0, (0, 0), slide.info.size_wh0)


def test_converted_png_keeps_pixels_size_and_objective(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    source, target = tmp_path / "in put ü.png", tmp_path / "out put ü.tiff"
    Image.fromarray(picture).save(source)
    steps = []
    assert (
        finish(convert_image(source, target, mpp=0.2277, objective=40), steps.append)
        == target
    )
    assert steps[0].done == 0
    assert steps[-1].done == steps[-1].total == 100
    with open_slide(target, backend="openslide") as slide:
        assert slide.info.size_wh0 == (1501, 1033)
        assert slide.info.level_count >= 3
        assert slide.info.mpp == pytest.approx(0.2277)
        assert slide.info.mpp_source == "tag"
        assert slide.info.objective_power == 40
        assert slide.info.level_tile_sizes_wh[0] == (256, 256)
    pixels = whole(target)
    assert peak_signal_noise_ratio(picture, pixels) > 32
    assert structural_similarity(picture, pixels, channel_axis=2) > 0.9
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        source.name,
        target.name,
    ]


def test_deflate_keeps_every_pixel(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    source, target = tmp_path / "a.png", tmp_path / "a.tiff"
    Image.fromarray(picture).save(source)
    finish(convert_image(source, target, mpp=0.5, compression="deflate"))
    np.testing.assert_array_equal(whole(target), picture)


def test_higher_quality_is_closer_to_the_source(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(picture).save(source)
    ratios = []
    for quality in (30, 95):
        target = finish(
            convert_image(
                source, tmp_path / f"{quality}.tiff", mpp=0.5, quality=quality
            )
        )
        ratios.append(peak_signal_noise_ratio(picture, whole(target)))
    assert ratios[1] > ratios[0] + 4


@pytest.mark.parametrize("kind", ["grey", "palette", "rgba", "grey16"])
def test_other_pixel_kinds_become_rgb(tmp_path: Path, kind: str) -> None:
    picture = smooth_picture(97, 131)
    source, target = tmp_path / "a.png", tmp_path / "a.tiff"
    if kind == "grey":
        image = Image.fromarray(picture).convert("L")
        expected = np.asarray(image.convert("RGB"))
    elif kind == "palette":
        image = Image.fromarray(picture).quantize(50)
        expected = np.asarray(image.convert("RGB"))
    elif kind == "rgba":
        alpha = np.zeros((97, 131, 1), np.uint8)
        alpha[:, 60:] = 255
        image = Image.fromarray(np.concatenate([picture, alpha], axis=2))
        expected = picture.copy()
        expected[:, :60] = 255
    else:
        image = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
        expected = np.repeat(picture[..., :1], 3, axis=2)
    image.save(source)
    finish(convert_image(source, target, mpp=0.5, compression="deflate"))
    assert np.abs(whole(target).astype(int) - expected).max() <= 1


def test_big_endian_ome_tiff_is_converted_in_true_colours(
    shared_data: Path, tmp_path: Path
) -> None:
    """Its JPEG tiles hold YCbCr under an RGB tag; libtiff alone would turn white glass into pink."""
    source = shared_data / "images" / "OS-2-ndpi.ome.tif"
    target = finish(convert_image(source, tmp_path / "a.tiff", mpp=0.2271))
    with open_slide(source) as first, open_slide(target) as second:
        assert first.info.size_wh0 == second.info.size_wh0 == (2202, 2202)
        assert (
            peak_signal_noise_ratio(
                first.thumbnail((300, 300)), second.thumbnail((300, 300))
            )
            > 40
        )


def test_cancelling_leaves_no_file(tmp_path: Path) -> None:
    source, target = tmp_path / "a.png", tmp_path / "a.tiff"
    Image.fromarray(np.tile(smooth_picture(997, 1003), (5, 5, 1))).save(
        source, compress_level=1
    )
    work = convert_image(source, target, mpp=0.5)
    next(work)
    next(work)
    work.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_truncated_source_is_an_error_and_keeps_the_old_target(
    tmp_path: Path, picture: NDArray[np.uint8]
) -> None:
    source, target = tmp_path / "a.png", tmp_path / "a.tiff"
    Image.fromarray(picture).save(source)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    target.write_text("precious")
    with pytest.raises(SlideError, match=r"a\.png cannot be converted"):
        finish(convert_image(source, target, mpp=0.5))
    assert target.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.tiff"]


def test_wrong_calls_are_sentences(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(picture).save(source)
    with pytest.raises(ResolutionError, match="352"):
        finish(convert_image(source, tmp_path / "a.tiff", mpp=352.8))
    with pytest.raises(SlideError, match="no image"):
        finish(convert_image(tmp_path / "b.png", tmp_path / "a.tiff", mpp=0.5))
    with pytest.raises(SlideError, match="onto itself"):
        finish(convert_image(source, source, mpp=0.5))
    with pytest.raises(SlideError, match="no folder"):
        finish(convert_image(source, tmp_path / "x" / "a.tiff", mpp=0.5))
    with pytest.raises(SlideError, match="multiple of 16"):
        finish(convert_image(source, tmp_path / "a.tiff", mpp=0.5, tile_px=100))
    text = tmp_path / "t.png"
    text.write_text("no image")
    with pytest.raises(SlideError, match=r"t\.png cannot be converted"):
        finish(convert_image(text, tmp_path / "a.tiff", mpp=0.5))
