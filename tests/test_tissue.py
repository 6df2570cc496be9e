"""Background detection: real slides, pens of common colours, and everything else that is no tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from napari_msamil.config import TissueSpec
from napari_msamil.masks import MaskSource
from napari_msamil.slide import open_slide
from napari_msamil.slide.array_slide import ArraySlide
from napari_msamil.tissue import (
    find_tissue,
    glass_colour,
    is_dark_field,
    pen_of,
    thumbnail_size,
    tissue_of,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SPEC = TissueSpec()
EOSIN, NUCLEI, GLASS = (222, 160, 200), (120, 90, 160), (243, 241, 244)
MPP = 8.0


def stained(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Pink and violet texture as H&E looks from far away."""
    share = ndimage.gaussian_filter(rng.random(shape), 1.5)
    share = np.clip((share - share.mean()) / (4 * share.std()) + 0.4, 0, 1)[..., None]
    colour = np.asarray(EOSIN) * (1 - share) + np.asarray(NUCLEI) * share
    return (colour + rng.normal(0, 2, (*shape, 3))).clip(0, 255).astype(np.uint8)


def scene(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A disc of tissue on glass with a little noise, 151 × 203 pixels."""
    glass = np.asarray(GLASS) + rng.normal(0, 1.5, (151, 203, 3))
    pixels = glass.clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:151, :203]
    disc = (x - 90) ** 2 + (y - 75) ** 2 < 45**2
    pixels[disc] = stained(rng, disc.shape)[disc]
    return pixels, disc


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_disc_of_tissue_is_found_where_it_lies(rng: np.random.Generator) -> None:
    pixels, disc = scene(rng)
    assert overlap(tissue_of(pixels, SPEC, MPP), disc) > 0.93


@pytest.mark.parametrize(
    ("name", "ink"),
    [
        ("black", (25, 24, 28)),
        ("blue", (25, 45, 170)),
        ("green", (20, 120, 60)),
        ("red", (200, 25, 30)),
    ],
)
def test_pen_beside_and_over_tissue_is_taken_out(
    rng: np.random.Generator, name: str, ink: tuple[int, int, int]
) -> None:
    pixels, disc = scene(rng)
    stroke = Image.new("1", (203, 151))
    ImageDraw.Draw(stroke).line([(150, 5), (185, 140), (60, 75)], fill=1, width=7)
    marked = np.asarray(stroke)
    pixels[marked] = ink
    found = tissue_of(pixels, SPEC, MPP)
    assert found[marked].mean() < 0.02, name
    kept = disc & ~ndimage.binary_dilation(marked, iterations=3)
    assert found[kept].mean() > 0.95
    with_pen = tissue_of(pixels, SPEC.model_copy(update={"remove_pen": False}), MPP)
    if name != "black":
        assert with_pen[marked].mean() > 0.5


@pytest.mark.parametrize(
    "ink", [(34, 32, 40), (28, 58, 160), (24, 112, 70), (170, 36, 44)]
)
def test_ink_that_lets_the_tissue_shine_through_is_taken_out(
    rng: np.random.Generator, ink: tuple[int, int, int]
) -> None:
    pixels, _ = scene(rng)
    stroke = Image.new("1", (203, 151))
    ImageDraw.Draw(stroke).line([(70, 40), (85, 110)], fill=1, width=7)
    marked = np.asarray(stroke)
    pixels[marked] = pixels[marked] * 0.255 + np.asarray(ink) * 0.745
    found = pen_of(pixels, SPEC, MPP)
    assert found[marked].mean() > 0.98
    assert not found[~ndimage.binary_dilation(marked, iterations=4)].any()
    assert tissue_of(pixels, SPEC, MPP)[marked].mean() < 0.02
    stays = SPEC.model_copy(update={"remove_pen": False})
    assert not pen_of(pixels, stays, MPP).any()


def test_dull_glass_is_not_taken_for_ink(rng: np.random.Generator) -> None:
    pixels, disc = scene(rng)
    dull = (pixels * np.asarray((0.64, 0.70, 0.67))).astype(np.uint8)
    assert not pen_of(dull, SPEC, MPP).any()
    assert overlap(tissue_of(dull, SPEC, MPP), disc) > 0.9


def test_specks_bubbles_and_slide_edges_are_no_tissue(rng: np.random.Generator) -> None:
    pixels, disc = scene(rng)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((150, 20, 195, 65), outline=(150, 148, 155), width=2)
    draw.line((0, 148, 202, 146), fill=(190, 180, 205), width=1)
    draw.rectangle((198, 0, 202, 150), fill=(40, 40, 42))
    draw.rectangle((5, 5, 9, 9), fill=NUCLEI)
    found = tissue_of(np.asarray(picture), SPEC, MPP)
    assert overlap(found, disc) > 0.93
    assert not found[:, 145:].any()
    assert not found[:15, :15].any()


def test_small_holes_are_filled_and_large_ones_kept(rng: np.random.Generator) -> None:
    pixels, _ = scene(rng)
    pixels[70:78, 55:63] = GLASS
    pixels[60:95, 80:115] = GLASS
    found = tissue_of(pixels, SPEC, MPP)
    assert found[70:78, 55:63].all()
    assert not found[65:90, 85:110].any()


def test_dark_field_takes_the_glow_and_not_the_black(rng: np.random.Generator) -> None:
    _, disc = scene(rng)
    pixels = np.zeros((*disc.shape, 3), dtype=np.uint8)
    pixels[..., 0] = np.where(disc, rng.integers(6, 40, disc.shape), 0)
    assert is_dark_field(pixels)
    assert overlap(tissue_of(pixels, SPEC, MPP), disc) > 0.88


@pytest.mark.parametrize("grey", [0, 128, 240, 255])
def test_an_even_picture_has_no_tissue(grey: int) -> None:
    pixels = np.full((64, 77, 3), grey, dtype=np.uint8)
    assert not tissue_of(pixels, SPEC, MPP).any()


def test_noise_on_empty_glass_is_no_tissue(rng: np.random.Generator) -> None:
    pixels = (np.asarray(GLASS) + rng.normal(0, 3, (211, 190, 3))).clip(0, 255)
    assert not tissue_of(pixels.astype(np.uint8), SPEC, MPP).any()


def test_a_picture_full_of_tissue_is_all_tissue(rng: np.random.Generator) -> None:
    found = tissue_of(stained(rng, (120, 140)), SPEC, MPP)
    assert found.mean() > 0.97


def test_glass_is_measured_not_assumed(rng: np.random.Generator) -> None:
    tinted = np.full((90, 90, 3), (214, 205, 190), dtype=np.uint8)
    tinted[20:60, 20:60] = stained(rng, (40, 40))
    assert glass_colour(tinted).tolist() == [214, 205, 190]
    found = tissue_of(tinted, SPEC, MPP)
    assert overlap(found, np.pad(np.ones((40, 40), bool), ((20, 30), (20, 30)))) > 0.9


def test_thumbnail_has_the_resolution_asked_for_within_its_bound() -> None:
    slide = ArraySlide(np.full((320, 480, 3), 240, np.uint8), mpp=0.5)
    assert thumbnail_size(slide.info, SPEC) == (30, 20)
    bounded = TissueSpec(mpp=0.5, max_side_px=96)
    assert thumbnail_size(slide.info, bounded) == (96, 64)
    unknown = ArraySlide(np.full((320, 480, 3), 240, np.uint8))
    assert thumbnail_size(unknown.info, SPEC) == (480, 320)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("CMU-1-Small-Region.svs", 0.30, 0.45),
        ("dicom_CMU-1-Small-Region", 0.30, 0.45),
        ("dicom_camelyon_jpeg", 0.17, 0.30),
        ("tcga-cr-7395_generic_bigtiff_5level.tif", 0.58, 0.72),
        ("stritt_TRITC.ndpi", 0.75, 0.95),
        ("yb10kx5k.zstd.tiff", 0.0, 0.0),
        ("boxes.tiff", 0.0, 0.0),
        ("small.svs", 0.0, 0.0),
        ("dicom_highdicom_sm_image", 0.0, 0.0),
    ],
)
def test_real_slides(shared_data: Path, name: str, low: float, high: float) -> None:
    with open_slide(shared_data / "slides" / name) as slide:
        found = find_tissue(slide, SPEC)
    assert found.source is MaskSource.TISSUE
    assert found.size_wh0 == slide.info.size_wh0
    assert low <= found.fraction <= high


def test_real_pen_marks(shared_data: Path) -> None:
    def load(name: str) -> NDArray[np.uint8]:
        path = shared_data / "thumbnails" / f"histolab_tcga-{name}.png"
        return np.asarray(Image.open(path).convert("RGB"))

    green = tissue_of(load("green-pen"), SPEC, MPP)
    assert green[100:140, 350:430].mean() < 0.05
    assert green[560:620, 190:280].mean() < 0.05
    assert green[250:500, 480:720].mean() > 0.95
    red = tissue_of(load("red-pen"), SPEC, MPP)
    assert not red[180:300, 60:120].any()
    assert red[180:330, 220:440].mean() > 0.95
    assert tissue_of(load("lung-rgb"), SPEC, 1.0).mean() > 0.7


def test_no_ink_is_seen_on_real_tissue_without_any(shared_data: Path) -> None:
    """H&E, a Ki-67 stain, and biopsy tiles at a magnification where nuclei are as large as strokes."""
    pictures = []
    for name in (
        "slides/CMU-1-Small-Region.svs",
        "slides/tcga-cr-7395_generic_bigtiff_5level.tif",
        "images/OS-2-ndpi.ome.tif",
    ):
        with open_slide(shared_data / name) as slide:
            pictures.append(slide.thumbnail(thumbnail_size(slide.info, SPEC)))
    tiles = sorted((shared_data / "tiles/ebhi_seg").glob("*/images/*.png"))[::8]
    pictures += [np.asarray(Image.open(tile).convert("RGB")) for tile in tiles]
    assert len(pictures) > 18
    flagged = [float(pen_of(picture, SPEC, MPP).mean()) for picture in pictures]
    assert max(flagged) == 0.0
