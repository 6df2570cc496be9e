"""The worklist dock: many slides, one after the other, judged by a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QSize, Qt, QTimer
from qtpy.QtGui import QIcon
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHeaderView,
    QLabel,
    QLineEdit,
    QProgressBar,
    QTableWidget,
    QVBoxLayout,
    QWidget,
)

from napari_msamil.errors import MsamilError
from napari_msamil.gui.buttons import button
from napari_msamil.gui.command import results_folder
from napari_msamil.gui.docking import move_to_bottom
from napari_msamil.gui.section import note, row
from napari_msamil.gui.session import session_of
from napari_msamil.gui.settings import read_settings
from napari_msamil.gui.slide_queue import (
    Entry,
    QueueState,
    queue_steps,
    read_entries,
    thumbnail_steps,
    uncertainty,
    write_labels,
)
from napari_msamil.gui.strings import RUN, SLIDE, WORKLIST
from napari_msamil.gui.thumbnails import pixmap
from napari_msamil.gui.verdicts import NumberItem, VerdictBox, text_item
from napari_msamil.gui.worker import Runner

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from napari.viewer import Viewer
    from qtpy.QtGui import QCloseEvent
    from qtpy.QtWidgets import QTableWidgetItem

    from napari_msamil.progress import Progress

SLIDE_C, STATE_C, CLASS_C, PROB_C, UNSURE_C, VERDICT_C, LABEL_C, COMMENT_C = range(8)
ICON_PX = 40


class WorklistWidget(QWidget):
    """Queue, run, resume, sort, judge, export.

    Args:
        napari_viewer: The viewer slides are opened in.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self.entries: list[Entry] = []
        self.runner, self._thumbs = Runner(), Runner()
        self.table = self._make_table()
        self._output = QLineEdit(str(results_folder()))
        self._output.setToolTip(WORKLIST.output)
        self._output.setAccessibleName(WORKLIST.output)
        self._run = button(WORKLIST.run, WORKLIST.run_tip, self.run)
        self._cancel = button(WORKLIST.cancel, RUN.cancel_tip, self.cancel)
        self._export = button(WORKLIST.export, WORKLIST.export_tip, self._on_export)
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setMaximumHeight(8)
        self._status = note(WORKLIST.empty)
        column = QVBoxLayout(self)
        column.setContentsMargins(6, 6, 6, 6)
        column.addLayout(
            row(
                button(WORKLIST.add, WORKLIST.add, self._on_add),
                button(WORKLIST.add_folder, WORKLIST.add_folder, self._on_folder),
                button(WORKLIST.add_cohort, WORKLIST.add_cohort, self._on_cohort),
                button(WORKLIST.remove, WORKLIST.remove_tip, self.remove_selected),
            )
        )
        column.addWidget(self.table, 1)
        column.addLayout(
            row(
                QLabel(WORKLIST.output),
                self._output,
                self._run,
                self._cancel,
                self._export,
                stretch=1,
            )
        )
        column.addWidget(self._bar)
        column.addWidget(self._status)
        self.setMinimumHeight(260)
        self._follow()
        QTimer.singleShot(0, self._settle)

    def _settle(self) -> None:
        """Once docked: below the canvas, where a table has room."""
        move_to_bottom(self)

    def _make_table(self) -> QTableWidget:
        table = QTableWidget(0, len(WORKLIST.columns))
        table.setHorizontalHeaderLabels(list(WORKLIST.columns))
        table.setIconSize(QSize(ICON_PX, ICON_PX))
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSortingEnabled(True)
        header, side = table.horizontalHeader(), table.verticalHeader()
        if header is not None and side is not None:
            header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
            header.setSectionResizeMode(COMMENT_C, QHeaderView.ResizeMode.Stretch)
            header.setToolTip(WORKLIST.uncertainty_tip)
            side.setVisible(False)
            side.setDefaultSectionSize(ICON_PX + 6)
        table.itemDoubleClicked.connect(lambda item: self.open_row(item.row()))
        table.itemChanged.connect(self._on_edited)
        return table

    def _on_add(self) -> None:
        names, _ = QFileDialog.getOpenFileNames(self, WORKLIST.add, "", SLIDE.filter)
        self.add([Path(name) for name in names])

    def _on_folder(self) -> None:
        name = QFileDialog.getExistingDirectory(self, WORKLIST.add_folder)
        self.add([Path(name)] if name else [])

    def _on_cohort(self) -> None:
        name, _ = QFileDialog.getOpenFileName(
            self, WORKLIST.add_cohort, "", "CSV (*.csv)"
        )
        self.add([Path(name)] if name else [])

    def add(self, words: Sequence[Path]) -> None:
        """Add slides of files, folders or cohort tables; each slide is listed once."""
        if not words:
            return
        try:
            found = read_entries(words)
        except MsamilError as error:
            self._status.setText(str(error))
            return
        known = {entry.job.path.resolve() for entry in self.entries}
        self.entries += [e for e in found if e.job.path.resolve() not in known]
        self._fill()
        self._thumbs.start(
            thumbnail_steps([e.job for e in self.entries]),
            on_progress=lambda step: self._show_thumbnails(step.partial),
            on_done=self._show_thumbnails,
            on_failed=self._status.setText,
        )

    def remove_selected(self) -> None:
        """Take the selected rows off the list; results on disk stay."""
        gone = {self._name_at(i.row()) for i in self.table.selectedItems()}
        self.entries = [e for e in self.entries if e.job.name not in gone]
        self._fill()

    def run(self) -> None:
        """Classify what is not finished; finished results are taken from disk."""
        from napari_msamil.batch_job import BatchOptions

        settings = read_settings()
        output = Path(self._output.text()).expanduser()
        options = BatchOptions(
            output=output,
            model=self.session.model_ref,
            device=settings.device,
            precision=settings.precision,
        )
        self.runner.start(
            queue_steps([e.job for e in self.entries], options),
            on_progress=self._on_progress,
            on_done=self._on_done,
            on_failed=self._on_failed,
        )
        self._follow()

    def cancel(self) -> None:
        """Stop after this moment; finished slides keep their results and are skipped next time."""
        self.runner.cancel()
        self._fill()
        self._follow()

    def _on_progress(self, step: Progress) -> None:
        self._bar.setRange(0, 100 * max(step.total, 1))
        state = step.partial
        if isinstance(state, QueueState):
            self._bar.setValue(round(100 * (step.done + state.fraction)))
            self._take(state)

    def _take(self, state: QueueState) -> None:
        """Rows that are new go into the table; the slide under way is marked."""
        for position, entry in enumerate(self.entries):
            found = state.rows.get(entry.job.name)
            if found is not None and found is not entry.row:
                self.entries[position] = replace(entry, row=found)
                self._update(entry.job.name)
            elif entry.job.name == state.current:
                text = f"{WORKLIST.running} {state.fraction:.0%}"
                self._set_text(entry.job.name, STATE_C, text)
        self._sum_up()

    def _on_done(self, state: QueueState) -> None:
        self._take(state)
        self._follow()

    def _on_failed(self, message: str) -> None:
        self._follow()
        self._status.setText(message)

    def _follow(self) -> None:
        running = self.runner.running
        self._run.setEnabled(bool(self.entries) and not running)
        self._cancel.setVisible(running)
        self._bar.setVisible(running)
        self._sum_up()

    def _sum_up(self) -> None:
        self._export.setEnabled(any(e.final_label for e in self.entries))
        if not self.entries:
            self._status.setText(WORKLIST.empty)
            return
        done = sum(e.done for e in self.entries)
        failed = sum(e.row is not None and not e.done for e in self.entries)
        self._status.setText(
            WORKLIST.summary.format(done=done, total=len(self.entries), failed=failed)
        )

    def _fill(self) -> None:
        """Build the rows anew."""
        icons = {
            self._name_at(i): self._icon_at(i) for i in range(self.table.rowCount())
        }
        self.table.setSortingEnabled(False)
        self.table.blockSignals(True)
        self.table.setRowCount(len(self.entries))
        for position, entry in enumerate(self.entries):
            self._fill_row(position, entry, icons.get(entry.job.name))
        self.table.blockSignals(False)
        self.table.setSortingEnabled(True)
        self._follow()

    def _fill_row(self, position: int, entry: Entry, icon: QIcon | None) -> None:
        for column, item in enumerate(_row_items(entry)):
            if column == SLIDE_C and icon is not None:
                item.setIcon(icon)
            self.table.setItem(position, column, item)
        name = entry.job.name
        box = VerdictBox(entry.verdict, lambda v: self.judge(name, v))
        box.setEnabled(entry.done)
        self.table.setCellWidget(position, VERDICT_C, box)

    def _update(self, name: str) -> None:
        """Show an entry's answer in its row, wherever sorting has put it."""
        entry = next(e for e in self.entries if e.job.name == name)
        self.table.setSortingEnabled(False)
        self.table.blockSignals(True)
        at = self._row_of(name)
        self._fill_row(at, entry, self._icon_at(at))
        self.table.blockSignals(False)
        self.table.setSortingEnabled(True)

    def judge(
        self, name: str, verdict: str, label: str = "", comment: str = ""
    ) -> None:
        """Agree or disagree with the answer for a slide.

        Args:
            name: The slide.
            verdict: `agree`, `disagree` or empty.
            label: The right class, for `disagree`.
            comment: Free text; empty keeps what is there.
        """
        for position, entry in enumerate(self.entries):
            if entry.job.name == name:
                self.entries[position] = replace(
                    entry,
                    verdict=verdict,
                    label=label or entry.label,
                    comment=comment or entry.comment,
                )
                self._update(name)
        self._sum_up()

    def _on_edited(self, item: QTableWidgetItem) -> None:
        """A label or comment was typed."""
        if item.column() not in (LABEL_C, COMMENT_C):
            return
        name, text = self._name_at(item.row()), item.text().strip()
        for position, entry in enumerate(self.entries):
            if entry.job.name != name:
                continue
            if item.column() == LABEL_C:
                self.entries[position] = replace(entry, label=text)
            else:
                self.entries[position] = replace(entry, comment=text)
        self._sum_up()

    def open_row(self, at: int) -> None:
        """Open a slide, with its answer if there is one."""
        from napari_msamil.gui.app import show_slide

        name = self._name_at(at)
        entry = next((e for e in self.entries if e.job.name == name), None)
        if entry is None:
            return
        folder = Path(self._output.text()).expanduser() / name if entry.done else None
        try:
            show_slide(self.viewer, entry.job.path, entry.job.mpp, folder)
        except MsamilError as error:
            self._status.setText(str(error))

    def _on_export(self) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self, WORKLIST.export, "labels.csv", "CSV (*.csv)"
        )
        if name:
            count = write_labels(self.entries, Path(name))
            self._status.setText(WORKLIST.exported.format(count=count, path=name))

    def _show_thumbnails(self, found: dict[str, np.ndarray] | None) -> None:
        self.table.blockSignals(True)
        for name, pixels in (found or {}).items():
            at = self._row_of(name)
            item = self.table.item(at, SLIDE_C) if at >= 0 else None
            if item is not None and item.icon().isNull():
                item.setIcon(QIcon(pixmap(pixels, ICON_PX)))
        self.table.blockSignals(False)

    def _name_at(self, at: int) -> str:
        item = self.table.item(at, SLIDE_C)
        return item.text() if item is not None else ""

    def _icon_at(self, at: int) -> QIcon | None:
        item = self.table.item(at, SLIDE_C)
        return item.icon() if item is not None else None

    def _row_of(self, name: str) -> int:
        names = (self._name_at(i) for i in range(self.table.rowCount()))
        return next((i for i, found in enumerate(names) if found == name), -1)

    def _set_text(self, name: str, column: int, text: str) -> None:
        self.table.blockSignals(True)
        item = self.table.item(self._row_of(name), column)
        if item is not None:
            item.setText(text)
        self.table.blockSignals(False)

    def closeEvent(self, event: QCloseEvent | None) -> None:
        """The dock is closed."""
        self.runner.cancel()
        self._thumbs.cancel()
        super().closeEvent(event)


def _row_items(entry: Entry) -> list[QTableWidgetItem]:
    """The cells of an entry, in the order of the columns."""
    answer = entry.row if entry.done else None
    state = WORKLIST.waiting
    if entry.row is not None:
        state = WORKLIST.done if entry.done else WORKLIST.failed
    items = [
        text_item(entry.job.name),
        text_item(state),
        text_item(answer.prediction if answer else ""),
        NumberItem(answer.probability if answer else None),
        NumberItem(uncertainty(answer.probabilities) if answer else None),
        text_item(""),
        text_item(entry.final_label or entry.label, editable=True),
        text_item(entry.comment, editable=True),
    ]
    if entry.row is not None and entry.row.error:
        items[STATE_C].setToolTip(entry.row.error)
        items[CLASS_C].setText(entry.row.error)
        items[CLASS_C].setToolTip(entry.row.error)
    items[SLIDE_C].setToolTip(str(entry.job.path))
    items[SLIDE_C].setTextAlignment(
        Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
    )
    return items
