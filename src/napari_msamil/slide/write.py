"""Pyramidal TIFFs from arrays in memory, written so that OpenSlide reads pixel size and objective back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from napari_msamil.errors import SlideError
from napari_msamil.slide.levels import level_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

COMPRESSIONS = ("jpeg", "deflate", "none")
SMALLEST_LEVEL_PX = 512


def write_pyramid_tiff(
    path: Path,
    levels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    *,
    mpp: float | None = None,
    objective: float | None = None,
    compression: str = "jpeg",
    quality: int = 90,
    tile_px: int = 256,
) -> Path:
    """Write a tiled pyramidal BigTIFF; it appears under its name only when complete.

    The image description is Aperio's (`AppMag`, `MPP`), so that OpenSlide gives mpp and objective power back as tags;
    the TIFF resolution says the same. For pixels too big for memory use `convert.convert_image`.

    Args:
        path: The file to write.
        levels: One uint8 image (H, W, 3), halved until its longer side is at most 512; or all levels, finest first.
        mpp: µm per level-0 pixel, or None: then nothing is said of it.
        objective: Nominal objective power, or None.
        compression: `jpeg` (YCbCr 4:2:0, lossy), `deflate` (exact) or `none` (exact).
        quality: JPEG quality, 1 … 100.
        tile_px: Side of a tile; a multiple of 16.

    Returns:
        `path`.

    Raises:
        SlideError: The pixels or options are wrong, or the file cannot be written.
    """
    images = _checked_levels(path, levels)
    height, width = images[0].shape[:2]
    text = None if mpp is None else aperio_description(width, height, mpp, objective)
    tiles = _tile_options(compression, quality, tile_px)
    beside = path.with_name(f".{path.name}.partial")
    try:
        with tifffile.TiffWriter(beside, bigtiff=True) as writer:
            for index, image in enumerate(images):
                writer.write(
                    image,
                    description=text if index == 0 else None,
                    subfiletype=0 if index == 0 else 1,
                    software=False,
                    metadata=None,
                    **tiles,
                    **_resolution(mpp, width / image.shape[1]),
                )
        beside.replace(path)
    except OSError as error:
        raise SlideError(
            f"{path.name} cannot be written: {error.strerror or error}."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return path


def _resolution(mpp: float | None, downsample: float) -> dict[str, Any]:
    """TIFF resolution tags of a level; none where the pixel size is not known."""
    if mpp is None:
        return {}
    per_cm = 1e4 / (mpp * downsample)
    return {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}


def _checked_levels(
    path: Path, levels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
) -> list[NDArray[np.uint8]]:
    images = halved_levels(levels) if isinstance(levels, np.ndarray) else list(levels)
    if not images or any(
        i.ndim != 3 or i.shape[2] != 3 or i.dtype != np.uint8 for i in images
    ):
        raise SlideError(
            f"{path.name} cannot be written: its levels must be uint8 images (H, W, 3)."
        )
    return images


def aperio_description(
    width: int, height: int, mpp: float, objective: float | None
) -> str:
    """An image description that OpenSlide's Aperio driver understands."""
    power = "" if objective is None else f"|AppMag = {objective:g}"
    return f"Aperio Image Library (written by napari-msamil)\r\n{width}x{height}{power}|MPP = {mpp:.6g}"


def halved_levels(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The image and its halves (mean of 2 × 2, the last row and column repeated where odd), finest first."""
    levels = [image]
    for _ in level_sizes((image.shape[1], image.shape[0]), 2, SMALLEST_LEVEL_PX)[1:]:
        levels.append(halve(levels[-1]))
    return levels


def halve(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of 2 × 2 pixels, rounded to nearest; odd edges are repeated. uint8 (H, W, 3) → (⌈H/2⌉, ⌈W/2⌉, 3)."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    total = image[0::2, 0::2].astype(np.uint16)
    total += image[0::2, 1::2]
    total += image[1::2, 0::2]
    total += image[1::2, 1::2]
    total += 2
    total >>= 2
    return total.astype(np.uint8)


def _tile_options(compression: str, quality: int, tile_px: int) -> dict[str, Any]:
    if compression not in COMPRESSIONS:
        raise SlideError(
            f"There is no compression {compression!r}; choose one of {', '.join(COMPRESSIONS)}."
        )
    options: dict[str, Any] = {"tile": (tile_px, tile_px)}
    if compression == "jpeg":
        return options | {
            "compression": "jpeg",
            "compressionargs": {"level": quality},
            "photometric": "rgb",  # the pixels given; stored as YCbCr
            "subsampling": (2, 2),
        }
    options["photometric"] = "rgb"
    if compression == "deflate":
        options |= {"compression": "zlib", "predictor": True}
    return options
