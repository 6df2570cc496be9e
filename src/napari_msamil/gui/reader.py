"""npe2 readers: a slide file, or a folder of DICOM files, becomes a lazy multiscale layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_msamil.gui.layers import LayerTuple

    PathOrPaths = str | Sequence[str]
    ReadLayers = Callable[[PathOrPaths], list[LayerTuple]]

_SHARED_SUFFIXES = (".tif", ".tiff", ".dcm", ".czi")
"""Suffixes that mostly are no slides: OpenSlide is asked before the file is claimed."""


def get_reader(path: PathOrPaths) -> ReadLayers | None:
    """Claim slide files; of TIFF, DICOM and CZI files only those that OpenSlide knows."""
    paths = _as_paths(path)
    if not paths or any(p.is_dir() for p in paths):
        return None
    shared = [p for p in paths if p.suffix.lower() in _SHARED_SUFFIXES]
    if not all(_openslide_knows(p) for p in shared):
        return None
    return read_slides


def get_folder_reader(path: PathOrPaths) -> ReadLayers | None:
    """Claim a folder that holds a DICOM slide."""
    paths = _as_paths(path)
    if len(paths) != 1 or not paths[0].is_dir():
        return None
    first = next(iter(sorted(paths[0].glob("*.dcm"))), None)
    return read_slides if first is not None and _openslide_knows(first) else None


def read_slides(path: PathOrPaths) -> list[LayerTuple]:
    """Open each slide once; the layer keeps it open.

    Raises:
        MsamilError: A file is not a slide.
    """
    from napari_msamil.gui.layers import slide_layer
    from napari_msamil.gui.smooth import offer_smooth
    from napari_msamil.slide import open_slide

    layers = [slide_layer(open_slide(p)) for p in _as_paths(path)]
    offer_smooth()
    return layers


def _as_paths(path: PathOrPaths) -> list[Path]:
    return [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]


def _openslide_knows(path: Path) -> bool:
    from openslide import OpenSlide

    return OpenSlide.detect_format(path) is not None
