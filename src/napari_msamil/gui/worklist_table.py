"""The table of the worklist: one row per slide, found again by name wherever sorting has put it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from psygnal import Signal
from qtpy.QtCore import QSize
from qtpy.QtGui import QIcon
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableWidget

from napari_msamil.gui.slide_queue import Entry, uncertainty
from napari_msamil.gui.strings import WORKLIST
from napari_msamil.gui.thumbnails import pixmap
from napari_msamil.gui.verdicts import NumberItem, VerdictBox, text_item

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from qtpy.QtWidgets import QTableWidgetItem

SLIDE_C, STATE_C, CLASS_C, PROB_C, UNSURE_C, VERDICT_C, LABEL_C, COMMENT_C = range(8)
ICON_PX = 40
WORD_PX = 190


class WorklistTable(QTableWidget):
    """Slides with their answers, sortable by any column."""

    judged = Signal(str, str)  # slide, verdict
    typed = Signal(str, int, str)  # slide, column, text
    wanted = Signal(str)  # slide to open

    def __init__(self) -> None:
        super().__init__(0, len(WORKLIST.columns))
        self.setHorizontalHeaderLabels(list(WORKLIST.columns))
        self.setIconSize(QSize(ICON_PX, ICON_PX))
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSortingEnabled(True)
        self.setTabKeyNavigation(False)
        header, side = self.horizontalHeader(), self.verticalHeader()
        if header is not None and side is not None:
            header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
            header.setSectionResizeMode(COMMENT_C, QHeaderView.ResizeMode.Stretch)
            for column in (
                CLASS_C,
                LABEL_C,
            ):  # one long sentence would take all the room
                header.setSectionResizeMode(column, QHeaderView.ResizeMode.Interactive)
                header.resizeSection(column, WORD_PX)
            header.setToolTip(WORKLIST.uncertainty_tip)
            side.setVisible(False)
            side.setDefaultSectionSize(ICON_PX + 6)
        self.itemDoubleClicked.connect(
            lambda item: self.wanted.emit(self.name_at(item.row()))
        )
        self.itemChanged.connect(self._on_changed)

    def show_entries(self, entries: Sequence[Entry]) -> None:
        """Build all rows anew; pictures that are there are kept."""
        icons = {self.name_at(i): self._icon_at(i) for i in range(self.rowCount())}
        with self._quiet():
            self.setRowCount(len(entries))
            for position, entry in enumerate(entries):
                self._fill_row(position, entry, icons.get(entry.job.name))

    def update_entry(self, entry: Entry) -> None:
        """Show what is new of one slide."""
        with self._quiet():
            at = self.row_of(entry.job.name)
            if at >= 0:
                self._fill_row(at, entry, self._icon_at(at))

    def set_state(self, name: str, text: str) -> None:
        """Write into the state column of one slide."""
        with self._quiet():
            item = self.item(self.row_of(name), STATE_C)
            if item is not None:
                item.setText(text)

    def show_thumbnails(self, found: dict[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) by slide name."""
        with self._quiet():
            for name, pixels in found.items():
                item = self.item(self.row_of(name), SLIDE_C)
                if item is not None and item.icon().isNull():
                    item.setIcon(QIcon(pixmap(pixels, ICON_PX)))

    def name_at(self, at: int) -> str:
        """The slide of a row; empty where there is no such row."""
        item = self.item(at, SLIDE_C)
        return item.text() if item is not None else ""

    def row_of(self, name: str) -> int:
        """The row of a slide, or -1."""
        names = (self.name_at(i) for i in range(self.rowCount()))
        return next((i for i, found in enumerate(names) if found == name), -1)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """While rows are written, nothing is sorted and nobody is told."""
        self.setSortingEnabled(False)
        self.blockSignals(True)
        try:
            yield
        finally:
            self.blockSignals(False)
            self.setSortingEnabled(True)

    def _fill_row(self, at: int, entry: Entry, icon: QIcon | None) -> None:
        for column, item in enumerate(row_items(entry)):
            if column == SLIDE_C and icon is not None:
                item.setIcon(icon)
            self.setItem(at, column, item)
        box = self.cellWidget(at, VERDICT_C)
        if not isinstance(box, VerdictBox) or box.name != entry.job.name:
            box = VerdictBox(entry.job.name, self.judged.emit)
            self.setCellWidget(at, VERDICT_C, box)
        box.show_verdict(entry.verdict)
        box.setEnabled(entry.done)

    def _icon_at(self, at: int) -> QIcon | None:
        item = self.item(at, SLIDE_C)
        return item.icon() if item is not None else None

    def _on_changed(self, item: QTableWidgetItem) -> None:
        if item.column() in (LABEL_C, COMMENT_C):
            name = self.name_at(item.row())
            self.typed.emit(name, item.column(), item.text().strip())


def row_items(entry: Entry) -> list[QTableWidgetItem]:
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
    return items
