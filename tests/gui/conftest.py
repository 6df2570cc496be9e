"""Fixtures of the workbench tests: a real small slide, a real tiny model, docks on a viewer."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import pytest

# The tests neither depend on nor change what the user has set in napari; read when napari is imported.
os.environ["NAPARI_CONFIG"] = ""
pytest.importorskip("napari")
pytest.importorskip("pytestqt")
# torchvision brings triton; loaded before the software OpenGL of a virtual display it is harmless, after it the process
# dies (napari_msamil.gui.triton_guard, which has a test of its own in another process)
importlib.import_module("torchvision.ops")

from napari.components import ViewerModel  # noqa: E402
from napari.layers import Layer  # noqa: E402

from napari_msamil.gui import smooth  # noqa: E402
from napari_msamil.gui.layers import slide_layer  # noqa: E402
from napari_msamil.gui.session import Session, session_of  # noqa: E402
from napari_msamil.slide import open_slide  # noqa: E402
from tests.conftest import tiny_model_config  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from napari.viewer import Viewer
    from pytestqt.qtbot import QtBot
    from qtpy.QtWidgets import QAbstractItemView, QWidget

    from napari_msamil.gui.workbench import WorkbenchWidget
    from napari_msamil.result import SlideResult
    from napari_msamil.slide import Slide


@pytest.fixture(autouse=True)
def no_offer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smooth panning is offered only in the test of the offer: its notification would cover other tests' windows."""
    if "plugin_settings" not in request.fixturenames:
        monkeypatch.setattr(smooth, "_stored", lambda: None)


@pytest.fixture(scope="session")
def lesion_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a segmenter, seeded random weights."""
    import torch

    from napari_msamil.checkpoint import save_checkpoint
    from napari_msamil.models import build_model

    torch.manual_seed(11)
    path = tmp_path_factory.mktemp("model") / "lesion.safetensors"
    model = build_model(tiny_model_config("lesion model", segmenter=True)).eval()
    save_checkpoint(path, model, {"data": "synthetic"})
    return path


@pytest.fixture
def slide(painted_svs: Path) -> Iterator[Slide]:
    """The painted slide, open: 1800 × 1400 px at 0.5 µm."""
    with open_slide(painted_svs) as opened:
        yield opened


@pytest.fixture
def viewer(qtbot: QtBot) -> ViewerModel:
    """A viewer without a window; Qt is there for widgets."""
    return ViewerModel()


@pytest.fixture
def session(viewer: ViewerModel, slide: Slide, tiny_checkpoint: Path) -> Session:
    """The session of that viewer with slide and model chosen."""
    found = session_of(viewer)
    layer = viewer.add_layer(Layer.create(*slide_layer(slide)))
    found.set_slide(slide, layer)
    found.set_model(str(tiny_checkpoint))
    return found


@pytest.fixture(scope="session")
def answered(painted_svs: Path, tiny_checkpoint: Path) -> SlideResult:
    """A real answer of the tiny model for the whole painted slide."""
    import numpy as np

    from napari_msamil import classify
    from napari_msamil.masks import MaskSource, SlideMask

    with open_slide(painted_svs) as opened:
        everything = SlideMask(
            np.ones((64, 96), bool), opened.info.size_wh0, MaskSource.USER
        )
        return classify(opened, tiny_checkpoint, mask=everything, cache=False)


@pytest.fixture
def bench(
    make_napari_viewer: Callable[..., Viewer],
    qtbot: QtBot,
    painted_svs: Path,
    tiny_checkpoint: Path,
) -> Iterator[WorkbenchWidget]:
    """A real viewer with the workbench docked by its manifest name, slide and model chosen."""
    from napari_msamil.gui.app import show_slide

    real = make_napari_viewer(show=True)
    real.window._qt_window.resize(1100, 750)
    _, widget = real.window.add_plugin_dock_widget("napari-msamil", "MSA-MIL workbench")
    widget.session.set_model(str(tiny_checkpoint))
    show_slide(real, painted_svs)
    yield widget
    widget.close_down()
    qtbot.waitUntil(lambda: not busy_threads(), timeout=120_000)
    slide = widget.session.slide
    real.layers.clear()
    if slide is not None:
        slide.close()


def click(qtbot: QtBot, widget: QWidget) -> None:
    """A real left click in the middle of a widget."""
    from qtpy.QtCore import Qt

    qtbot.mouseClick(widget, Qt.MouseButton.LeftButton)


def click_cell(
    qtbot: QtBot, view: QAbstractItemView, item: Any, *, double: bool = False
) -> None:
    """A real click, or a double one, on an item of a table or list."""
    from qtpy.QtCore import Qt

    spot = view.visualItemRect(item).center()
    left = Qt.MouseButton.LeftButton
    qtbot.mouseClick(view.viewport(), left, pos=spot)
    if double:
        qtbot.mouseDClick(view.viewport(), left, pos=spot)


def busy_threads() -> bool:
    """Whether any napari worker still runs."""
    from napari.qt.threading import GeneratorWorker

    return bool(GeneratorWorker._worker_set)


def whole_slide_mask(session: Session) -> None:
    """Everything is lesion: all patches are used."""
    import numpy as np

    from napari_msamil.masks import MaskSource, SlideMask

    assert session.slide is not None
    size = session.slide.info.size_wh0
    session.set_mask(SlideMask(np.ones((70, 90), bool), size, MaskSource.USER))
