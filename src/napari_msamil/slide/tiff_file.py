"""TIFFs that OpenSlide refuses and tifffile reads: big-endian files, OME-TIFF as QuPath exports it, stripped images."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import SlideError
from napari_msamil.slide.base import SlideInfo
from napari_msamil.slide.identity import file_quickhash
from napari_msamil.slide.reading import BaseSlide
from napari_msamil.slide.resolution import resolve
from napari_msamil.slide.tiff_tiles import TileFile, read_levels

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import tifffile
    from numpy.typing import NDArray

OME_UNITS_UM = {
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
}
RESOLUTION_UNITS = {2: "inch", 3: "centimeter"}


class TiffSlide(BaseSlide):
    """A TIFF read by tifffile alone.

    Args:
        path: The file.
        mpp: The user's pixel size in µm, or None.

    Raises:
        SlideError: It is no TIFF of 8-bit grey or RGB pixels in tiles or strips.
        ResolutionError: `mpp` is implausible.
    """

    def __init__(self, path: Path, *, mpp: float | None = None) -> None:
        self._user_mpp = mpp
        properties: dict[str, str] = {}
        levels = read_levels(path, lambda tiff: _pages(tiff, properties))
        sizes = tuple(level.size_wh for level in levels)
        resolution = resolve(properties, vendor="tiff", name=path.name, user_mpp=mpp)
        super().__init__(
            SlideInfo(
                path=path,
                vendor="ome-tiff" if "openslide.mpp-x" in properties else "tiff",
                backend="tifffile",
                level_sizes_wh=sizes,
                level_downsamples=tuple(
                    (sizes[0][0] / w + sizes[0][1] / h) / 2 for w, h in sizes
                ),
                level_tile_sizes_wh=tuple(level.tile_size_wh for level in levels),
                mpp=resolution.mpp,
                mpp_yx=resolution.mpp_yx,
                mpp_source=resolution.source,
                objective_power=resolution.objective_power,
                quickhash=file_quickhash(path),
                warnings=resolution.warnings,
            )
        )
        self._tiles = TileFile(path, levels, self.info.background_rgb)

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Decode one tile or strip, uint8 (tile height, tile width, 3).

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
        """None are known in such files.

        Raises:
            SlideError: Always.
        """
        raise SlideError(f"{self.info.path.name} has no associated image {name!r}.")

    def reopen(self) -> TiffSlide:
        """A second, independent handle on the same file."""
        return TiffSlide(self.info.path, mpp=self._user_mpp)

    def close(self) -> None:
        """Release the file; closing twice is fine."""
        self._tiles.close()


def _pages(tiff: tifffile.TiffFile, properties: dict[str, str]) -> list[Any]:
    """The directories of the largest image and its reduced copies, finest first; fills `properties`."""
    first: Any = tiff.pages[0]
    series = tiff.series[0]
    pages = [level.pages[0] for level in series.levels] if series.levels else [first]
    pages = [page for page in pages if page is not None and _same_shape(page, pages[0])]
    properties.update(_tiff_resolution(first))
    if tiff.ome_metadata:
        properties.update(_ome_resolution(tiff.ome_metadata))
    return pages


def _same_shape(page: Any, first: Any) -> bool:
    """Whether a directory can be a reduced copy of the first: aspect within a few percent, not larger."""
    ratio_x, ratio_y = (
        first.imagewidth / page.imagewidth,
        first.imagelength / page.imagelength,
    )
    return bool(ratio_x >= 1 and ratio_y >= 1 and 0.9 < ratio_x / ratio_y < 1.1)


def _tiff_resolution(page: Any) -> dict[str, str]:
    found = {}
    for axis in "XY":
        tag = page.tags.get(f"{axis}Resolution")
        if (
            tag is not None
            and isinstance(tag.value, tuple)
            and len(tag.value) == 2
            and tag.value[1]
        ):
            found[f"tiff.{axis}Resolution"] = str(tag.value[0] / tag.value[1])
    unit = page.tags.get("ResolutionUnit")
    found["tiff.ResolutionUnit"] = RESOLUTION_UNITS.get(
        int(unit.value) if unit else 2, ""
    )
    return found


def _ome_resolution(xml: str) -> dict[str, str]:
    """Pixel size and objective of the first image of an OME-XML, under OpenSlide's keys."""
    if re.search(r"<!(DOCTYPE|ENTITY)", xml):
        return {}  # OME-XML needs no entities; expanding them is how hostile files eat memory
    try:
        root = ET.fromstring(xml)
    except ET.ParseError:
        return {}
    found = {}
    pixels = root.find(".//{*}Image/{*}Pixels")
    if pixels is not None:
        for axis, key in (("X", "openslide.mpp-x"), ("Y", "openslide.mpp-y")):
            size = pixels.get(f"PhysicalSize{axis}")
            factor = OME_UNITS_UM.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            if size is not None and factor is not None:
                try:
                    found[key] = str(float(size) * factor)
                except ValueError:
                    continue
    objective = root.find(".//{*}Objective")
    power = None if objective is None else objective.get("NominalMagnification")
    if power is not None:
        found["openslide.objective-power"] = power
    return found


def looks_like_tiff(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a TIFF or BigTIFF of either byte order."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
