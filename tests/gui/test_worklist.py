"""Many slides: queue, run, resume, judge, export labels that training reads."""

from __future__ import annotations

import csv
import shutil
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from napari_msamil.gui.slide_queue import uncertainty
from napari_msamil.gui.worklist_table import (
    CLASS_C,
    COMMENT_C,
    LABEL_C,
    PROB_C,
    SLIDE_C,
    STATE_C,
    VERDICT_C,
)
from tests.gui.conftest import busy_threads, click, click_cell

if TYPE_CHECKING:
    from napari_msamil.gui.worklist import WorklistWidget

pytestmark = pytest.mark.gui
PATIENCE = 120_000


@pytest.fixture
def slides(tmp_path, painted_svs):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("b two.svs", "a one.svs"):
        shutil.copy(painted_svs, folder / name)
    (folder / "c broken.svs").write_text("no slide")
    return folder


@pytest.fixture
def worklist(make_napari_viewer, qtbot, tiny_checkpoint, tmp_path):
    viewer = make_napari_viewer()
    _, widget = viewer.window.add_plugin_dock_widget(
        "napari-msamil", "MSA-MIL worklist"
    )
    widget.session.set_model(str(tiny_checkpoint))
    widget._output.setText(str(tmp_path / "results"))
    yield widget
    widget.runner.cancel()
    qtbot.waitUntil(lambda: not busy_threads(), timeout=PATIENCE)
    if widget.session.slide is not None:
        widget.session.slide.close()


def run(worklist, qtbot):
    click(qtbot, worklist._run)
    qtbot.waitUntil(lambda: not worklist.runner.running, timeout=PATIENCE)


def judge(worklist, qtbot, name, downs):
    """Choose a verdict with the keyboard: open, agree, disagree."""
    from qtpy.QtCore import Qt

    box = worklist.table.cellWidget(worklist.table.row_of(name), VERDICT_C)
    for _ in range(downs):
        qtbot.keyClick(box, Qt.Key.Key_Down)


def column(worklist, number):
    return {
        worklist.table.item(i, SLIDE_C).text(): worklist.table.item(i, number).text()
        for i in range(worklist.table.rowCount())
    }


def test_uncertainty_runs_from_sure_to_any_class():
    assert uncertainty({"a": 1.0, "b": 0.0}) == 0.0
    assert uncertainty({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}) == pytest.approx(1.0)
    assert uncertainty({"a": 0.6, "b": 0.4}) > uncertainty({"a": 0.9, "b": 0.1})


def test_queue_run_resume_judge_and_export(
    worklist: WorklistWidget, qtbot, slides, tmp_path, monkeypatch
):
    """Issue 6, point 7."""
    worklist.add([slides])
    worklist.add([slides])
    assert worklist.table.rowCount() == 3
    qtbot.waitUntil(
        lambda: (
            not worklist.table.item(worklist.table.row_of("a one"), SLIDE_C)
            .icon()
            .isNull()
        ),
        timeout=PATIENCE,
    )
    run(worklist, qtbot)
    states = column(worklist, STATE_C)
    assert states == {"a one": "done", "b two": "done", "c broken": "failed"}
    assert "broken" in column(worklist, CLASS_C)["c broken"]
    written = tmp_path / "results" / "a one" / "result.json"
    before = written.stat().st_mtime_ns
    run(worklist, qtbot)
    assert (
        written.stat().st_mtime_ns == before
    )  # finished slides are not computed again
    prediction = column(worklist, CLASS_C)["a one"]
    judge(worklist, qtbot, "a one", downs=1)
    judge(worklist, qtbot, "b two", downs=2)
    at = worklist.table.row_of("b two")
    worklist.table.item(at, LABEL_C).setText("wild")
    worklist.table.item(at, COMMENT_C).setText("pen mark")
    out = tmp_path / "labels.csv"
    dialog = SimpleNamespace(getSaveFileName=lambda *_: (str(out), ""))
    monkeypatch.setattr("napari_msamil.gui.worklist.QFileDialog", dialog)
    click(qtbot, worklist._export)
    assert "Wrote 2 judged slides" in worklist._status.text()
    from training.cohort import read_cohort

    cohort = read_cohort(out)
    labels = {row.slide_id: row.label for row in cohort.rows}
    assert labels == {"a one": prediction, "b two": "wild"}
    with out.open(newline="", encoding="utf-8") as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert rows["b two"]["verdict"] == "disagree"
    assert rows["b two"]["comment"] == "pen mark"


def test_numbers_sort_as_numbers(worklist, qtbot, slides):
    from qtpy.QtCore import Qt

    worklist.add([slides])
    run(worklist, qtbot)
    worklist.table.sortItems(PROB_C, Qt.SortOrder.DescendingOrder)
    assert worklist.table.item(2, SLIDE_C).text() == "c broken"


def test_double_click_opens_the_slide_with_its_answer(worklist, qtbot, slides):
    worklist.add([slides / "a one.svs"])
    run(worklist, qtbot)
    at = worklist.table.row_of("a one")
    click_cell(qtbot, worklist.table, worklist.table.item(at, SLIDE_C), double=True)
    assert worklist.session.slide.info.name == "a one"
    assert worklist.session.result.prediction == column(worklist, CLASS_C)["a one"]


def test_cancel_keeps_what_is_finished(worklist, qtbot, slides):
    worklist.add([slides])
    worklist.run()
    qtbot.waitUntil(
        lambda: "done" in column(worklist, STATE_C).values(), timeout=PATIENCE
    )
    click(qtbot, worklist._cancel)
    assert worklist._run.isEnabled()
    assert "done" in column(worklist, STATE_C).values()
