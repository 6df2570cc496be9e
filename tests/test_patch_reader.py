"""Patches read fast are the patches that `read_patch` defines, and nothing is decoded twice."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from napari_msamil.cells import Cells, cell_grid
from napari_msamil.config import PatchSpec, ReadLevel, Resampler, ScaleSpec, Strategy
from napari_msamil.errors import RegionError
from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.patch_reader import (
    LEAD,
    PatchReader,
    patch_source,
    read_patch,
    read_patches,
    reading_order,
)
from napari_msamil.patches import PatchGrid, make_grid
from napari_msamil.slide import open_slide
from napari_msamil.slide.array_slide import ArraySlide

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SCALES = (
    ScaleSpec(name="20x", mpp=0.5, size_px=24),
    ScaleSpec(name="10x", mpp=1.0, size_px=24),
    ScaleSpec(name="5x", mpp=2.0, size_px=24),
)


def noise_slide(
    width: int = 331,
    height: int = 257,
    downsamples: tuple[float, ...] = (1, 2, 4),
    *,
    mpp: float = 0.5,
    tile_wh: tuple[int, int] = (37, 29),
    seed: int = 3,
) -> ArraySlide:
    rng = np.random.default_rng(seed)
    levels = [
        rng.integers(
            0, 256, (max(1, int(height / d)), max(1, int(width / d)), 3), np.uint8
        )
        for d in downsamples
    ]
    return ArraySlide(levels, mpp=mpp, tile_size_wh=tile_wh)


class BlockSlide(ArraySlide):
    """A slide that cannot decode single tiles, as behind OpenSlide."""

    tile = None  # type: ignore[assignment]


class DamagedSlide(ArraySlide):
    """One storage tile of level 0 cannot be decoded."""

    bad = (2, 1)

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        if level == 0 and (column, row) == self.bad:
            raise RegionError("tile 2, 1 is damaged")
        return super().tile(level, column, row)


def grid_of(
    slide: ArraySlide, scales: tuple[ScaleSpec, ...] = SCALES, **options: object
) -> PatchGrid:
    spec = PatchSpec(scales=scales, strategy=Strategy.TISSUE, **options)  # type: ignore[arg-type]
    everything = SlideMask(np.ones((5, 7), bool), slide.info.size_wh0, MaskSource.USER)
    return make_grid(slide.info, spec, everything)


def all_patches(reader: PatchReader) -> dict[int, NDArray[np.uint8]]:
    return {
        int(i): pixels
        for batch in reader
        for i, pixels in zip(batch.index, batch.pixels, strict=True)
    }


def assert_equal_to_definition(
    slide: ArraySlide, grid: PatchGrid, **options: int
) -> None:
    found = all_patches(PatchReader(slide, grid, **options))
    assert sorted(found) == list(range(len(grid)))
    for index, pixels in found.items():
        np.testing.assert_array_equal(pixels, read_patch(slide, grid, index))


slides = st.builds(
    noise_slide,
    width=st.integers(110, 400),
    height=st.integers(105, 300),
    downsamples=st.sampled_from([(1,), (1, 2, 4), (1, 4), (1, 1.997, 4.013), (1, 3.3)]),
    mpp=st.sampled_from([0.5, 0.499, 0.25, 0.3123]),
    tile_wh=st.tuples(st.integers(9, 70), st.integers(9, 70)),
    seed=st.integers(0, 9),
)


@settings(deadline=None, max_examples=40)
@given(
    slide=slides,
    resampler=st.sampled_from(Resampler),
    read_level=st.sampled_from(ReadLevel),
    stride=st.sampled_from([1.0, 0.5, 1.3]),
    blocks=st.booleans(),
)
def test_fast_reading_equals_the_definition_bit_for_bit(
    slide: ArraySlide,
    resampler: Resampler,
    read_level: ReadLevel,
    stride: float,
    *,
    blocks: bool,
) -> None:
    if blocks:
        slide = BlockSlide(slide._levels, info=slide.info)
    grid = grid_of(slide, resampler=resampler, read_level=read_level, stride=stride)
    assert_equal_to_definition(slide, grid, batch_size=5, threads=3)


def test_the_definition_is_pillow_on_the_level_pixels() -> None:
    slide = noise_slide(downsamples=(1, 2.3))
    grid = grid_of(slide, SCALES[1:2])
    index = 4
    source = patch_source(slide.info, grid, 0)
    x, y = grid.coords_xy0[index] / slide.info.level_downsamples[1]
    side = grid.size_px0[0] / slide.info.level_downsamples[1]
    left, top = int(x), int(y)
    right, bottom = int(np.ceil(x + side)), int(np.ceil(y + side))
    crop = Image.fromarray(slide._levels[1][top:bottom, left:right])
    box = (x - left, y - top, x + side - left, y + side - top)
    expected = crop.resize((24, 24), Image.Resampling.BILINEAR, box)
    assert source.level == 1
    np.testing.assert_array_equal(read_patch(slide, grid, index), np.asarray(expected))


@pytest.mark.parametrize("mpp", [0.499, 0.5, 0.501])
def test_a_hair_in_the_pixel_size_does_not_halve_the_detail(mpp: float) -> None:
    slide = noise_slide(downsamples=(1, 4), mpp=mpp)
    grid = grid_of(slide)
    levels = [patch_source(slide.info, grid, k).level for k in range(3)]
    assert levels == [0, 0, 1]


@pytest.mark.parametrize("downsamples", [(1,), (1, 4), (1, 2, 4)])
def test_each_tile_under_the_selection_is_decoded_exactly_once(
    downsamples: tuple[float, ...],
) -> None:
    slide = noise_slide(downsamples=downsamples)
    grid = grid_of(slide)
    reader = PatchReader(slide, grid, threads=3)
    all_patches(reader)
    tiles = set()
    for index in range(len(grid)):
        source = patch_source(slide.info, grid, int(grid.scale[index]))
        cells = cell_grid(slide, source.level)
        assert cells is not None
        region, _ = source.region(grid.coords_xy0[index])
        c1, c2, r1, r2 = cells.spans(np.array([region]))[0]
        tiles |= {
            (source.level, c, r) for c in range(c1, c2 + 1) for r in range(r1, r2 + 1)
        }
    assert reader.cells.decoded == len(tiles)


def test_decoded_cells_are_dropped_after_their_last_use() -> None:
    slide = noise_slide()
    reader = PatchReader(slide, grid_of(slide))
    all_patches(reader)
    assert not reader.cells._cells
    assert reader.cells._bytes == 0
    assert not reader.cells._uses


def test_a_small_bound_on_memory_costs_time_but_never_pixels() -> None:
    slide = noise_slide()
    grid = grid_of(slide)
    reader = PatchReader(slide, grid)
    reader.cells = Cells(slide, max_bytes=3 * 37 * 29 * 3)
    for index, pixels in all_patches(reader).items():
        np.testing.assert_array_equal(pixels, read_patch(slide, grid, index))


def test_no_more_than_the_bound_is_read_ahead() -> None:
    started = []

    class Counting(ArraySlide):
        def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
            started.append((level, column, row))
            return super().tile(level, column, row)

    base = noise_slide(900, 700, (1,), tile_wh=(24, 24))
    slide = Counting(base._levels, info=base.info)
    batches = read_patches(slide, grid_of(slide, SCALES[:1]), batch_size=4, threads=2)
    next(batches)
    before_close = len(started)
    batches.close()  # type: ignore[attr-defined]
    assert len(slide._levels) == 1
    assert before_close <= 4 + 2 * (4 + 2) + LEAD


def test_closing_stops_the_reading_threads() -> None:
    slide = noise_slide()
    batches = read_patches(slide, grid_of(slide), batch_size=2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("msamil-read")]


def test_a_damaged_tile_is_reported_and_only_its_patches_are_left_out() -> None:
    whole = noise_slide()
    slide = DamagedSlide(whole._levels, info=whole.info)
    grid = grid_of(slide)
    faults: dict[int, str] = {}
    reader = PatchReader(slide, grid, on_fault=lambda i, e: faults.update({i: str(e)}))
    found = all_patches(reader)
    left, top = 2 * 37, 1 * 29
    x, y, w, h = grid.boxes_xywh0.T
    touching = (x < left + 37) & (x + w > left) & (y < top + 29) & (y + h > top)
    expected = set(np.flatnonzero(touching & (grid.scale == 0)).tolist())
    assert set(faults) == expected
    assert set(faults.values()) == {"tile 2, 1 is damaged"}
    assert set(found) == set(range(len(grid))) - expected
    for index, pixels in found.items():
        np.testing.assert_array_equal(pixels, read_patch(whole, grid, index))


def test_without_a_listener_a_damaged_tile_raises() -> None:
    whole = noise_slide()
    slide = DamagedSlide(whole._levels, info=whole.info)
    with pytest.raises(RegionError, match="damaged"):
        list(read_patches(slide, grid_of(slide)))


def test_coarse_levels_come_first_and_every_patch_once() -> None:
    slide = noise_slide()
    grid = grid_of(slide)
    order = reading_order(slide.info, grid)
    assert sorted(order) == list(range(len(grid)))
    assert (np.diff(grid.scale[order]) <= 0).all()


def test_scales_of_one_level_are_read_block_by_block() -> None:
    slide = noise_slide(downsamples=(1,))
    grid = grid_of(slide)
    order = reading_order(slide.info, grid)
    family = grid.size_px0[2]
    blocks = [tuple(b) for b in (grid.coords_xy0[order] // family).tolist()]
    changes = 1 + sum(a != b for a, b in itertools.pairwise(blocks))
    assert changes == len(set(blocks))


def test_an_order_of_some_patches_is_kept() -> None:
    slide = noise_slide()
    grid = grid_of(slide, SCALES[:1])
    wanted = np.array([7, 2, 9, 4, 0])
    batches = list(read_patches(slide, grid, order=wanted, batch_size=2))
    assert np.concatenate([b.index for b in batches]).tolist() == wanted.tolist()
    assert [len(b.index) for b in batches] == [2, 2, 1]


def test_patches_of_different_sizes_are_never_in_one_batch() -> None:
    scales = (SCALES[0], ScaleSpec(name="5x", mpp=2.0, size_px=16))
    slide = noise_slide(downsamples=(1,))
    grid = grid_of(slide, scales)
    for batch in read_patches(slide, grid, batch_size=6):
        sizes = {scales[k].size_px for k in grid.scale[batch.index]}
        assert sizes == {batch.pixels.shape[1]}


def test_openslide_levels_with_fractional_downsamples_are_not_cut_into_cells(
    shared_data: Path,
) -> None:
    path = shared_data / "slides" / "tcga-cr-7395_generic_bigtiff_5level.tif"
    with open_slide(path, backend="openslide") as slide:
        assert cell_grid(slide, 0) is not None
        assert cell_grid(slide, 2) is None


@pytest.mark.parametrize("backend", ["openslide", "auto"])
@pytest.mark.parametrize(
    "name",
    [
        "tcga-cr-7395_generic_bigtiff_5level.tif",
        "CMU-1-Small-Region.svs",
        "stritt_TRITC.ndpi",
    ],
)
def test_real_slides_fast_equals_definition(
    shared_data: Path, name: str, backend: str
) -> None:
    scales = tuple(s.model_copy(update={"size_px": 200}) for s in SCALES)
    with open_slide(shared_data / "slides" / name, backend=backend) as slide:
        grid = grid_of(slide, scales, random_counts=(9, 5, 3), stride=1.7)  # type: ignore[arg-type]
        assert_equal_to_definition(slide, grid)  # type: ignore[arg-type]
