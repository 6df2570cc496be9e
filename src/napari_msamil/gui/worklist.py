"""The worklist dock: many slides, one after the other, judged by a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QFileDialog,
    QLabel,
    QLineEdit,
    QProgressBar,
    QVBoxLayout,
    QWidget,
)

from napari_msamil.errors import MsamilError
from napari_msamil.gui.buttons import button
from napari_msamil.gui.command import results_folder
from napari_msamil.gui.docking import move_to_bottom, stop_at_end, when_removed
from napari_msamil.gui.section import note, row
from napari_msamil.gui.session import session_of
from napari_msamil.gui.settings import read_settings
from napari_msamil.gui.slide_queue import (
    Entry,
    QueueState,
    queue_steps,
    read_entries,
    thumbnail_steps,
    write_labels,
)
from napari_msamil.gui.strings import RUN, SLIDE, WORKLIST
from napari_msamil.gui.worker import Runner
from napari_msamil.gui.worklist_table import LABEL_C, WorklistTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari.viewer import Viewer
    from qtpy.QtGui import QCloseEvent

    from napari_msamil.progress import Progress


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
        self.table = WorklistTable()
        self.table.judged.connect(self.judge)
        self.table.typed.connect(self._on_typed)
        self.table.wanted.connect(self.open_slide)
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
        self._lay_out()
        self.setMinimumHeight(260)
        self._follow()
        when_removed(self, self.close_down)
        stop_at_end(self, [self.runner, self._thumbs])
        QTimer.singleShot(0, self._settle)

    def _lay_out(self) -> None:
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

    def _settle(self) -> None:
        """Once docked: below the canvas, where a table has room."""
        move_to_bottom(self)

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
            on_progress=lambda step: self.table.show_thumbnails(step.partial or {}),
            on_done=self.table.show_thumbnails,
            on_failed=self._status.setText,
        )

    def remove_selected(self) -> None:
        """Take the selected rows off the list; results on disk stay."""
        gone = {self.table.name_at(i.row()) for i in self.table.selectedItems()}
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
                self.table.update_entry(self.entries[position])
            elif entry.job.name == state.current:
                text = f"{WORKLIST.running} {state.fraction:.0%}"
                self.table.set_state(entry.job.name, text)
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
        self.table.show_entries(self.entries)
        self._follow()

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
                self.table.update_entry(self.entries[position])
        self._sum_up()

    def _on_typed(self, name: str, column: int, text: str) -> None:
        """A label or comment was typed."""
        for position, entry in enumerate(self.entries):
            if entry.job.name != name:
                continue
            if column == LABEL_C:
                self.entries[position] = replace(entry, label=text)
            else:
                self.entries[position] = replace(entry, comment=text)
        self._sum_up()

    def open_slide(self, name: str) -> None:
        """Open a slide, with its answer if there is one."""
        from napari_msamil.gui.app import show_slide

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

    def close_down(self) -> None:
        """Stop what runs; finished slides keep their results."""
        self.runner.cancel()
        self._thumbs.cancel()

    def closeEvent(self, event: QCloseEvent | None) -> None:
        """The widget is closed by itself, outside a dock."""
        self.close_down()
        super().closeEvent(event)
