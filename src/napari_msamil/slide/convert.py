"""Any big PNG, JPEG or TIFF becomes a tiled pyramidal BigTIFF that OpenSlide opens, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_msamil.errors import ExtraMissingError, SlideError
from napari_msamil.progress import Progress, ProgressGen, Stage
from napari_msamil.slide.resolution import check_user_mpp
from napari_msamil.slide.write import aperio_description

if TYPE_CHECKING:
    from pathlib import Path


def convert_image(
    source: Path,
    target: Path,
    *,
    mpp: float,
    objective: float | None = None,
    compression: str = "jpeg",
    quality: int = 90,
    tile_px: int = 256,
) -> ProgressGen[Path]:
    """Convert an image to a tiled pyramidal BigTIFF; cancelling leaves no file behind.

    Args:
        source: The image.
        target: The TIFF to write; it appears only when complete.
        mpp: µm per pixel of the image.
        objective: Nominal objective power, or None.
        compression: `jpeg`, `deflate` or `none`.
        quality: JPEG quality, 1 … 100.
        tile_px: Side of a tile; a multiple of 16.

    Returns:
        `target`.

    Raises:
        SlideError: The image cannot be read, or the target cannot be written.
        ResolutionError: `mpp` is implausible.
    """
    check_user_mpp(mpp)
    vips = _vips()
    beside = target.with_name(f".{target.name}.partial")
    yield Progress(Stage.CONVERT, 0, 100, f"Converting {source.name}")
    try:
        image = _open_rgb(vips, source)
        image = image.copy(xres=1e3 / mpp, yres=1e3 / mpp)
        image.set_type(
            vips.GValue.gstr_type,
            "image-description",
            aperio_description(image.width, image.height, mpp, objective),
        )
        image.tiffsave(
            str(beside),
            tile=True,
            tile_width=tile_px,
            tile_height=tile_px,
            pyramid=True,
            bigtiff=True,
            compression=compression,
            Q=quality,
            resunit="cm",
        )
        beside.replace(target)
    except vips.Error as error:
        raise SlideError(
            f"{source.name} cannot be converted: {_first_line(error)}."
        ) from error
    except OSError as error:
        raise SlideError(
            f"{target.name} cannot be written: {error.strerror or error}."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    yield Progress(Stage.CONVERT, 100, 100, f"Wrote {target.name}")
    return target


def _vips() -> Any:
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise ExtraMissingError("Converting images", "all") from error
    return pyvips


def _open_rgb(vips: Any, source: Path) -> Any:
    image = vips.Image.new_from_file(str(source), access="sequential")
    if image.hasalpha():
        image = image.flatten(background=[255, 255, 255])
    image = image.colourspace("srgb")
    return image.cast("uchar") if image.format != "uchar" else image


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())
