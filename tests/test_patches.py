"""Selection of patches: shares against brute force, the paper's order, strategies and fallbacks."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.config import Fallback, PatchSpec, ScaleSpec, Strategy
from napari_msamil.errors import ConfigError, ResolutionError, SelectionError
from napari_msamil.masks import MaskSource, SlideMask, lattice_shares
from napari_msamil.patches import (
    box_fractions,
    count_patches,
    make_grid,
    paper_order,
    patch_sizes_px0,
)
from napari_msamil.slide.base import MppSource, SlideInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALL = PatchSpec(
    scales=(
        ScaleSpec(name="20x", mpp=0.5, size_px=32),
        ScaleSpec(name="10x", mpp=1.0, size_px=32),
        ScaleSpec(name="5x", mpp=2.0, size_px=32),
    ),
    random_counts=(9, 4, 2),
)


def slide_info(width: int, height: int, mpp: float | None = 0.5) -> SlideInfo:
    return SlideInfo(
        path=Path("case 7.svs"),
        vendor="array",
        backend="array",
        level_sizes_wh=((width, height),),
        level_downsamples=(1.0,),
        level_tile_sizes_wh=((256, 256),),
        mpp=mpp,
        mpp_yx=None if mpp is None else (mpp, mpp),
        mpp_source=None if mpp is None else MppSource.USER,
    )


def slide_mask(array: NDArray[np.bool_], info: SlideInfo) -> SlideMask:
    return SlideMask(array, info.size_wh0, MaskSource.USER)


def full_mask(info: SlideInfo, value: bool = True) -> SlideMask:
    return slide_mask(np.full((64, 64), value), info)


def share_by_hand(mask: SlideMask, box: tuple[int, int, int, int]) -> Fraction:
    """Marked area of the box in exact arithmetic, cell by cell."""
    height, width = mask.mask.shape
    step_x, step_y = (
        Fraction(mask.size_wh0[0], width),
        Fraction(mask.size_wh0[1], height),
    )
    left, top, w, h = (Fraction(v) for v in box)
    total = Fraction(0)
    for row, column in zip(*np.nonzero(mask.mask), strict=True):
        x = min(left + w, step_x * (int(column) + 1)) - max(left, step_x * int(column))
        y = min(top + h, step_y * (int(row) + 1)) - max(top, step_y * int(row))
        total += max(x, Fraction(0)) * max(y, Fraction(0))
    return total / (w * h)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_lesion_share_is_the_exact_area_average(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 13), st.integers(1, 13)))
    size = data.draw(st.tuples(st.integers(5, 900), st.integers(5, 900)))
    seed = data.draw(st.integers(0, 2**31))
    mask = SlideMask(
        np.random.default_rng(seed).random(shape) < 0.6, size, MaskSource.USER
    )
    box = data.draw(
        st.tuples(
            st.integers(-20, size[0]),
            st.integers(-20, size[1]),
            st.integers(1, size[0] + 40),
            st.integers(1, size[1] + 40),
        )
    )
    found = box_fractions(mask, np.array([box]))
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(float(share_by_hand(mask, box)), abs=1e-7)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_shares_of_a_lattice_are_those_of_its_boxes(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 13), st.integers(1, 13)))
    size = data.draw(st.tuples(st.integers(5, 900), st.integers(5, 900)))
    seed, side = data.draw(st.integers(0, 2**31)), data.draw(st.integers(1, 300))
    rng = np.random.default_rng(seed)
    mask = SlideMask(rng.random(shape) < 0.6, size, MaskSource.USER)
    x0, y0 = np.sort(rng.integers(0, size[0], 5)), np.sort(rng.integers(0, size[1], 3))
    corners = np.stack(np.meshgrid(x0, y0, indexing="ij"), -1).reshape(-1, 2)
    boxes = np.column_stack([corners, np.full((15, 2), side)])
    found = lattice_shares(mask, x0, y0, side)
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found.ravel(), box_fractions(mask, boxes), atol=2e-7)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_patches_are_counted_as_they_are_selected(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(130, 700)), data.draw(st.integers(30, 700))
    info = slide_info(width, height)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    likely = data.draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    mask = slide_mask(rng.random((13, 9)) < likely, info)
    tissue = data.draw(st.sampled_from([None, full_mask(info)]))
    spec = SMALL.model_copy(
        update={
            "strategy": data.draw(st.sampled_from(list(Strategy))),
            "fallback": data.draw(st.sampled_from(list(Fallback))),
            "max_patches": data.draw(st.sampled_from([None, 3, 40])),
        }
    )
    found = []
    for select in (make_grid, count_patches):
        try:
            made = select(info, spec, mask, tissue=tissue)
        except SelectionError as error:
            found.append(str(error))
        else:
            counts = made.counts if select is make_grid else made.by_scale
            found.append((counts, made.warnings))
    assert found[0] == found[1]


def test_share_of_the_papers_mask_with_unequal_factors() -> None:
    rng = np.random.default_rng(3)
    mask = SlideMask(rng.random((1024, 1024)) < 0.5, (40_003, 71_111), MaskSource.MODEL)
    whole = box_fractions(mask, np.array([[0, 0, 40_003, 71_111]]))
    assert whole[0] == pytest.approx(mask.mask.mean(), abs=1e-7)


def test_sides_are_nested_and_physical() -> None:
    assert patch_sizes_px0(PatchSpec(), 0.5) == (512, 1024, 2048)
    assert patch_sizes_px0(PatchSpec(), 0.25) == (1024, 2048, 4096)
    assert patch_sizes_px0(PatchSpec(), 0.499) == (513, 1026, 2052)
    odd = PatchSpec(
        scales=(
            ScaleSpec(name="a", mpp=0.5, size_px=100),
            ScaleSpec(name="b", mpp=0.75, size_px=100),
        )
    )
    assert patch_sizes_px0(odd, 0.5) == (100, 150)


@settings(deadline=None, max_examples=50)
@given(mpp=st.floats(0.1, 0.62))
def test_every_family_is_nested_at_any_resolution(mpp: float) -> None:
    fine, middle, coarse = patch_sizes_px0(PatchSpec(), mpp)
    assert (middle, coarse) == (2 * fine, 4 * fine)
    assert abs(fine - 256 / mpp) <= 0.5


def test_order_is_the_one_the_paper_prints() -> None:
    """One 5x patch C1 with its 10x and 20x families, named as in section 3.3.1: down the columns."""
    coords, scale, names = [], [], []
    for letter, index, count in (("A", 0, 4), ("B", 1, 2), ("C", 2, 1)):
        side = 512 * 2**index
        for column in range(count):
            for row in range(count):
                coords.append((column * side, row * side))
                scale.append(index)
                names.append(f"{letter}{column * count + row + 1}")
    shuffled = np.random.default_rng(0).permutation(len(names))
    order = paper_order(
        np.array(coords)[shuffled],
        (512, 1024, 2048),
        np.array(scale, dtype=np.int8)[shuffled],
    )
    sequence = " ".join(names[i] for i in shuffled[order])
    assert sequence == (
        "A1 A2 A3 A4 B1 B2 A5 A6 A7 A8 C1 A9 A10 A11 A12 B3 B4 A13 A14 A15 A16"
    )


def test_a_full_mask_gives_the_papers_ratio_of_counts() -> None:
    info = slide_info(28_672, 40_960)
    grid = make_grid(info, PatchSpec(), full_mask(info))
    assert grid.counts == {"20x": 56 * 80, "10x": 28 * 40, "5x": 14 * 20}
    assert np.all(grid.lesion_fraction == 1)


def test_only_full_patches_are_taken() -> None:
    info = slide_info(12 * 32 + 31, 8 * 32 + 5)
    grid = make_grid(info, SMALL, full_mask(info))
    ends = grid.boxes_xywh0[:, :2] + grid.boxes_xywh0[:, 2:]
    assert np.all(ends <= info.size_wh0)
    assert grid.counts == {"20x": 96, "10x": 24, "5x": 6}


def test_threshold_is_strict() -> None:
    info = slide_info(128, 128)
    array = np.zeros((10, 10), dtype=bool)
    array[:7] = True
    spec = SMALL.model_copy(
        update={"scales": SMALL.scales[2:], "fallback": Fallback.ERROR}
    )
    with pytest.raises(SelectionError, match=r"more than 70% lesion"):
        make_grid(info, spec, slide_mask(array, info))
    array[7, 0] = True
    assert len(make_grid(info, spec, slide_mask(array, info))) == 1


@settings(deadline=None, max_examples=20)
@given(
    width=st.integers(130, 330),
    height=st.integers(130, 330),
    seed=st.integers(0, 999),
    threshold=st.floats(0.0, 0.95),
)
def test_kept_patches_are_exactly_those_above_the_threshold(
    width: int, height: int, seed: int, threshold: float
) -> None:
    info = slide_info(width, height)
    rng = np.random.default_rng(seed)
    mask = slide_mask(np.repeat(rng.random((7, 9)) < 0.7, 3, axis=0), info)
    spec = SMALL.model_copy(
        update={"lesion_threshold": threshold, "fallback": Fallback.ERROR}
    )
    expected = set()
    for index, side in enumerate((32, 64, 128)):
        for x in range(0, width - side + 1, side):
            for y in range(0, height - side + 1, side):
                share = float(share_by_hand(mask, (x, y, side, side)))
                if share > threshold + 1e-9:
                    expected.add((x, y, index))
    if not expected:
        with pytest.raises(SelectionError):
            make_grid(info, spec, mask)
        return
    grid = make_grid(info, spec, mask)
    found = {
        (int(x), int(y), int(s))
        for (x, y), s in zip(grid.coords_xy0, grid.scale, strict=True)
    }
    assert found == expected
    order = paper_order(grid.coords_xy0, grid.size_px0, grid.scale)
    assert np.array_equal(order, np.arange(len(grid)))


def test_tissue_strategy_uses_the_tissue_mask() -> None:
    info = slide_info(512, 512)
    tissue = np.zeros((8, 8), dtype=bool)
    tissue[:4] = True
    spec = SMALL.model_copy(update={"strategy": Strategy.TISSUE})
    grid = make_grid(
        info, spec, full_mask(info, False), tissue=slide_mask(tissue, info)
    )
    assert grid.counts == {"20x": 128, "10x": 32, "5x": 8}


def test_random_choice_is_seeded_and_lies_in_the_tissue() -> None:
    info = slide_info(1024, 1024)
    tissue = np.zeros((8, 8), dtype=bool)
    tissue[:, :3] = True
    mask = slide_mask(tissue, info)
    spec = SMALL.model_copy(update={"strategy": Strategy.RANDOM})
    one, two = (make_grid(info, spec, mask, tissue=mask) for _ in range(2))
    other = make_grid(info, spec.model_copy(update={"seed": 1}), mask, tissue=mask)
    assert one.counts == {"20x": 9, "10x": 4, "5x": 2}
    assert np.array_equal(one.coords_xy0, two.coords_xy0)
    assert not np.array_equal(one.coords_xy0, other.coords_xy0)
    assert np.all(one.coords_xy0[:, 0] < 384)


def test_random_takes_all_where_there_are_fewer_than_asked_for() -> None:
    info = slide_info(256, 128)
    spec = SMALL.model_copy(
        update={"strategy": Strategy.RANDOM, "random_counts": (2300, 570, 130)}
    )
    grid = make_grid(info, spec, full_mask(info))
    assert grid.counts == {"20x": 32, "10x": 8, "5x": 2}
    with pytest.raises(ConfigError, match="2 numbers for 3 scales"):
        make_grid(
            info, spec.model_copy(update={"random_counts": (1, 1)}), full_mask(info)
        )


def test_cap_keeps_the_largest_shares_and_breaks_ties_by_position() -> None:
    info = slide_info(256, 256)
    array = np.ones((8, 8), dtype=bool)
    array[0, 0] = False
    spec = SMALL.model_copy(update={"max_patches": 3, "lesion_threshold": 0.5})
    grid = make_grid(info, spec, slide_mask(array, info))
    finest = grid.coords_xy0[grid.scale == 0]
    assert finest.tolist() == [[0, 32], [0, 64], [0, 96]]
    assert grid.counts == {"20x": 3, "10x": 3, "5x": 3}
    assert grid.lesion_fraction[grid.scale == 1].tolist() == [1, 1, 1]


def test_fallback_takes_the_largest_shares_and_says_so() -> None:
    info = slide_info(256, 256)
    array = np.zeros((16, 16), dtype=bool)
    array[4, 4] = True
    grid = make_grid(info, SMALL, slide_mask(array, info))
    assert grid.counts == {"20x": 1, "10x": 1, "5x": 1}
    assert grid.lesion_fraction.max() == pytest.approx(0.25)
    assert "largest share 25.0%" in grid.warnings[0]


def test_fallback_to_tissue_and_to_an_error() -> None:
    info = slide_info(256, 256)
    empty, tissue = full_mask(info, False), full_mask(info)
    to_tissue = SMALL.model_copy(update={"fallback": Fallback.TISSUE})
    assert len(make_grid(info, to_tissue, empty, tissue=tissue)) == 64 + 16 + 4
    to_error = SMALL.model_copy(update={"fallback": Fallback.ERROR})
    with pytest.raises(SelectionError, match=r"None of the 84 patches of case 7\.svs"):
        make_grid(info, to_error, empty, tissue=tissue)


def test_an_empty_mask_falls_back_to_tissue_or_fails_without_any() -> None:
    info = slide_info(256, 256)
    grid = make_grid(info, SMALL, full_mask(info, False), tissue=full_mask(info))
    assert grid.counts == {"20x": 12, "10x": 12, "5x": 4}
    assert "no lesion was found" in grid.warnings[0]
    with pytest.raises(SelectionError, match=r"largest share 0.0%"):
        make_grid(info, SMALL, full_mask(info, False), tissue=full_mask(info, False))


def test_an_empty_model_mask_falls_back_to_the_likeliest_tissue() -> None:
    info = slide_info(256, 256)
    probability = np.zeros((8, 8), dtype=np.float32)
    probability[0, 0], probability[5, 5], probability[5, 6] = 0.4, 0.3, 0.2
    mask = SlideMask(probability > 0.5, info.size_wh0, MaskSource.MODEL, probability)
    tissue = np.ones((8, 8), dtype=bool)
    tissue[0, 0] = False
    spec = SMALL.model_copy(update={"scales": SMALL.scales[:1], "fallback_count": 2})
    grid = make_grid(info, spec, mask, tissue=slide_mask(tissue, info))
    assert grid.coords_xy0.tolist() == [[160, 160], [192, 160]]
    assert "largest lesion probability" in grid.warnings[0]
    blank = slide_mask(np.zeros((8, 8), dtype=bool), info)
    with pytest.raises(SelectionError, match="no lesion was found at all"):
        make_grid(info, spec, mask, tissue=blank)


def test_a_slide_smaller_than_a_patch_is_refused_with_numbers() -> None:
    info = slide_info(16, 16)
    with pytest.raises(SelectionError, match=r"16 × 16 px.*20x \(32 px\)"):
        make_grid(info, SMALL, full_mask(info))


def test_scales_that_do_not_fit_are_left_out_with_a_warning() -> None:
    info = slide_info(100, 70)
    grid = make_grid(info, SMALL, full_mask(info))
    assert grid.counts == {"20x": 6, "10x": 1, "5x": 0}
    assert "5x (128 px)" in grid.warnings[0]


def test_a_slide_coarser_than_the_model_is_refused() -> None:
    info = slide_info(4000, 4000, mpp=2.0)
    with pytest.raises(
        ResolutionError, match=r"case 7\.svs has 2 µm per pixel .* 0\.5 is needed"
    ):
        make_grid(info, SMALL, full_mask(info))
    near = slide_info(4000, 4000, mpp=0.6)
    assert len(make_grid(near, SMALL, full_mask(near)))
    with pytest.raises(ResolutionError):
        make_grid(slide_info(4000, 4000, mpp=None), SMALL, full_mask(info))
