"""The dock opens without torch; torch comes by itself, beside the window."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.gui


def test_torch_comes_after_the_dock_is_open_and_quiet_and_not_before():
    code = (
        "import os, sys, threading\n"
        "from qtpy.QtCore import QTimer\n"
        "from napari.qt import get_qapp\n"
        "from napari.components import ViewerModel\n"
        "from napari_msamil.gui.workbench import WorkbenchWidget\n"
        "app = get_qapp(); dock = WorkbenchWidget(ViewerModel()); dock.show()\n"
        "print('torch' in sys.modules)\n"
        "def look():\n"
        "    if 'timm' in sys.modules: app.quit()\n"
        "timer = QTimer(); timer.timeout.connect(look); timer.start(50)\n"
        "app.exec()\n"
        "print('torch' in sys.modules, flush=True)\n"
        "[t.join() for t in threading.enumerate() if t.name == 'msamil warm-up']\n"
        "os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["False", "True"], done.stderr[-2000:]
    assert done.returncode == 0, done.stderr[-2000:]
