"""The slide protocol and what is known of a slide before any pixel is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray


class MppSource(StrEnum):
    """Where the pixel size comes from; stored with every result."""

    TAG = "tag"
    OBJECTIVE = "objective"
    TIFF = "tiff"
    USER = "user"


@dataclass(frozen=True)
class SlideInfo:
    """What a slide says of itself.

    Attributes:
        path: The file or DICOM folder.
        vendor: OpenSlide's vendor word, `plain-image` or `array`.
        backend: `openslide`, `direct` (tiles decoded by us), `tifffile`, `plain` or `array`.
        level_sizes_wh: Width and height of each level, finest first.
        level_downsamples: True float factor of each level against level 0, never rounded.
        level_tile_sizes_wh: Storage tile of each level in its own pixels; a guess where the file has none.
        mpp: Micrometres per level-0 pixel (geometric mean of both axes), or None where nothing plausible is known.
        mpp_yx: The same per axis, (y, x), or None.
        mpp_source: Where `mpp` comes from, or None.
        objective_power: Nominal lens magnification; shown, never computed with (except as a declared mpp source).
        background_rgb: Colour under transparent pixels.
        bounds_xywh0: Non-empty region in level-0 pixels, or None: the whole slide.
        quickhash: Identity of the pixels for caches and results.
        associated_images: Names only; they may show patient identifiers, so pixels are read only when asked for.
        warnings: Sentences for the user.
    """

    path: Path
    vendor: str
    backend: str
    level_sizes_wh: tuple[tuple[int, int], ...]
    level_downsamples: tuple[float, ...]
    level_tile_sizes_wh: tuple[tuple[int, int], ...]
    mpp: float | None
    mpp_yx: tuple[float, float] | None
    mpp_source: MppSource | None
    objective_power: float | None = None
    background_rgb: tuple[int, int, int] = (255, 255, 255)
    bounds_xywh0: tuple[int, int, int, int] | None = None
    quickhash: str = ""
    associated_images: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """File name without its suffix: the name of result folders and layers."""
        return self.path.stem or self.path.name

    @property
    def size_wh0(self) -> tuple[int, int]:
        """Width and height of level 0 in pixels."""
        return self.level_sizes_wh[0]

    @property
    def level_count(self) -> int:
        """Number of stored levels."""
        return len(self.level_sizes_wh)


@runtime_checkable
class Slide(Protocol):
    """An open slide. Reading is safe from several threads. Use it as a context manager."""

    @property
    def info(self) -> SlideInfo:
        """What is known of the slide."""
        ...

    def read_region(
        self, location_xy0: tuple[int, int], level: int, size_wh: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a region as OpenSlide defines it.

        Args:
            location_xy0: Top-left corner in level-0 pixels; may lie outside the slide.
            level: Pyramid level.
            size_wh: Size in pixels of that level.

        Returns:
            uint8 array (H, W, 3); outside the slide and under transparent pixels the background colour.

        Raises:
            RegionError: The region cannot be decoded. The slide stays usable.
        """
        ...

    def read_level(
        self, level: int, xy: tuple[int, int], size_wh: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a region in the pixels of one level.

        Tiles decoded by us, arrays and plain images give exactly the stored pixels. OpenSlide can only be asked
        in whole level-0 pixels: where the downsample is not a whole number it resamples by less than one of them.

        Args:
            level: Pyramid level.
            xy: Top-left corner in pixels of that level; may lie outside the slide.
            size_wh: Size in pixels of that level.

        Returns:
            uint8 array (H, W, 3); outside the slide and under transparent pixels the background colour.

        Raises:
            RegionError: The region cannot be decoded. The slide stays usable.
        """
        ...

    def thumbnail(self, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
        """The whole of level 0 squeezed to exactly `size_wh` (anisotropic), uint8 (H, W, 3)."""
        ...

    def associated_image(self, name: str) -> NDArray[np.uint8]:
        """Label, macro or thumbnail, uint8 (H, W, 3). May show patient identifiers: only when asked for."""
        ...

    def reopen(self) -> Slide:
        """A second, independent handle on the same slide (for another process or after a fault)."""
        ...

    def close(self) -> None:
        """Release the file; closing twice is fine."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class TileSource(Protocol):
    """A slide whose storage tiles can be decoded one by one, each exactly once (`info.backend == "direct"`).

    Tile sizes are `info.level_tile_sizes_wh`; tile (column, row) starts at level pixel (column · width, row · height).
    """

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Decode one storage tile.

        Returns:
            uint8 array (tile height, tile width, 3); padding beyond the edge of the level is kept as stored.

        Raises:
            RegionError: The tile cannot be decoded.
        """
        ...
