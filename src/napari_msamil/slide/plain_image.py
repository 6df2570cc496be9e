"""Plain PNG, JPEG and other images that fit in memory, as slides of one level."""

from __future__ import annotations

import struct
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.errors import SlideError
from napari_msamil.slide.array_slide import ArraySlide
from napari_msamil.slide.base import SlideInfo
from napari_msamil.slide.identity import file_quickhash
from napari_msamil.slide.openslide_file import over_background
from napari_msamil.slide.resolution import resolve

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "JPEG2000", "TIFF")
LARGEST_PX = 64_000_000
"""Beyond this (192 MB of RGB) an image is converted to a pyramid once instead of being held in memory."""
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    EOFError,
    IndexError,
    TypeError,
    KeyError,
    MemoryError,
)
"""What Pillow raises on damaged files."""


class PlainImage(ArraySlide):
    """An image held in memory.

    Args:
        path: The file.
        mpp: The user's pixel size in µm, or None.

    Raises:
        SlideError: It is no image, damaged, or too large to hold.
        ResolutionError: `mpp` is implausible.
    """

    def __init__(self, path: Path, *, mpp: float | None = None) -> None:
        self._user_mpp = mpp
        pixels, properties = _load(path)
        height, width = pixels.shape[:2]
        resolution = resolve(
            properties, vendor="plain-image", name=path.name, user_mpp=mpp
        )
        info = SlideInfo(
            path=path,
            vendor="plain-image",
            backend="plain",
            level_sizes_wh=((width, height),),
            level_downsamples=(1.0,),
            level_tile_sizes_wh=((256, 256),),
            mpp=resolution.mpp,
            mpp_yx=resolution.mpp_yx,
            mpp_source=resolution.source,
            quickhash=file_quickhash(path),
            warnings=resolution.warnings,
        )
        super().__init__(pixels, info=info)

    def reopen(self) -> PlainImage:
        """The image, read once more."""
        return PlainImage(self.info.path, mpp=self._user_mpp)


def _load(path: Path) -> tuple[NDArray[np.uint8], dict[str, str]]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images at open; the size is checked here before a pixel is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path, None) from error
    except BROKEN as error:
        raise SlideError(
            f"{path.name} is neither a slide nor an image that can be read. Supported are the formats of OpenSlide "
            "(.svs .ndpi .mrxs .scn .bif .tif .dcm …) and PNG, JPEG and TIFF images."
        ) from error
    with image:
        if image.width * image.height > LARGEST_PX:
            raise _too_large(path, image.size)
        try:
            pixels = _rgb(image)
        except BROKEN as error:
            raise SlideError(
                f"{path.name} is a damaged {image.format} image ({_reason(error)}). Copy it again."
            ) from error
        dpi = image.info.get("dpi")
    properties = {}
    if isinstance(dpi, tuple) and len(dpi) == 2:
        properties = {
            "tiff.XResolution": str(dpi[0]),
            "tiff.YResolution": str(dpi[1]),
            "tiff.ResolutionUnit": "inch",
        }
    return pixels, properties


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels as uint8 (H, W, 3): palettes expanded, transparency over white, 16-bit grey to 8 bit."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = np.asarray(image).astype(np.uint32)
        return np.repeat(
            (wide >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return over_background(image.convert("RGBA"), (255, 255, 255))
    return np.asarray(image.convert("RGB")).copy()


def _too_large(path: Path, size_wh: tuple[int, int] | None) -> SlideError:
    size = (
        "more pixels than are"
        if size_wh is None
        else f"{size_wh[0]} × {size_wh[1]} pixels, more than is"
    )
    return SlideError(
        f"{path.name} has {size} held in memory at once. Make a pyramid of it first: "
        f"msamil convert {path.name} {path.stem}.tiff --mpp 0.5 (with its true pixel size)."
    )


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160].rstrip(".")
