"""Imports torch beside the window once the dock is open and quiet, so that the first click on Classify does not.

Opening the dock imports nothing heavy. Importing torch takes seconds, and each of its libraries holds Python's lock
while it is loaded; in a thread of its own, before anyone waits for an answer, that is hardly felt.
"""

from __future__ import annotations

import importlib
import logging
import sys
from threading import Thread

from qtpy.QtCore import QTimer

from napari_msamil.gui.triton_guard import keep_triton_out

logger = logging.getLogger(__name__)

QUIET_MS = 1500
"""The window is drawn and the slide's first tiles are read before this is over."""
WARM_UP = "msamil warm-up"
"""Name of the thread."""
HEAVY = (
    "torch",
    "napari_msamil.pipeline",
    "napari_msamil.models",
    "timm",
    "segmentation_models_pytorch",
)


def warm_up_later(quiet_ms: int = QUIET_MS) -> None:
    """Import what a classification needs in a while; does nothing where it is there already."""
    if HEAVY[-1] not in sys.modules:
        QTimer.singleShot(quiet_ms, _start)


def _start() -> None:
    # no daemon: a thread cut off in the middle of loading a library may take the interpreter down with it
    Thread(target=import_heavy, name=WARM_UP, daemon=False).start()


def import_heavy() -> None:
    """Import torch and what the models are made of; what cannot be imported is told when it is needed."""
    keep_triton_out()
    try:
        for name in HEAVY:
            importlib.import_module(name)
    except ImportError:
        logger.info("not everything could be imported ahead", exc_info=True)
