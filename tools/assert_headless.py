"""Fail unless neither napari nor any Qt is importable: the headless environment is what it says."""

from __future__ import annotations

import importlib.util
import sys

FORBIDDEN = ("napari", "qtpy", "magicgui", "PyQt6", "PySide6", "vispy")

present = [name for name in FORBIDDEN if importlib.util.find_spec(name)]
if present:
    sys.exit(f"this environment is not headless: {', '.join(present)}")
print("no napari and no Qt here")
