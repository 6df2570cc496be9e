"""The mask under a real mouse: brush, fill, polygon, undo, lock, reset; and the painted mask on the command line."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from napari_msamil import cli
from napari_msamil.gui.canvas import find_layers
from napari_msamil.masks import MaskSource, SlideMask
from tests.gui.conftest import whole_slide_mask
from tests.gui.test_workbench import PATIENCE, canvas_xy, press_drag_release

pytestmark = pytest.mark.gui


def half_slide_mask(session):
    """The left half is lesion."""
    mask = np.zeros((70, 90), bool)
    mask[:, :45] = True
    size = session.slide.info.size_wh0
    session.set_mask(SlideMask(mask, size, MaskSource.USER))


def click(bench, qtbot, xy0, *, double=False):
    from qtpy.QtCore import QPoint, Qt

    canvas, (x, y) = canvas_xy(bench, xy0)
    spot, left = QPoint(round(x), round(y)), Qt.MouseButton.LeftButton
    qtbot.mouseMove(canvas, spot)
    qtbot.wait(30)
    qtbot.mouseClick(canvas, left, pos=spot)
    if double:
        qtbot.mouseDClick(canvas, left, pos=spot)
    qtbot.wait(30)


def shown_counts(bench):
    """The numbers a person reads in the section header: `20x: 25 · 10x: 4 · …`."""
    words = bench.patches_panel.section.summary.replace(",", "").split(" · ")
    return {name: int(n) for name, n in (word.split(": ") for word in words)}


def previewed(bench, scale):
    """How many cells the preview of a scale has."""
    shown = [x for x in find_layers(bench.viewer, "patches") if scale in x.name]
    assert len(shown) == 1
    return np.isfinite(np.asarray(shown[0].data)).sum()


def test_a_brush_stroke_lies_where_the_mouse_was_and_counts_follow(bench, qtbot):
    whole_slide_mask(bench.session)
    before = shown_counts(bench)
    share = bench.mask_panel.section.summary
    bench.mask_panel.edit()
    layer = bench.mask_panel.layer
    layer.selected_label, layer.brush_size = 0, 9
    press_drag_release(bench, qtbot, [(500, 700), (900, 700), (1300, 700)])
    qtbot.waitUntil(lambda: shown_counts(bench) != before, timeout=PATIENCE)
    assert bench.mask_panel.section.summary != share
    rows, columns = np.nonzero(np.asarray(layer.data) == 0)
    # 1800 × 1400 px on 90 × 70 cells of 20 px: the stroke from x = 500 to 1300 at y = 700, half a brush beyond.
    assert abs((columns.min() + columns.max() + 1) / 2 - 45) <= 1
    assert abs((rows.min() + rows.max() + 1) / 2 - 35) <= 1
    assert abs((columns.max() - columns.min() + 1) - (40 + 9)) <= 2
    assert abs((rows.max() - rows.min() + 1) - 9) <= 1
    assert bench.session.grid.counts == shown_counts(bench)
    layer.undo()
    qtbot.waitUntil(lambda: shown_counts(bench) == before, timeout=PATIENCE)


def test_fill_marks_the_region_under_the_mouse(bench, qtbot):
    half_slide_mask(bench.session)
    before = bench.session.grid.counts["20x"]
    bench.mask_panel.edit()
    bench.mask_panel.layer.mode = "fill"
    click(bench, qtbot, (1400, 700))
    qtbot.waitUntil(lambda: bench.session.mask.mask.all(), timeout=PATIENCE)
    assert bench.session.grid.counts["20x"] == shown_counts(bench)["20x"]
    assert shown_counts(bench)["20x"] > 1.5 * before


def test_a_polygon_marks_what_it_encloses(bench, qtbot):
    half_slide_mask(bench.session)
    before = shown_counts(bench)["20x"]
    bench.mask_panel.edit()
    bench.mask_panel.layer.mode = "polygon"
    for corner in [(1000, 200), (1700, 200), (1700, 1200)]:
        click(bench, qtbot, corner)
    click(bench, qtbot, (1000, 1200), double=True)
    qtbot.waitUntil(lambda: shown_counts(bench)["20x"] > before, timeout=PATIENCE)
    right = bench.session.mask.mask[:, 46:]
    rows, columns = np.nonzero(right)
    assert abs(rows.min() - 10) <= 1
    assert abs(rows.max() - 60) <= 1
    assert abs(columns.min() - (50 - 46)) <= 1
    assert abs(columns.max() - (85 - 46)) <= 1
    assert right.sum() == pytest.approx(35 * 50, rel=0.06)


def test_a_locked_mask_cannot_be_painted_and_reset_undoes_all(bench, qtbot):
    whole_slide_mask(bench.session)
    before = shown_counts(bench)
    bench.mask_panel.edit()
    bench.mask_panel.layer.selected_label = 0
    bench.mask_panel._lock.setChecked(True)
    press_drag_release(bench, qtbot, [(500, 500), (900, 700)])
    qtbot.wait(200)
    assert bench.session.mask.mask.all()
    assert shown_counts(bench) == before
    bench.viewer.reset_view()
    bench.mask_panel.edit()
    bench.mask_panel.layer.selected_label = 0
    press_drag_release(bench, qtbot, [(500, 500), (900, 700)])
    qtbot.waitUntil(lambda: not bench.session.mask.mask.all(), timeout=PATIENCE)
    bench.mask_panel._reset.click()
    assert bench.session.mask.mask.all()
    assert np.asarray(bench.mask_panel.layer.data).all()
    assert shown_counts(bench) == before


def test_the_preview_has_one_cell_per_selected_patch_and_follows_the_brush(
    bench, qtbot
):
    whole_slide_mask(bench.session)
    bench.patches_panel._show.setChecked(True)
    bench.mask_panel.edit()
    layer = bench.mask_panel.layer
    layer.selected_label, layer.brush_size = 0, 20
    before = shown_counts(bench)["20x"]
    press_drag_release(bench, qtbot, [(400, 400), (1400, 1000)])
    qtbot.waitUntil(lambda: shown_counts(bench)["20x"] < before, timeout=PATIENCE)
    for code, scale in enumerate(("20x", "10x", "5x")):
        bench.session.set_scale(code)
        qtbot.waitUntil(
            lambda scale=scale: previewed(bench, scale) == shown_counts(bench)[scale],
            timeout=PATIENCE,
        )


def test_the_painted_mask_selects_the_same_patches_on_the_command_line(
    bench, qtbot, painted_svs, tiny_checkpoint, tmp_path
):
    whole_slide_mask(bench.session)
    bench.mask_panel.edit()
    layer = bench.mask_panel.layer
    layer.selected_label, layer.brush_size = 0, 25
    before = len(bench.session.grid)
    press_drag_release(bench, qtbot, [(300, 300), (900, 800), (1500, 500)])
    qtbot.waitUntil(lambda: len(bench.session.grid) < before, timeout=PATIENCE)
    edited = tmp_path / "edited.geojson"
    bench.mask_panel.save(edited)
    out = tmp_path / "out"
    words = ["classify", str(painted_svs), "--model", str(tiny_checkpoint)]
    assert cli.main([*words, "-o", str(out), "--mask", str(edited)]) == 0
    with next(out.glob("*/patches.csv")).open(encoding="utf-8") as file:
        found = [(r["scale"], int(r["x"]), int(r["y"])) for r in csv.DictReader(file)]
    grid = bench.session.grid
    expected = [
        (grid.spec.scales[int(s)].name, int(x), int(y))
        for (x, y), s in zip(grid.coords_xy0, grid.scale, strict=True)
    ]
    assert found == expected
