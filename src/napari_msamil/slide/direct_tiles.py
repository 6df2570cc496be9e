"""The direct tile path: TIFF slides whose tiles we decode ourselves, beside OpenSlide or instead of it.

OpenSlide decodes 31–49 Mpx/s from JPEG tiles and gains nothing from a second thread; direct decoding reaches 126 Mpx/s
per thread. It is used only where it gives the same pixels: the formats are few, and at opening the tile with the
most detail is compared with OpenSlide's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import RegionError, SlideError
from napari_msamil.slide.reading import BaseSlide
from napari_msamil.slide.tiff_tiles import TileFile, read_levels

if TYPE_CHECKING:
    import tifffile
    from numpy.typing import NDArray

    from napari_msamil.slide.base import SlideInfo
    from napari_msamil.slide.openslide_file import OpenSlideFile

VENDORS = ("aperio", "generic-tiff")
"""TIFF layouts without overlaps, gaps or stitching: a level is its grid of tiles."""


class DirectTiles(BaseSlide):
    """A slide that OpenSlide describes and we decode.

    Args:
        companion: The same slide through OpenSlide; it gives the metadata and the associated images, and is closed
            with this slide.
        tiles: The same levels as tiles.
    """

    def __init__(self, companion: OpenSlideFile, tiles: TileFile) -> None:
        self._companion = companion
        self._tiles = tiles
        sizes = tuple(level.tile_size_wh for level in tiles.levels)
        super().__init__(
            replace(companion.info, backend="direct", level_tile_sizes_wh=sizes)
        )

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Decode one storage tile, uint8 (tile height, tile width, 3).

        Raises:
            RegionError: It cannot be decoded.
        """
        self._level_size(level)
        return self._tiles.tile(level, column, row)

    def _read_inside(
        self, level: int, x: int, y: int, w: int, h: int
    ) -> NDArray[np.uint8]:
        return self._tiles.read(level, x, y, w, h)

    def associated_image(self, name: str) -> NDArray[np.uint8]:
        """Label, macro or thumbnail, uint8 (H, W, 3). May show patient identifiers."""
        return self._companion.associated_image(name)

    def reopen(self) -> DirectTiles:
        """A second, independent handle on the same file."""
        companion = self._companion.reopen()
        return DirectTiles(
            companion,
            TileFile(self._tiles.path, self._tiles.levels, self.info.background_rgb),
        )

    def close(self) -> None:
        """Release the file; closing twice is fine."""
        self._tiles.close()
        self._companion.close()


def direct_tiles(companion: OpenSlideFile) -> DirectTiles:
    """The direct path for a slide opened by OpenSlide, if it gives the same pixels.

    Args:
        companion: The slide; on success the result owns it.

    Raises:
        SlideError: The direct path does not serve this file; the reason is in the sentence.
    """
    info = companion.info
    if info.vendor not in VENDORS:
        raise SlideError(
            f"{info.path.name} is of the kind {info.vendor}, whose tiles only OpenSlide can place."
        )
    levels = read_levels(info.path, lambda tiff: _pages_of_levels(tiff, info))
    if any(level.has_holes for level in levels):
        raise SlideError(
            f"{info.path.name} has tiles that are not stored; OpenSlide knows what to show there."
        )
    try:
        tiles = TileFile(info.path, levels, info.background_rgb)
    except OSError as error:
        raise SlideError(
            f"{info.path.name} cannot be opened: {error.strerror or error}."
        ) from error
    try:
        _compare(companion, tiles)
    except SlideError:
        tiles.close()
        raise
    return DirectTiles(companion, tiles)


def _pages_of_levels(tiff: tifffile.TiffFile, info: SlideInfo) -> list[Any]:
    pages: list[Any] = []
    every: list[Any] = list(tiff.pages)
    tiled = [page for page in every if page.is_tiled]
    for size in info.level_sizes_wh:
        same = [page for page in tiled if (page.imagewidth, page.imagelength) == size]
        if len(same) != 1:
            raise SlideError(
                f"{len(same)} of its directories have the size {size[0]} × {size[1]} of a level"
            )
        pages.append(same[0])
    return pages


def _compare(companion: OpenSlideFile, tiles: TileFile) -> None:
    """Raise unless level 0's richest tile, and the first tile of each kind of level, equal OpenSlide's."""
    name = companion.info.path.name
    seen: set[int] = set()
    for index, level in enumerate(tiles.levels):
        if index > 0 and level.compression in seen:
            continue
        seen.add(level.compression)
        # Only at level 0, and at the corner of the others, can OpenSlide be asked without resampling.
        column, row = level.heaviest() if index == 0 else (0, 0)
        width, height = level.tile_size_wh
        x, y = column * width, row * height
        w, h = min(width, level.size_wh[0] - x), min(height, level.size_wh[1] - y)
        try:
            ours = tiles.tile(index, column, row)[:h, :w]
            theirs = companion.read_region((x, y), index, (w, h))
        except RegionError as error:
            raise SlideError(
                f"{name}: its tiles cannot be compared with OpenSlide's ({error})"
            ) from error
        if not np.array_equal(ours, theirs):
            raise SlideError(
                f"{name}: its tiles decode differently here and in OpenSlide, so OpenSlide is used."
            )
