"""A real viewer, used as a person would: dock by manifest name, open, classify, paint, ask again, cancel, close."""

from __future__ import annotations

import numpy as np
import pytest

from napari_msamil.gui.canvas import find_layers
from napari_msamil.gui.layers import world_yx
from napari_msamil.gui.strings import LAYER, RUN
from tests.gui.conftest import busy_threads, click, click_cell, whole_slide_mask

pytestmark = pytest.mark.gui

PATIENCE = 120_000


def classify(bench, qtbot):
    click(qtbot, bench.classify_panel._run)
    qtbot.waitUntil(
        lambda: not bench.classify_panel.running and bench.session.result is not None,
        timeout=PATIENCE,
    )


def canvas_xy(bench, xy0):
    """Where a level-0 position is on the canvas widget, in its pixels."""
    viewer = bench.viewer
    world = world_yx(bench.session.slide.info, np.asarray([xy0], float))[0]
    qt_canvas = viewer.window._qt_viewer.canvas.native
    zoom = viewer.scene.camera.zoom
    centre = np.asarray(viewer.scene.camera.center[-2:])
    height, width = viewer.canvas.size
    row, column = (world - centre) * zoom + (height / 2, width / 2)
    return qt_canvas, (column, row)


def press_drag_release(bench, qtbot, points_xy0):
    """Real mouse events along level-0 positions."""
    from qtpy.QtCore import QPoint, Qt

    spots = []
    for point in points_xy0:
        qt_canvas, (x, y) = canvas_xy(bench, point)
        spots.append(QPoint(round(x), round(y)))
    left = Qt.MouseButton.LeftButton
    qtbot.mouseMove(qt_canvas, spots[0])
    qtbot.wait(50)
    qtbot.mousePress(qt_canvas, left, pos=spots[0])
    for spot in spots[1:]:
        send_move(qt_canvas, spot, left)
        qtbot.wait(20)
    qtbot.mouseRelease(qt_canvas, left, pos=spots[-1])
    qtbot.wait(50)


def send_move(widget, spot, buttons):
    """A move with the button held; qtbot's own move holds none."""
    from qtpy.QtCore import QEvent, QPointF, Qt
    from qtpy.QtGui import QMouseEvent
    from qtpy.QtWidgets import QApplication

    there = QPointF(spot)
    event = QMouseEvent(
        QEvent.Type.MouseMove,
        there,
        QPointF(widget.mapToGlobal(spot)),
        Qt.MouseButton.NoButton,
        buttons,
        Qt.KeyboardModifier.NoModifier,
    )
    QApplication.sendEvent(widget, event)


def test_open_classify_paint_and_the_answer_changes(bench, qtbot):
    """Issue 6, points 2 and 3, with real mouse events on the canvas."""
    whole_slide_mask(bench.session)
    classify(bench, qtbot)
    first = bench.session.result
    assert not first.partial
    names = [layer.name for layer in find_layers(bench.viewer, "attention")]
    assert names == ["Attention 20x"]
    assert bench.classify_panel._auto.isChecked()
    click(qtbot, bench.mask_panel._edit)
    bench.mask_panel.layer.selected_label = 0
    bench.mask_panel.layer.brush_size = 30
    before = bench.session.grid.counts["20x"]
    press_drag_release(bench, qtbot, [(300, 300), (700, 500), (1200, 700)])
    qtbot.waitUntil(lambda: bench.session.grid.counts["20x"] < before, timeout=PATIENCE)
    assert bench.session.stale
    qtbot.waitUntil(lambda: not bench.session.stale, timeout=PATIENCE)
    second = bench.session.result
    assert len(second.grid) < len(first.grid)
    assert second.change.lost > 0
    assert second.change.gained == 0
    assert bench.session.previous is first
    bench.mask_panel.layer.undo()
    qtbot.waitUntil(
        lambda: bench.session.grid.counts["20x"] == before, timeout=PATIENCE
    )
    qtbot.waitUntil(lambda: not bench.session.stale, timeout=PATIENCE)
    np.testing.assert_allclose(
        bench.session.result.probabilities, first.probabilities, atol=1e-4
    )


def test_cancel_keeps_a_partial_answer_and_the_window_is_usable_at_once(
    bench, qtbot, monkeypatch
):
    import napari_msamil.pipeline as pipeline

    monkeypatch.setattr(pipeline, "PARTIAL_EVERY_S", 0.0)
    whole_slide_mask(bench.session)
    bench.classify_panel.classify()
    qtbot.waitUntil(
        lambda: bench.session.result is not None and bench.session.result.partial,
        timeout=PATIENCE,
    )
    click(qtbot, bench.classify_panel._cancel)
    assert not bench.classify_panel.running
    assert bench.classify_panel._run.isEnabled()
    assert not bench.classify_panel._cancel.isVisible()
    kept = bench.session.result
    assert kept.partial
    assert "partial" in bench.result_panel.section.summary
    assert bench.classify_panel._status.text() == RUN.cancelled
    qtbot.waitUntil(lambda: not busy_threads(), timeout=PATIENCE)
    assert bench.session.result is kept
    classify(bench, qtbot)
    assert not bench.session.result.partial


