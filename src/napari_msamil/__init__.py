"""napari-msamil: open a slide, mask the lesion, classify it, see why, change the mask, see the answer change.

The flow, in this order, and the folder listing shows it::

    Slide ─► SlideMask ─► PatchGrid ─► FeatureBag ─► MILOutput ─► SlideResult ─► Overlay ─► napari layers
    slide/   tissue       patches      inference      models/      result         overlay    gui/
             lesion       patch_reader feature_store  checkpoint                  export · report

Importing this package loads neither torch nor napari; the names below are resolved when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_msamil.checkpoint import load_checkpoint
    from napari_msamil.lesion import find_lesion
    from napari_msamil.patches import make_grid
    from napari_msamil.pipeline import classify
    from napari_msamil.slide import open_slide

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "classify",
    "find_lesion",
    "load_checkpoint",
    "make_grid",
    "open_slide",
]

_HOMES = {
    "open_slide": "napari_msamil.slide",
    "load_checkpoint": "napari_msamil.checkpoint",
    "classify": "napari_msamil.pipeline",
    "find_lesion": "napari_msamil.lesion",
    "make_grid": "napari_msamil.patches",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
