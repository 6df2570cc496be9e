"""The one folder for everything that may be deleted at any time: features, virtual pyramids, hub files."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """`$MSAMIL_CACHE`, or the platform's own cache folder; it need not exist yet."""
    chosen = os.environ.get("MSAMIL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(platformdirs.user_cache_dir("napari-msamil", appauthor=False))
