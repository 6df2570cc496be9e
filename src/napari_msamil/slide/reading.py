"""What all slides share: clipping, background, thumbnails, closing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

import numpy as np
from PIL import Image

from napari_msamil.errors import SlideError
from napari_msamil.slide.levels import level_for_downsample
from napari_msamil.slide.reduced import reduced_level

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from napari_msamil.slide.base import SlideInfo

OVERSAMPLING = 2
"""The last, antialiased step of a thumbnail sees at least this many pixels per output pixel."""


class BaseSlide(ABC):
    """Common half of every slide: a child reads inside one level, this class does the rest.

    Attributes:
        info: What is known of the slide.
    """

    def __init__(self, info: SlideInfo) -> None:
        self._info = info

    @property
    def info(self) -> SlideInfo:
        """What is known of the slide."""
        return self._info

    @abstractmethod
    def _read_inside(
        self, level: int, x: int, y: int, w: int, h: int
    ) -> NDArray[np.uint8]:
        """Read a non-empty region that lies wholly inside a level, in its pixels; uint8 (h, w, 3)."""

    @abstractmethod
    def associated_image(self, name: str) -> NDArray[np.uint8]:
        """Label, macro or thumbnail, uint8 (H, W, 3)."""

    @abstractmethod
    def close(self) -> None:
        """Release the file; closing twice is fine."""

    def read_level(
        self, level: int, xy: tuple[int, int], size_wh: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a region in the pixels of one level; outside the slide the background colour.

        Raises:
            RegionError: The region cannot be decoded.
            SlideError: There is no such level, or the size is negative.
        """
        width, height = self._level_size(level)
        if min(size_wh) < 0:
            raise SlideError(
                f"{self._info.path.name}: a region of {size_wh[0]} × {size_wh[1]} pixels cannot be read."
            )
        left, top = max(xy[0], 0), max(xy[1], 0)
        right, bottom = min(xy[0] + size_wh[0], width), min(xy[1] + size_wh[1], height)
        if left >= right or top >= bottom:
            return self._background(size_wh)
        inside = self._read_inside(level, left, top, right - left, bottom - top)
        if inside.shape[:2] == (size_wh[1], size_wh[0]):
            return inside
        out = self._background(size_wh)
        out[top - xy[1] : bottom - xy[1], left - xy[0] : right - xy[0]] = inside
        return out

    def read_region(
        self, location_xy0: tuple[int, int], level: int, size_wh: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a region whose corner is given in level-0 pixels; it snaps to the nearest pixel of the level.

        Raises:
            RegionError: The region cannot be decoded.
        """
        self._level_size(level)
        factor = self._info.level_downsamples[level]
        return self.read_level(
            level,
            (round(location_xy0[0] / factor), round(location_xy0[1] / factor)),
            size_wh,
        )

    def thumbnail(self, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
        """The whole of level 0 squeezed to exactly `size_wh` (anisotropic), uint8 (H, W, 3).

        The coarsest level with enough pixels is reduced by a whole factor, block by block, and then
        resized with the antialiased triangle filter: memory stays bounded on slides without a pyramid.
        A part that cannot be decoded takes the nearest colour that could be.

        Raises:
            RegionError: Nothing of the slide can be decoded.
        """
        if min(size_wh) < 1:
            raise SlideError(
                f"{self._info.path.name}: a thumbnail of {size_wh[0]} × {size_wh[1]} pixels is empty."
            )
        width0, height0 = self._info.size_wh0
        wanted = min(width0 / size_wh[0], height0 / size_wh[1])
        level = _level_with_enough(self._info, wanted / OVERSAMPLING)
        width, height = self._info.level_sizes_wh[level]
        factor = max(
            1, int(min(width / size_wh[0], height / size_wh[1]) / OVERSAMPLING)
        )
        reduced = Image.fromarray(self._reduced_level(level, factor))
        exact = (
            0.0,
            0.0,
            min(width / factor, reduced.width),
            min(height / factor, reduced.height),
        )
        small = reduced.resize(size_wh, Image.Resampling.BILINEAR, box=exact)
        return np.asarray(small).copy()

    def _reduced_level(self, level: int, factor: int) -> NDArray[np.uint8]:
        return reduced_level(
            lambda box: self.read_level(level, box[:2], box[2:]),
            self._info.level_sizes_wh[level],
            self._info.level_tile_sizes_wh[level],
            factor,
        )

    def _level_size(self, level: int) -> tuple[int, int]:
        if not 0 <= level < self._info.level_count:
            raise SlideError(
                f"{self._info.path.name} has levels 0 … {self._info.level_count - 1}, there is no level {level}."
            )
        return self._info.level_sizes_wh[level]

    def _background(self, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
        out = np.empty((size_wh[1], size_wh[0], 3), np.uint8)
        out[:] = self._info.background_rgb
        return out

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _level_with_enough(info: SlideInfo, downsample: float) -> int:
    """The coarsest level that is at least as fine as `downsample`."""
    if downsample <= 1:
        return 0
    choice = level_for_downsample(info, downsample)
    while choice.level > 0 and info.level_downsamples[choice.level] > downsample:
        choice = level_for_downsample(info, info.level_downsamples[choice.level - 1])
    return choice.level
