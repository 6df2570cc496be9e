"""One door for every kind of slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import openslide

from napari_msamil.errors import SlideError
from napari_msamil.slide.direct_tiles import direct_tiles
from napari_msamil.slide.openslide_file import OpenSlideFile
from napari_msamil.slide.plain_image import PlainImage
from napari_msamil.slide.tiff_file import TiffSlide, looks_like_tiff

if TYPE_CHECKING:
    from os import PathLike

    from napari_msamil.slide.base import Slide

BACKENDS = ("auto", "openslide", "direct")
SLIDE_SUFFIXES = (
    ".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".svslide", ".tif", ".tiff", ".dcm", ".czi",
)  # fmt: skip
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def open_slide(
    path: str | PathLike[str], *, mpp: float | None = None, backend: str = "auto"
) -> Slide:
    """Open a slide; use it as a context manager.

    What a file is is decided by its content, not by its suffix.

    Args:
        path: A slide file, a DICOM folder, or a plain image.
        mpp: µm per level-0 pixel, replacing what the file says.
        backend: `auto` decodes tiles directly where that gives OpenSlide's pixels, and takes OpenSlide, tifffile or
            Pillow for the rest; `openslide` or `direct` force one.

    Raises:
        SlideError: There is no such file, or nothing here can read it.
        ResolutionError: `mpp` is implausible.
    """
    if backend not in BACKENDS:
        raise SlideError(
            f"There is no backend {backend!r}; choose one of {', '.join(BACKENDS)}."
        )
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, mpp, backend)
    head = _head(path)
    if backend == "openslide":
        return OpenSlideFile(path, mpp=mpp)
    if _known_to_openslide(path):
        return _open_known(path, mpp, backend, head)
    if looks_like_tiff(head):
        return _open_tiff(path, mpp)
    if backend == "direct":
        raise SlideError(
            f"{path.name} is not a TIFF whose tiles can be decoded directly; use backend “auto”."
        )
    return PlainImage(path, mpp=mpp)


def is_slide(path: str | PathLike[str]) -> bool:
    """Whether OpenSlide or tifffile would take this file as a slide; plain images are not counted. Never raises."""
    path = Path(path)
    try:
        if path.is_dir():
            return bool(_dicom_files(path))
        head = _head(path)
    except SlideError:
        return False
    return _known_to_openslide(path) or looks_like_tiff(head)


def _open_known(path: Path, mpp: float | None, backend: str, head: bytes) -> Slide:
    try:
        slide = OpenSlideFile(path, mpp=mpp)
    except SlideError:
        # OpenSlide knows the layout but not the compression of some TIFFs that tifffile can decode.
        if not looks_like_tiff(head):
            raise
        try:
            return TiffSlide(path, mpp=mpp)
        except SlideError:
            pass
        raise
    try:
        return direct_tiles(slide)
    except SlideError:
        if backend == "direct":
            slide.close()
            raise
        return slide


def _open_tiff(path: Path, mpp: float | None) -> Slide:
    try:
        return TiffSlide(path, mpp=mpp)
    except SlideError as refusal:
        try:
            return PlainImage(path, mpp=mpp)  # palettes, 16-bit grey, one huge strip
        except SlideError as error:
            raise error from refusal


def _open_folder(path: Path, mpp: float | None, backend: str) -> Slide:
    files = _dicom_files(path)
    if not files:
        raise SlideError(
            f"The folder {path.name} holds no DICOM slide. Choose a slide file."
        )
    if backend == "direct":
        raise SlideError(
            f"The DICOM slide {path.name} is read through OpenSlide only; use backend “auto”."
        )
    refusal: SlideError | None = None
    for file in files:
        try:
            return OpenSlideFile(file, mpp=mpp, shown_path=path)
        except SlideError as error:
            refusal = refusal or error
    raise SlideError(
        f"The folder {path.name} holds no DICOM slide that can be opened. {refusal}"
    ) from refusal


def _dicom_files(folder: Path) -> list[Path]:
    found = []
    for file in sorted(folder.iterdir()):
        if file.is_file():
            with file.open("rb") as stream:
                if stream.read(132)[128:] == b"DICM":
                    found.append(file)
    return found


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except FileNotFoundError as error:
        raise SlideError(f"There is no file {path}. Check the path.") from error
    except OSError as error:
        raise SlideError(
            f"{path.name} cannot be opened: {error.strerror or error}. Check your rights to read it."
        ) from error
    if not head:
        raise SlideError(f"{path.name} is empty (0 bytes). Copy it again.")
    return head


def _known_to_openslide(path: Path) -> bool:
    try:
        return openslide.OpenSlide.detect_format(path) is not None
    except openslide.OpenSlideError:
        return False
