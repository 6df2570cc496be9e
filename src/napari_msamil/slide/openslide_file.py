"""Slides through OpenSlide: every vendor format and DICOM, safe for threads and after read errors."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

import numpy as np
import openslide
from PIL import Image

from napari_msamil.errors import RegionError, SlideError
from napari_msamil.slide.base import SlideInfo
from napari_msamil.slide.identity import file_quickhash
from napari_msamil.slide.reading import BaseSlide
from napari_msamil.slide.resolution import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

CACHE_BYTES = 64 << 20
"""OpenSlide's own cache of decoded tiles, per slide."""
GUESSED_TILE_WH = (256, 256)


class OpenSlideFile(BaseSlide):
    """A slide that OpenSlide reads.

    An OpenSlide handle is dead after any read error, for all its readers. Each of them then reads its region once more
    with a fresh handle, and only the one whose region is damaged gets a `RegionError`. A dead or closed handle is
    released by its last reader, never under another thread's read.

    Args:
        path: The file that OpenSlide opens.
        mpp: The user's pixel size in µm, or None.
        shown_path: The path the user gave, where it differs (a DICOM folder).

    Raises:
        SlideError: OpenSlide cannot open it.
        ResolutionError: `mpp` is implausible.
    """

    def __init__(
        self, path: Path, *, mpp: float | None = None, shown_path: Path | None = None
    ) -> None:
        self._path = path
        self._shown_path = shown_path or path
        self._user_mpp = mpp
        self._lock = threading.Lock()
        self._closed = False
        self._handle: openslide.OpenSlide | None = open_handle(path)
        super().__init__(describe_handle(self._handle, self._shown_path, mpp))

    def read_region(
        self, location_xy0: tuple[int, int], level: int, size_wh: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a region exactly as OpenSlide defines it, transparent pixels over the background.

        Raises:
            RegionError: The region cannot be decoded; the slide stays usable.
        """
        self._level_size(level)
        handle = self._living_handle()
        try:
            rgba = handle.read_region(location_xy0, level, size_wh)
        except openslide.OpenSlideError:
            # The fault may be another thread's: all readers of a dead handle get its error.
            rgba = self._read_alone(handle, location_xy0, level, size_wh)
        return over_background(rgba, self._info.background_rgb)

    def _read_inside(
        self, level: int, x: int, y: int, w: int, h: int
    ) -> NDArray[np.uint8]:
        factor = self._info.level_downsamples[level]
        return self.read_region((round(x * factor), round(y * factor)), level, (w, h))

    def associated_image(self, name: str) -> NDArray[np.uint8]:
        """Label, macro or thumbnail, uint8 (H, W, 3). May show patient identifiers.

        Raises:
            SlideError: There is none of this name, or it cannot be decoded.
        """
        if name not in self._info.associated_images:
            names = ", ".join(self._info.associated_images) or "none"
            raise SlideError(
                f"{self._info.path.name} has no associated image {name!r} (it has: {names})."
            )
        handle = self._living_handle()
        try:
            image = handle.associated_images[name]
        except openslide.OpenSlideError as error:
            self._forget(handle)
            raise RegionError(
                f"{self._info.path.name}: the associated image {name!r} cannot be decoded ({_reason(error, self._path)})."
            ) from error
        return over_background(image, self._info.background_rgb)

    def reopen(self) -> OpenSlideFile:
        """A second, independent handle on the same file."""
        return OpenSlideFile(
            self._path, mpp=self._user_mpp, shown_path=self._shown_path
        )

    def close(self) -> None:
        """Let go of the handle; the last read in flight releases the file."""
        with self._lock:
            self._closed = True
            self._handle = None

    def _living_handle(self) -> openslide.OpenSlide:
        with self._lock:
            if self._closed:
                raise SlideError(
                    f"{self._info.path.name} is closed; open it again to read from it."
                )
            if self._handle is None:
                self._handle = open_handle(self._path)
            return self._handle

    def _read_alone(
        self,
        dead: openslide.OpenSlide,
        location_xy0: tuple[int, int],
        level: int,
        size_wh: tuple[int, int],
    ) -> Image.Image:
        """Read with a handle of our own, which then serves the others; RegionError if the fault is here."""
        self._forget(dead)
        fresh = open_handle(self._path)
        try:
            rgba = fresh.read_region(location_xy0, level, size_wh)
        except openslide.OpenSlideError as error:
            raise RegionError(
                f"{self._info.path.name}: the region at x {location_xy0[0]}, y {location_xy0[1]} of level {level} "
                f"cannot be decoded ({_reason(error, self._path)}). The file may be damaged; the rest of it stays readable."
            ) from error
        with self._lock:
            if self._handle is None and not self._closed:
                self._handle = fresh
        return rgba

    def _forget(self, handle: openslide.OpenSlide) -> None:
        with self._lock:
            if self._handle is handle:
                self._handle = None


def open_handle(path: Path) -> openslide.OpenSlide:
    """An OpenSlide handle with a bounded cache.

    Raises:
        SlideError: The file cannot be opened; the sentence says why.
    """
    try:
        handle = openslide.OpenSlide(path)
        handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(
            f"{path.name} is not a slide that OpenSlide can read. Convert an image with “msamil convert”, "
            "or check that the file was copied completely."
        ) from error
    except openslide.OpenSlideError as error:
        raise SlideError(
            f"{path.name} looks like a slide but cannot be opened ({_reason(error, path)}). Check that it is complete."
        ) from error
    except OSError as error:
        raise SlideError(
            f"{path.name} cannot be opened: {error.strerror or error}."
        ) from error
    return handle


def describe_handle(
    handle: openslide.OpenSlide, path: Path, user_mpp: float | None
) -> SlideInfo:
    """Everything OpenSlide says of a slide, with warnings."""
    # In damaged files a name can be listed whose value cannot be had: `dict()` would raise on it.
    listed = {key: handle.properties.get(key) for key in handle.properties}
    properties = {key: value for key, value in listed.items() if value is not None}
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
    resolution = resolve(properties, vendor=vendor, name=path.name, user_mpp=user_mpp)
    count = handle.level_count
    return SlideInfo(
        path=path,
        vendor=vendor,
        backend="openslide",
        level_sizes_wh=tuple((int(w), int(h)) for w, h in handle.level_dimensions),
        level_downsamples=tuple(float(d) for d in handle.level_downsamples),
        level_tile_sizes_wh=tuple(
            _tile_size(properties, level) for level in range(count)
        ),
        mpp=resolution.mpp,
        mpp_yx=resolution.mpp_yx,
        mpp_source=resolution.source,
        objective_power=resolution.objective_power,
        background_rgb=_background(properties),
        bounds_xywh0=_bounds(properties),
        quickhash=properties.get("openslide.quickhash-1") or file_quickhash(path),
        associated_images=tuple(sorted(handle.associated_images)),
        warnings=resolution.warnings,
    )


def _opaque(image: Image.Image) -> bool:
    """Whether no pixel of an RGBA image is transparent: alpha is the highest byte of little-endian words."""
    words = np.asarray(image).reshape(-1).view("<u4")
    return words.size == 0 or int(words.min()) >= 0xFF << 24


def over_background(
    image: Image.Image, background_rgb: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """RGB pixels of an image with transparency, laid over the background colour; uint8 (H, W, 3)."""
    if image.mode != "RGBA" or _opaque(image):
        return np.asarray(image.convert("RGB")).copy()
    base = Image.new("RGBA", image.size, (*background_rgb, 255))
    base.alpha_composite(image)
    return np.asarray(base.convert("RGB")).copy()


def _reason(error: openslide.OpenSlideError, path: Path) -> str:
    text = str(error).replace(str(path), path.name).strip().rstrip(".")
    return text or "no reason given"


def _tile_size(properties: Mapping[str, str], level: int) -> tuple[int, int]:
    keys = [f"openslide.level[{level}].tile-{side}" for side in ("width", "height")]
    if not all(properties.get(key, "").isdigit() for key in keys):
        return GUESSED_TILE_WH
    width, height = (int(properties[key]) for key in keys)
    return (width, height) if width > 0 and height > 0 else GUESSED_TILE_WH


def _background(properties: Mapping[str, str]) -> tuple[int, int, int]:
    text = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "")
    if not re.fullmatch("[0-9a-fA-F]{6}", text):
        return (255, 255, 255)
    return (int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16))


def _bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    values = [
        properties.get(f"openslide.bounds-{key}", "")
        for key in ("x", "y", "width", "height")
    ]
    if not all(value.isdigit() for value in values):
        return None
    x, y, w, h = (int(value) for value in values)
    return (x, y, w, h) if w > 0 and h > 0 else None
