"""Which 256-pixel patches at 20x count as tissue: painted shapes of known places, and the rule CLAM describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import ndimage

from napari_msamil.config import PatchSpec, ScaleSpec, Strategy, TissueSpec
from napari_msamil.errors import SelectionError
from napari_msamil.patches import make_grid
from napari_msamil.slide.array_slide import ArraySlide
from napari_msamil.tissue import find_tissue

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 256
WIDTH, HEIGHT = 2077, 1811
"""Eight columns and seven rows of whole patches, and a rest on both sides."""
SPEC = PatchSpec(
    scales=(ScaleSpec(name="20x", mpp=0.5, size_px=SIDE),), strategy=Strategy.TISSUE
)
GLASS, EOSIN, NUCLEI = (243, 241, 244), (222, 160, 200), (120, 90, 160)
Box = tuple[int, int, int, int]
TISSUE: list[Box] = [
    (502, 310, 1320, 1330),
    (1700, 1270, 1920, 1770),
    (0, 1590, 470, 1811),
]
HOLE: Box = (700, 480, 1090, 830)
"""34 125 µm², more than what is filled, and a whole patch lies in it."""
PORE: Box = (771, 1027, 1021, 1277)
"""15 625 µm²: filled, though it takes all but 5 % of a patch."""
SPECK: Box = (1820, 20, 2000, 220)
"""9000 µm²: dropped, though it is half of a patch."""


def fill(mask: NDArray[np.bool_], box: Box, value: bool) -> None:
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = value


def tissue_map() -> NDArray[np.bool_]:
    """What is tissue by the documented rule."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    for box in TISSUE:
        fill(mask, box, value=True)
    fill(mask, HOLE, value=False)
    return mask


def painted_slide(rng: np.random.Generator) -> NDArray[np.uint8]:
    stained = tissue_map()
    fill(stained, PORE, value=False)
    fill(stained, SPECK, value=True)
    share = ndimage.zoom(rng.random((HEIGHT // 6 + 1, WIDTH // 6 + 1)), 6, order=1)
    share = share[:HEIGHT, :WIDTH, None]
    colour = np.asarray(EOSIN) * (1 - share) + np.asarray(NUCLEI) * share
    pixels = np.where(stained[..., None], colour, np.asarray(GLASS))
    noisy = pixels + rng.integers(-3, 4, pixels.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def cells() -> list[tuple[int, int]]:
    return [(x, y) for x in range(WIDTH // SIDE) for y in range(HEIGHT // SIDE)]


def share_of(mask: NDArray[np.bool_], cell: tuple[int, int]) -> float:
    x, y = cell[0] * SIDE, cell[1] * SIDE
    return float(mask[y : y + SIDE, x : x + SIDE].mean())


def kept_of(pixels: NDArray[np.uint8], mpp: float = 0.5) -> set[tuple[int, int]]:
    """Column and row of each patch that the product keeps."""
    slide = ArraySlide(pixels, mpp=mpp)
    tissue = find_tissue(slide, TissueSpec())
    grid = make_grid(slide.info, SPEC, tissue, tissue=tissue)
    side = round(SIDE * 0.5 / mpp)
    assert grid.size_px0 == (side,)
    assert not (grid.coords_xy0 % side).any()
    return {(int(x) // side, int(y) // side) for x, y in grid.coords_xy0}


def clam_keeps(pixels: NDArray[np.uint8]) -> set[tuple[int, int]]:
    """CLAM's rule in short, with the areas in µm² that the product has.

    Saturation of a small picture, median of 7, above 8 of 255, closed by 4; small parts and small holes go; a patch is
    kept if one of four points half-way between its centre and its corners lies in what is left.
    """
    small = pixels[: HEIGHT // 16 * 16, : WIDTH // 16 * 16].astype(np.float64)
    small = small.reshape(HEIGHT // 16, 16, WIDTH // 16, 16, 3).mean((1, 3))
    saturation = 255 * (1 - small.min(2) / small.max(2))
    mask = ndimage.median_filter(saturation, 7) > 8
    mask = ndimage.binary_closing(np.pad(mask, 4), np.ones((4, 4), dtype=np.bool_))[
        4:-4, 4:-4
    ]
    mask = without_small(mask)
    mask = ~without_small(~mask)
    near = (SIDE // 4, 3 * SIDE // 4)
    points = [(a, b) for a in near for b in near]
    return {
        (x, y)
        for x, y in cells()
        if any(mask[(y * SIDE + b) // 16, (x * SIDE + a) // 16] for a, b in points)
    }


def without_small(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Parts of 20 000 µm² and more; a pixel has 8 × 8."""
    label, count = ndimage.label(mask)
    sizes = ndimage.sum_labels(mask, label, np.arange(count + 1))
    return np.asarray(sizes * 64 >= 20_000)[label]


@pytest.fixture
def pixels(rng: np.random.Generator) -> NDArray[np.uint8]:
    return painted_slide(rng)


def test_patches_with_more_than_a_tenth_of_tissue_are_kept_and_no_others(
    pixels: NDArray[np.uint8],
) -> None:
    shares = {cell: share_of(tissue_map(), cell) for cell in cells()}
    # nothing so near the tenth that the smoothed rim of the tissue would decide
    assert not [s for s in shares.values() if 0.06 < s < 0.12]
    kept = kept_of(pixels)
    assert kept == {cell for cell, share in shares.items() if share > 0.1}
    assert len(kept) == 24
    assert (3, 2) not in kept
    assert (3, 4) in kept
    assert (7, 0) not in kept


def test_a_scan_at_40x_keeps_the_same_places(pixels: NDArray[np.uint8]) -> None:
    fine = pixels.repeat(2, axis=0).repeat(2, axis=1)
    assert kept_of(fine, mpp=0.25) == kept_of(pixels)


def test_what_clam_keeps_is_kept_and_beyond_it_only_rims(
    pixels: NDArray[np.uint8],
) -> None:
    """The named difference: a tenth of the area is enough here, where CLAM asks points inside the patch."""
    ours, clam = kept_of(pixels), clam_keeps(pixels)
    assert clam <= ours
    rims = {cell: share_of(tissue_map(), cell) for cell in ours - clam}
    assert set(rims) == {(5, y) for y in range(1, 5)} | {(x, 5) for x in range(2, 5)}
    assert all(0.1 < share < 0.25 for share in rims.values())


def test_empty_glass_has_no_patch(rng: np.random.Generator) -> None:
    blank = np.asarray(GLASS) + rng.integers(-3, 4, (HEIGHT, WIDTH, 3))
    empty = blank.clip(0, 255).astype(np.uint8)
    assert clam_keeps(empty) == set()
    with pytest.raises(SelectionError, match="tissue"):
        kept_of(empty)
