"""Slides: any file opens at once, at the right magnification, and a bad one harms nothing."""

from __future__ import annotations

from napari_msamil.slide.base import MppSource, Slide, SlideInfo, TileSource
from napari_msamil.slide.levels import (
    LevelChoice,
    level_for_mpp,
    require_mpp,
    require_scale,
)
from napari_msamil.slide.opening import open_slide

__all__ = [
    "LevelChoice",
    "MppSource",
    "Slide",
    "SlideInfo",
    "TileSource",
    "level_for_mpp",
    "open_slide",
    "require_mpp",
    "require_scale",
]
