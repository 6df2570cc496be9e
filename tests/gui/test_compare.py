"""Two answers side by side, and the model card."""

from __future__ import annotations

import numpy as np
import pytest

from napari_msamil.gui.canvas import find_layers
from napari_msamil.gui.model_dialog import ModelDialog, card
from napari_msamil.gui.strings import MODEL
from tests.gui.conftest import click, whole_slide_mask

pytestmark = pytest.mark.gui
PATIENCE = 120_000


@pytest.fixture
def compare(bench, qtbot):
    whole_slide_mask(bench.session)
    bench.classify_panel.classify()
    qtbot.waitUntil(
        lambda: not bench.classify_panel.running and bench.session.result is not None,
        timeout=PATIENCE,
    )
    _, widget = bench.viewer.window.add_plugin_dock_widget(
        "napari-msamil", "MSA-MIL compare"
    )
    yield widget
    widget.close()
    qtbot.wait(50)  # the canvas goes when the event loop turns


def test_another_model_side_by_side_with_linked_cameras(
    compare, bench, qtbot, lesion_checkpoint
):
    """Issue 6, point 8."""
    compare.compare_with("model", str(lesion_checkpoint))
    qtbot.waitUntil(lambda: compare.result is not None, timeout=PATIENCE)
    assert compare.result.model_name == "lesion model"
    assert "A: " in compare._status.text()
    assert "B: " in compare._status.text()
    difference = find_layers(bench.viewer, "difference")
    assert [layer.name for layer in difference] == ["Difference 20x"]
    assert not find_layers(bench.viewer, "attention")[0].visible
    a, b = bench.session.result, compare.result
    fine = difference[0]
    here = a.grid.scale == 0
    wanted = a.attention[here].astype(float) - b.attention[here]
    np.testing.assert_allclose(
        np.sort(fine.data[np.isfinite(fine.data)]), np.sort(wanted), atol=1e-7
    )
    bench.viewer.scene.camera.center = (123.0, 77.0)
    bench.viewer.scene.camera.zoom = 3.5
    assert compare.model.scene.camera.zoom == pytest.approx(3.5)
    np.testing.assert_allclose(compare.model.scene.camera.center[-2:], (123.0, 77.0))
    compare.model.scene.camera.zoom = 1.25
    assert bench.viewer.scene.camera.zoom == pytest.approx(1.25)
    compare._linked.setChecked(False)
    compare.model.scene.camera.zoom = 9.0
    assert bench.viewer.scene.camera.zoom == pytest.approx(1.25)
    compare._difference.setChecked(False)
    assert find_layers(bench.viewer, "difference") == []
    assert find_layers(bench.viewer, "attention")[0].visible


def test_another_mask_chosen_with_keyboard_and_mouse(compare, bench, qtbot):
    from qtpy.QtCore import Qt

    qtbot.keyClick(compare._what, Qt.Key.Key_Down)
    qtbot.keyClicks(compare._other, "tissue")
    click(qtbot, compare._run)
    qtbot.waitUntil(lambda: compare.result is not None, timeout=PATIENCE)
    assert str(compare.result.mask.source) == "tissue"
    assert [x.name for x in find_layers(compare.model, "mask")] == ["Lesion mask"]


def test_both_views_stand_on_the_same_ground(compare, bench):
    for theme in ("light", "dark"):
        bench.viewer.theme = theme
        assert compare.model.theme == theme


def test_closing_the_dock_takes_the_difference_away_and_gives_attention_back(
    compare, bench, qtbot
):
    compare.compare_with("mask", "tissue")
    qtbot.waitUntil(lambda: compare.result is not None, timeout=PATIENCE)
    assert find_layers(bench.viewer, "difference")
    bench.viewer.window.remove_dock_widget(compare)
    assert compare.canvas is None
    assert find_layers(bench.viewer, "difference") == []
    assert find_layers(bench.viewer, "attention")[0].visible


def test_the_card_names_what_a_user_must_know(session, slide):
    rows = dict(card(session.header, slide))
    assert rows["Intended use"] == "Research only. Not for diagnosis."
    assert rows["Classes"] == "calm, odd, wild"
    assert "0.5 µm/px" in rows["Scales"]
    assert rows[MODEL.fits].startswith("yes")


def test_the_self_test_runs_from_the_card(session, qtbot):
    dialog = ModelDialog(session)
    qtbot.addWidget(dialog)
    dialog.run_selftest()
    qtbot.waitUntil(lambda: "passed" in dialog.verdict.text(), timeout=PATIENCE)
