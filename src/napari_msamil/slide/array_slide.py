"""A slide whose pixels are arrays in memory: tests, crops, and images small enough to hold."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.errors import SlideError
from napari_msamil.slide.base import MppSource, SlideInfo
from napari_msamil.slide.reading import BaseSlide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class ArraySlide(BaseSlide):
    """A slide made of uint8 arrays (H, W, 3), finest first.

    Args:
        levels: One array, or one per level; their downsamples are the mean of both axis ratios, as OpenSlide has it.
        mpp: µm per level-0 pixel, or None.
        name: File name it goes by.
        tile_size_wh: Storage tile it pretends to have.
        info: Replaces everything known of the slide (for readers of plain images).
    """

    def __init__(
        self,
        levels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        *,
        mpp: float | None = None,
        name: str = "array",
        tile_size_wh: tuple[int, int] = (256, 256),
        info: SlideInfo | None = None,
    ) -> None:
        self._levels = [levels] if isinstance(levels, np.ndarray) else list(levels)
        for level in self._levels:
            if (
                level.ndim != 3
                or level.shape[2] != 3
                or level.dtype != np.uint8
                or 0 in level.shape
            ):
                raise SlideError(
                    f"{name}: a level is a non-empty uint8 image (H, W, 3), not {level.dtype} {level.shape}."
                )
        super().__init__(info or _describe(self._levels, mpp, name, tile_size_wh))

    def _read_inside(
        self, level: int, x: int, y: int, w: int, h: int
    ) -> NDArray[np.uint8]:
        if not self._levels:
            raise SlideError(f"{self._info.path.name} is closed.")
        return self._levels[level][y : y + h, x : x + w].copy()

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """One tile of the pretended tiling, padded with the background at the edges."""
        width, height = self._info.level_tile_sizes_wh[level]
        return self.read_level(level, (column * width, row * height), (width, height))

    def associated_image(self, name: str) -> NDArray[np.uint8]:
        """Arrays have none.

        Raises:
            SlideError: Always.
        """
        raise SlideError(f"{self._info.path.name} has no associated image {name!r}.")

    def reopen(self) -> ArraySlide:
        """Another handle on the same arrays."""
        return ArraySlide(self._levels, info=self._info)

    def close(self) -> None:
        """Let go of the arrays."""
        self._levels = []


def _describe(
    levels: list[NDArray[np.uint8]],
    mpp: float | None,
    name: str,
    tile_size_wh: tuple[int, int],
) -> SlideInfo:
    sizes = tuple((level.shape[1], level.shape[0]) for level in levels)
    width0, height0 = sizes[0]
    digest = hashlib.sha256(levels[-1].tobytes())
    digest.update(str((sizes, mpp)).encode())
    digest.update(levels[0][:: max(1, height0 // 256)].tobytes())
    return SlideInfo(
        path=Path(name),
        vendor="array",
        backend="array",
        level_sizes_wh=sizes,
        level_downsamples=tuple((width0 / w + height0 / h) / 2 for w, h in sizes),
        level_tile_sizes_wh=(tile_size_wh,) * len(sizes),
        mpp=mpp,
        mpp_yx=None if mpp is None else (mpp, mpp),
        mpp_source=None if mpp is None else MppSource.USER,
        quickhash=digest.hexdigest(),
    )
