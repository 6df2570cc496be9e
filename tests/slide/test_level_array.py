"""Levels as a viewer slices them: numpy's pixels, each chunk read once, bounded memory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.slide.array_slide import ArraySlide
from napari_msamil.slide.level_array import ChunkCache, view_levels

from .conftest import smooth_picture

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXELS = smooth_picture(1153, 1301)
LEVEL = view_levels(ArraySlide(PIXELS))[0]

positions = st.none() | st.integers(-1500, 1500)
slices = st.builds(slice, positions, positions, st.sampled_from([None, 1, 2, 700, -3]))


class Counting(ArraySlide):
    """A slide that notes what is read of it."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        super().__init__(pixels)
        self.boxes: list[tuple[int, int, int, int]] = []
        self.lock = threading.Lock()

    def _read_inside(
        self, level: int, x: int, y: int, w: int, h: int
    ) -> NDArray[np.uint8]:
        with self.lock:
            self.boxes.append((x, y, w, h))
        return super()._read_inside(level, x, y, w, h)


@settings(deadline=None, max_examples=60)
@given(rows=slices | st.integers(-1153, 1152), columns=slices)
def test_any_slice_gives_what_numpy_gives(rows: slice | int, columns: slice) -> None:
    np.testing.assert_array_equal(LEVEL[rows, columns], PIXELS[rows, columns])
    np.testing.assert_array_equal(LEVEL[rows, ..., 1], PIXELS[rows, ..., 1])


def test_the_whole_and_its_description_are_those_of_an_array() -> None:
    np.testing.assert_array_equal(np.asarray(LEVEL), PIXELS)
    assert (LEVEL.shape, LEVEL.size, LEVEL.ndim) == (PIXELS.shape, PIXELS.size, 3)
    with pytest.raises(IndexError):
        LEVEL[1153]
    with pytest.raises(TypeError):
        LEVEL[[1, 2]]


def test_a_view_reads_whole_chunks_and_a_second_one_nothing() -> None:
    slide = Counting(PIXELS)
    level = view_levels(slide)[0]
    level[500:600, 510:1100]
    assert sorted(slide.boxes) == [
        (x, y, min(512, 1301 - x), min(512, 1153 - y))
        for x in (0, 512, 1024)
        for y in (0, 512)
    ]
    level[0:10, 100:1301:7]
    assert len(slide.boxes) == 6


def test_memory_of_chunks_is_bounded_and_the_oldest_go_first() -> None:
    cache = ChunkCache(max_bytes=3000)
    for number in range(4):
        cache.put((0, 0, number), np.full((10, 100), number, np.uint8))
        cache.get((0, 0, 0))
    assert cache.held_bytes == 3000
    assert [cache.get((0, 0, n)) is None for n in range(4)] == [
        False,
        True,
        False,
        False,
    ]
    cache.put((1, 0, 0), np.zeros((100, 100), np.uint8))
    assert cache.get((1, 0, 0)) is None