def test_closing_the_dock_while_running_ends_cleanly(bench, qtbot):
    """napari takes the widget out of its dock and closes nothing; the job stops all the same."""
    whole_slide_mask(bench.session)
    click(qtbot, bench.classify_panel._run)
    qtbot.wait(100)
    bench.viewer.window.remove_dock_widget(bench)
    assert not bench.classify_panel.running
    assert bench.result_panel._on_move not in bench.viewer.mouse_move_callbacks
    qtbot.waitUntil(lambda: not busy_threads(), timeout=PATIENCE)


def test_tab_goes_through_the_dock_from_top_to_bottom(bench):
    from qtpy.QtCore import Qt

    order, widget = [], bench.nextInFocusChain()
    sections = [panel.section for panel in bench.panels]
    while bench.isAncestorOf(widget):
        if widget.focusPolicy() & Qt.FocusPolicy.TabFocus:
            order += [i for i, s in enumerate(sections) if s.isAncestorOf(widget)]
        widget = widget.nextInFocusChain()
    assert order == sorted(order)
    assert set(order) == set(range(len(bench.panels)))


def test_a_slide_opened_second_is_taken_and_the_first_is_hidden(
    bench, qtbot, painted_svs, tmp_path
):
    import shutil

    other = shutil.copy(painted_svs, tmp_path / "other.svs")
    first = bench.session.layer
    bench.viewer.open(other, plugin="napari-msamil")
    assert bench.session.slide.info.name == "other"
    assert bench.session.layer.visible
    assert not first.visible
    bench.slide_panel._combo.setCurrentIndex(0)
    assert bench.session.layer is first
    assert first.visible


def test_without_a_mask_one_is_found_first(bench, qtbot, lesion_checkpoint):
    """The model's own segmenter, or the tissue where the model has none and says so."""
    bench.classify_panel.classify()
    qtbot.waitUntil(lambda: not bench.classify_panel.running, timeout=PATIENCE)
    assert str(bench.session.mask.source) == "tissue"
    assert any("tissue" in w for w in bench.session.result.warnings)
    assert not bench.session.stale
    bench.session.set_model(str(lesion_checkpoint))
    bench.classify_panel.find_mask("lesion")
    qtbot.waitUntil(lambda: not bench.classify_panel.running, timeout=PATIENCE)
    assert str(bench.session.mask.source) == "model"
    assert find_layers(bench.viewer, "mask")[0].data.shape == (128, 128)


def test_queries_scales_gallery_and_triplet(bench, qtbot):
    """Issue 6, point 4: click a query, click a patch, click the slide."""
    whole_slide_mask(bench.session)
    classify(bench, qtbot)
    bench.query_panel.section.set_open(True)
    bench.gallery_panel.section.set_open(True)
    table = bench.query_panel.table
    assert table.rowCount() == 11
    bench.ensureWidgetVisible(table)
    qtbot.wait(50)
    click_cell(qtbot, table, table.item(7, 0))
    assert bench.session.query == 6
    assert find_layers(bench.viewer, "attention")[0].name == "Query 6 · 20x"
    result, strip = bench.session.result, bench.gallery_panel.strip
    qtbot.waitUntil(
        lambda: strip.count() == 12 and all(t.pixels is not None for t in strip.tiles),
        timeout=PATIENCE,
    )
    best = int(np.argmax(result.query_attention[6]))
    assert strip.tiles[0].index == best
    assert len(find_layers(bench.viewer, "top")[0].data) == 12
    click_cell(qtbot, strip, strip.item(0))
    box = strip.tiles[0].box_xywh0
    centre = world_yx(result.info, (box[:2] + box[2:] / 2)[None])[0]
    np.testing.assert_allclose(bench.viewer.scene.camera.center[-2:], centre)
    bench.viewer.reset_view()
    bench.viewer.layers.selection.active = bench.session.layer
    press_drag_release(bench, qtbot, [(900, 700), (900, 700)])
    qtbot.waitUntil(
        lambda: all(c.text() for _, c in bench.gallery_panel._places), timeout=PATIENCE
    )
    captions = [caption.text() for _, caption in bench.gallery_panel._places]
    assert [text.split()[0] for text in captions] == ["20x", "10x", "5x"]
    assert len(find_layers(bench.viewer, "here")[0].data) == 3
    click(qtbot, bench.query_panel._leave_out)
    qtbot.waitUntil(
        lambda: "without 5x" in bench.query_panel._scales.text(), timeout=PATIENCE
    )


