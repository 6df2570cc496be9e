"""Any big PNG, JPEG or TIFF becomes a tiled pyramidal BigTIFF that OpenSlide opens, in bounded memory.

libvips streams the image from top to bottom and writes all levels in that one pass.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import ExtraMissingError, SlideError
from napari_msamil.progress import Progress, ProgressGen, Stage
from napari_msamil.slide.resolution import check_user_mpp
from napari_msamil.slide.tiff_file import TiffSlide
from napari_msamil.slide.write import COMPRESSIONS, aperio_description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROBE_PX = 256
PROBE_TOLERANCE = 3.0
"""Mean grey levels two JPEG decoders may differ by; swapped colour spaces differ by tens."""
POLL_S = 0.1
"""Seconds between two steps of progress; cancelling takes as long."""


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

    Grey, palette and 16-bit images become 8-bit RGB, transparency becomes white. Pixel size and objective are written
    so that OpenSlide gives them back as tags.

    Args:
        source: The image; of a TIFF with several pages, the first.
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
    _check_options(source, target, compression, quality, tile_px)
    vips = _vips()
    yield Progress(Stage.CONVERT, 0, 100, f"Converting {source.name}")
    with _appearing(vips, source, target) as beside:
        image = true_colours(vips, _open_rgb(vips, source, "sequential"), source)
        image = image.copy(xres=1e3 / mpp, yres=1e3 / mpp)
        description = aperio_description(image.width, image.height, mpp, objective)
        image.set_type(vips.GValue.gstr_type, "image-description", description)
        yield from _saving(
            image,
            lambda: image.tiffsave(
                str(beside), compression=compression, Q=quality, tile=True, tile_width=tile_px, tile_height=tile_px,
                pyramid=True, bigtiff=True, resunit="cm", predictor="horizontal",
            ),
        )  # fmt: skip
    yield Progress(Stage.CONVERT, 100, 100, f"Wrote {target.name}")
    return target


@contextmanager
def _appearing(vips: Any, source: Path, target: Path) -> Iterator[Path]:
    """A file beside the target, which gets the target's name if all goes well and is removed otherwise."""
    beside = target.with_name(f".{target.name}.partial")
    try:
        yield beside
        beside.replace(target)
    except vips.Error as error:
        raise SlideError(
            f"{source.name} cannot be converted to {target.name} ({_reason(error)}). Check that the image is complete "
            "and that the disk has room."
        ) from error
    except OSError as error:
        raise SlideError(
            f"{target.name} cannot be written: {error.strerror or error}."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def _saving(image: Any, save: Callable[[], None]) -> ProgressGen[None]:
    """Run `save` in a thread and yield its progress; closing the generator ends it."""
    percent = 0
    failure: list[Exception] = []

    def on_eval(_: Any, state: Any) -> None:
        nonlocal percent
        percent = max(percent, min(int(state.percent), 99))

    def run() -> None:
        try:
            save()
        except type_of_failure as error:
            failure.append(error)

    type_of_failure = (_vips().Error, OSError)
    image.set_progress(True)
    image.signal_connect("eval", on_eval)
    thread = threading.Thread(target=run, name="convert", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_S)
            yield Progress(Stage.CONVERT, percent, 100)
    finally:
        image.set_kill(True)
        thread.join()
    if failure:
        raise failure[0]


def _check_options(
    source: Path, target: Path, compression: str, quality: int, tile_px: int
) -> None:
    if not source.is_file():
        raise SlideError(f"There is no image {source}. Check the path.")
    if not target.parent.is_dir():
        raise SlideError(f"There is no folder {target.parent}. Make it first.")
    if target.exists() and target.samefile(source):
        raise SlideError(
            f"{source.name} cannot be converted onto itself. Choose another name."
        )
    if compression not in COMPRESSIONS:
        raise SlideError(
            f"There is no compression {compression!r}; choose one of {', '.join(COMPRESSIONS)}."
        )
    if not 1 <= quality <= 100:
        raise SlideError(f"A JPEG quality lies between 1 and 100, not at {quality}.")
    if tile_px < 16 or tile_px % 16:
        raise SlideError(f"The side of a tile is a multiple of 16, not {tile_px}.")


def _vips() -> Any:
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise ExtraMissingError("Converting images", "all") from error
    return pyvips


def true_colours(vips: Any, image: Any, source: Path) -> Any:
    """The image with its colours as tifffile decodes them.

    Bio-Formats and QuPath write YCbCr JPEG tiles under an RGB tag; libtiff then hands out Y, Cb and Cr as if they were
    red, green and blue. A piece from the middle shows whether that happened.

    Args:
        vips: The pyvips module.
        image: The image, uint8 RGB.
        source: Its file.

    Raises:
        SlideError: The colours differ in a way that cannot be undone.
    """
    try:
        slide = TiffSlide(source)
    except SlideError:
        return image
    with slide:
        width, height = slide.info.size_wh0
        if (image.width, image.height) != (width, height):
            return image
        x, y = max(0, width // 2 - PROBE_PX // 2), max(0, height // 2 - PROBE_PX // 2)
        w, h = min(PROBE_PX, width), min(PROBE_PX, height)
        truth = slide.read_level(0, (x, y), (w, h)).astype(int)
    probe = _open_rgb(vips, source, "random").crop(x, y, w, h)
    if _difference(probe, truth) <= PROBE_TOLERANCE:
        return image
    if _difference(_from_ycbcr(probe), truth) <= PROBE_TOLERANCE:
        return _from_ycbcr(image)
    raise SlideError(
        f"The colours of {source.name} are stored in a way that cannot be converted reliably. Export it once more, "
        "as RGB without JPEG compression."
    )


def _difference(image: Any, truth: Any) -> float:
    return float(abs(image.numpy().astype(int) - truth).mean())


def _from_ycbcr(image: Any) -> Any:
    """RGB of bands that hold full-range Y, Cb, Cr (ITU-R BT.601, as in JFIF)."""
    luma, blue, red = (image[band].cast("float") for band in range(3))
    blue, red = blue - 128, red - 128
    bands = [
        luma + 1.402 * red,
        luma - 0.344136 * blue - 0.714136 * red,
        luma + 1.772 * blue,
    ]
    joined = bands[0].bandjoin(bands[1:]).rint().cast("uchar")
    return joined.copy(interpretation="srgb")


def _open_rgb(vips: Any, source: Path, access: str) -> Any:
    # revalidate: libvips remembers files by name, also after they have changed
    image = vips.Image.new_from_file(
        str(source), access=access, fail_on="error", revalidate=True
    )
    if image.bands > 4:
        raise SlideError(
            f"{source.name} has {image.bands} channels; only grey and RGB images can be converted."
        )
    if image.hasalpha():
        white = 65535 if image.format == "ushort" else 255
        image = image.flatten(background=[white])
    image = image.colourspace("srgb")
    if image.format != "uchar":
        image = image.cast("uchar")
    return image.copy(interpretation="srgb")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
