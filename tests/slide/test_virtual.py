"""Virtual levels of slides that store none."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_msamil.errors import RegionError
from napari_msamil.progress import finish
from napari_msamil.slide.array_slide import ArraySlide
from napari_msamil.slide.preview import coarse_picture
from napari_msamil.slide.pyramid import lazy_pyramid
from napari_msamil.slide.virtual import VirtualPyramid, needs_virtual_levels
from napari_msamil.slide.virtual_stream import LevelStream, halved_sizes
from napari_msamil.slide.write import halve, write_pyramid_tiff

from .conftest import smooth_picture

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def large() -> NDArray[np.uint8]:
    return smooth_picture(1701, 2603)


class Faulty(ArraySlide):
    """A slide with one unreadable block, as a corrupt tile makes it."""

    def _read_inside(
        self, level: int, x: int, y: int, w: int, h: int
    ) -> NDArray[np.uint8]:
        if x < 1300 and x + w > 1280 and y < 790 and y + h > 768:
            raise RegionError("this block is corrupt")
        return super()._read_inside(level, x, y, w, h)


def test_only_slides_with_a_large_coarsest_level_need_virtual_ones(
    large: NDArray[np.uint8],
) -> None:
    wide = np.broadcast_to(large[:100, :1], (100, 4999, 3))
    assert needs_virtual_levels(ArraySlide(wide).info)
    assert not needs_virtual_levels(ArraySlide([wide, halve(wide)]).info)


def test_stream_makes_exactly_the_halves_of_the_whole(large: NDArray[np.uint8]) -> None:
    """Tile by tile, with bounded memory, and still the same pixels as halving the whole image."""
    sizes = halved_sizes((2603, 1701))
    assert sizes == [(1302, 851), (651, 426), (326, 213)]
    found = [np.zeros((h, w, 3), np.uint8) for w, h in sizes]

    def put(level: int, column: int, row: int, pixels: NDArray[np.uint8]) -> None:
        height, width = pixels.shape[:2]
        found[level - 1][
            row * 512 : row * 512 + height, column * 512 : column * 512 + width
        ] = pixels

    assert list(LevelStream(ArraySlide(large), put).bands()) == [1, 2]
    expected = large
    for level in found:
        expected = halve(expected)
        np.testing.assert_array_equal(level, expected)


def test_finished_levels_show_the_slide_and_are_found_again(
    tmp_path: Path, large: NDArray[np.uint8]
) -> None:
    slide = ArraySlide(large)
    pyramid = VirtualPyramid(slide, tmp_path)
    assert pyramid.level_sizes_wh == ((1302, 850), (651, 425), (325, 213))
    steps = []
    finish(pyramid.build(), steps.append)
    assert [step.done for step in steps] == [1, 2, 2]
    pyramid.close()
    again = VirtualPyramid(ArraySlide(large), tmp_path)
    assert again.is_complete
    expected = large
    for level, (width, height) in enumerate(again.level_sizes_wh, start=1):
        expected = halve(expected)
        pixels, is_final = again.read(level, 0, 0, width, height)
        assert is_final
        error = np.abs(pixels.astype(int) - expected[:height, :width])
        assert error.mean() < 6
    again.close()


def test_before_the_build_fine_levels_are_exact_and_coarse_ones_a_preview(
    tmp_path: Path, large: NDArray[np.uint8]
) -> None:
    pyramid = VirtualPyramid(ArraySlide(large), tmp_path)
    pixels, is_final = pyramid.read(2, 300, 100, 333, 222)
    assert is_final
    np.testing.assert_array_equal(pixels, halve(halve(large))[100:322, 300:633])
    coarse, is_final = pyramid.read(3, 0, 0, 325, 213)
    assert not is_final
    expected = halve(halve(halve(large)))[:213, :325]
    assert np.abs(coarse.astype(int) - expected).mean() < 40
    assert not list(tmp_path.iterdir())


def test_cancelled_build_leaves_no_file(
    tmp_path: Path, large: NDArray[np.uint8]
) -> None:
    pyramid = VirtualPyramid(ArraySlide(large), tmp_path)
    work = pyramid.build()
    next(work)
    assert len(list(tmp_path.iterdir())) == 1
    work.close()
    assert not list(tmp_path.iterdir())
    assert not pyramid.is_complete
    finish(pyramid.build())
    assert pyramid.is_complete


@pytest.mark.parametrize("damage", ["truncated", "text", "other slide"])
def test_damaged_cache_is_made_again(
    tmp_path: Path, large: NDArray[np.uint8], damage: str
) -> None:
    slide = ArraySlide(large)
    first = VirtualPyramid(slide, tmp_path)
    path = finish(first.build())
    first.close()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("no zip")
    else:
        other = ArraySlide(large[:, :2500])
        second = VirtualPyramid(other, tmp_path)
        finish(second.build())
        second.close()
        (tmp_path / f"{other.info.quickhash}.zip").replace(path)
    pyramid = VirtualPyramid(slide, tmp_path)
    assert not pyramid.is_complete
    finish(pyramid.build())
    assert pyramid.is_complete


def test_corrupt_block_is_striped_and_the_rest_is_shown(
    tmp_path: Path, large: NDArray[np.uint8]
) -> None:
    pyramid = VirtualPyramid(Faulty(large), tmp_path)
    finish(pyramid.build())
    pixels, _ = pyramid.read(1, 0, 0, 1301, 850)
    expected = halve(large)[:850, :1301].astype(int)
    wrong = np.abs(pixels - expected).max(axis=2) > 60
    rows, columns = np.nonzero(wrong)
    assert 380 <= rows.min() <= rows.max() < 516
    assert 636 <= columns.min() <= columns.max() < 772
    assert wrong[386:390, 642:648].any()


def test_background_build_ends_with_close(
    tmp_path: Path, large: NDArray[np.uint8]
) -> None:
    pyramid = VirtualPyramid(ArraySlide(large), tmp_path)
    first_step = threading.Event()
    pyramid.watch(lambda _: first_step.set())
    pyramid.start()
    assert first_step.wait(30)
    pyramid.close()
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("virtual")
    ]


def test_lazy_pyramid_adds_levels_and_reads_previews_again(
    tmp_path: Path, large: NDArray[np.uint8]
) -> None:
    slide = ArraySlide(large)
    virtual = VirtualPyramid(slide, tmp_path)
    levels = lazy_pyramid(slide, virtual=virtual)
    sizes = [level.shape[:2] for level in levels]
    assert sizes == [(1701, 2603), (850, 1302), (425, 651), (213, 325)]
    before = levels[-1].compute()
    finish(virtual.build())
    after = levels[-1].compute()
    assert (before != after).any()
    np.testing.assert_array_equal(
        levels[0][100:120, 2000:2040].compute(), large[100:120, 2000:2040]
    )


def test_preview_reads_no_more_blocks_than_allowed(large: NDArray[np.uint8]) -> None:
    reads = []

    class Counting(ArraySlide):
        def _read_inside(
            self, level: int, x: int, y: int, w: int, h: int
        ) -> NDArray[np.uint8]:
            reads.append((x, y))
            return super()._read_inside(level, x, y, w, h)

    coarse = coarse_picture(Counting(large), (100, 60), max_reads=37)
    assert len(reads) == len(set(reads)) == 37
    assert coarse.shape == (60, 100, 3)
    full = coarse_picture(ArraySlide(large), (100, 60), max_reads=10_000)
    exact = ArraySlide(large).thumbnail((100, 60))
    assert np.abs(full.astype(int) - exact).mean() < 20


def test_program_may_end_while_the_overview_is_made(
    tmp_path: Path, large: NDArray[np.uint8]
) -> None:
    long = np.concatenate([large[:601], large[:601, ::-1]], axis=1)
    path = write_pyramid_tiff(tmp_path / "a.tiff", [long], mpp=0.5)
    code = (
        "import sys, numpy\n"
        "from napari_msamil.slide import open_slide\n"
        "from napari_msamil.slide.pyramid import lazy_pyramid\n"
        "levels = lazy_pyramid(open_slide(sys.argv[1]))\n"
        "print(levels[-1].compute().shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (
        0,
        "(38, 325, 3)",
        "",
    )