def test_gallery_shows_exactly_what_the_encoder_gets(bench, qtbot):
    from napari_msamil.patch_reader import read_patch

    whole_slide_mask(bench.session)
    bench.patches_panel._gallery.click()
    strip = bench.gallery_panel.strip
    qtbot.waitUntil(
        lambda: strip.count() > 0 and all(t.pixels is not None for t in strip.tiles),
        timeout=PATIENCE,
    )
    for tile in strip.tiles[:3]:
        wanted = read_patch(bench.session.slide, bench.session.grid, tile.index)
        np.testing.assert_array_equal(tile.pixels, wanted)


def test_contact_sheet_is_a_picture(bench, qtbot, tmp_path):
    from PIL import Image

    whole_slide_mask(bench.session)
    bench.gallery_panel.show_sample()
    strip = bench.gallery_panel.strip
    qtbot.waitUntil(
        lambda: strip.count() > 0 and all(t.pixels is not None for t in strip.tiles),
        timeout=PATIENCE,
    )
    bench.gallery_panel.save_sheet(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 1000
        assert sheet.size[1] > 300


def test_features_table_opens_on_the_top_patches(bench, qtbot):
    whole_slide_mask(bench.session)
    classify(bench, qtbot)
    bench.gallery_panel.section.set_open(True)
    click(qtbot, bench.gallery_panel._table)
    assert bench.viewer.layers.selection.active.name == LAYER.top
    assert "attention" in bench.viewer.layers.selection.active.features


def test_what_if_asks_without_and_with_only_the_region(bench, qtbot):
    """Issue 6, point 5: draw round some patches; the answer comes by itself and is that of the library."""
    from napari_msamil.gui.explain import answer_for, patches_inside
    from napari_msamil.gui.layers import shapes_xy0

    whole_slide_mask(bench.session)
    classify(bench, qtbot)
    panel = bench.what_if_panel
    panel.section.set_open(True)
    click(qtbot, panel._draw)
    region = find_layers(bench.viewer, "region")[0]
    corners = [(200, 200), (900, 180), (950, 800), (600, 900), (180, 750), (200, 200)]
    press_drag_release(bench, qtbot, corners)
    assert len(region.data) == 1
    qtbot.waitUntil(lambda: panel.table.rowCount() == 3, timeout=PATIENCE)
    result, loaded = bench.session.result, bench.session.loaded
    inside = patches_inside(result, shapes_xy0(region, result.info))
    assert 0 < inside.sum() < len(inside)
    without = answer_for(loaded, result, ~inside)
    only = answer_for(loaded, result, inside)
    for position in range(3):
        assert panel.table.item(position, 2).text() == f"{without[position]:.1%}"
        assert panel.table.item(position, 3).text() == f"{only[position]:.1%}"
    click(qtbot, panel._clear)
    click(qtbot, panel._ask)
    qtbot.waitUntil(lambda: "Draw a region" in panel._counts.text(), timeout=PATIENCE)


def test_faithfulness_draws_two_curves_and_a_sentence(bench, qtbot):
    whole_slide_mask(bench.session)
    classify(bench, qtbot)
    bench.trust_panel.section.set_open(True)
    click(qtbot, bench.trust_panel._run)
    qtbot.waitUntil(lambda: bench.trust_panel.found is not None, timeout=PATIENCE)
    found = bench.trust_panel.found
    best = float(bench.session.result.probabilities.max())
    assert found.attended[0] == pytest.approx(best, abs=1e-4)
    np.testing.assert_allclose(found.random[:, 0], best, atol=1e-4)
    assert "Area between the curves" in bench.trust_panel._verdict.text()
    assert bench.trust_panel._place.layout().count() == 1


def test_exports_are_the_files_of_the_command_line(bench, qtbot, tmp_path):
    whole_slide_mask(bench.session)
    classify(bench, qtbot)
    bench.export_panel.section.set_open(True)
    folder = tmp_path / "painted slide"
    bench.export_panel.write("folder", folder)
    qtbot.waitUntil(
        lambda: "Wrote" in bench.export_panel._facts.text(), timeout=PATIENCE
    )
    names = {path.name for path in folder.iterdir()}
    assert {
        "result.json",
        "patches.csv",
        "mask.geojson",
        "annotations.geojson",
        "overview.png",
        "heatmap.ome.zarr",
    } <= names
    from napari_msamil.gui.app import show_result

    before = bench.session.result
    bench.session.set_result(None)
    show_result(bench.session, folder)
    np.testing.assert_allclose(
        bench.session.result.attention, before.attention, rtol=1e-6
    )
    assert bench.session.result.prediction == before.prediction
    assert bench.session.result.counts == before.counts
