"""Which learned query looks where, how much it counts, and how much each scale matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
)

from napari_msamil.gui.buttons import button
from napari_msamil.gui.explain import contribution_steps
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.strings import QUERY, RESULT, TITLE
from napari_msamil.gui.worker import Runner

if TYPE_CHECKING:
    from napari_msamil.gui.session import Session
    from napari_msamil.result import SlideResult


class QueryPanel(Panel):
    """Table of queries, table of scales; choosing a query changes the maps and the gallery."""

    title = TITLE.queries
    starts_open = False

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._runner = Runner()
        headers = [
            QUERY.column_query,
            QUERY.column_gate,
            QUERY.column_top,
            QUERY.column_scale,
        ]
        self.table = make_table(headers, QUERY.tip, rows=12)
        self.table.itemSelectionChanged.connect(self._on_selected)
        self._hint = note(QUERY.tip)
        self._scales = note()
        self._leave_out = button(
            QUERY.contribute, QUERY.contribution_tip, self.leave_scales_out
        )
        self.column.addWidget(self._hint)
        self.column.addWidget(self.table)
        self.column.addWidget(self._scales)
        self.column.addLayout(row(self._leave_out))
        session.result_changed.connect(self.refresh)
        session.query_changed.connect(self._on_query)
        self.refresh()

    def refresh(self) -> None:
        """Show the session's answer."""
        result = self.session.result
        self._runner.cancel()
        self._leave_out.setEnabled(
            result is not None and not result.partial and len(result.features) > 0
        )
        queries = None if result is None else result.query_attention
        self.table.setVisible(queries is not None)
        self._hint.setText(QUERY.tip if queries is not None else QUERY.none)
        self._hint.setVisible(result is not None)
        self._scales.setVisible(result is not None)
        if result is None:
            self.sum_up("", State.EMPTY)
            return
        if queries is not None:
            self._fill(result, queries)
        self._scales.setText(_scale_lines(result, {}))
        self._on_query()

    def _fill(self, result: SlideResult, queries: np.ndarray) -> None:
        """Row 0 is all queries together; each other row is one query."""
        self.table.blockSignals(True)
        self.table.setRowCount(len(queries) + 1)
        rows = [(QUERY.all, "", result.attention)]
        for number, values in enumerate(queries):
            gate = "" if result.gates is None else f"{float(result.gates[number]):.2f}"
            rows.append((str(number), gate, values))
        for position, (name, gate, values) in enumerate(rows):
            texts = (name, gate, _peak(values), _main_scale(result, values))
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                if column:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignCenter)
                self.table.setItem(position, column, item)
        self.table.blockSignals(False)

    def _on_selected(self) -> None:
        at = self.table.currentRow()
        self.session.set_query(None if at <= 0 else at - 1)

    def select(self, query: int | None) -> None:
        """Choose a query as a click on its row does; None is all together."""
        self.table.selectRow(0 if query is None else query + 1)

    def _on_query(self) -> None:
        result, query = self.session.result, self.session.query
        if result is None:
            return
        wanted = 0 if query is None else query + 1
        if self.table.rowCount() and self.table.currentRow() != wanted:
            self.table.blockSignals(True)
            self.table.selectRow(wanted)
            self.table.blockSignals(False)
        name = QUERY.all if query is None else f"{QUERY.column_query} {query}"
        there = result.query_attention is not None
        self.sum_up(name if there else "", State.DONE)

    def leave_scales_out(self) -> None:
        """Ask again without each scale; nothing is encoded."""
        result, loaded = self.session.result, self.session.loaded
        if result is not None and loaded is not None:
            self._runner.start(
                contribution_steps(loaded, result),
                on_done=lambda found: self._scales.setText(_scale_lines(result, found)),
                on_failed=self.session.failed.emit,
            )


def make_table(headers: list[str], tip: str, rows: int) -> QTableWidget:
    """A read-only table whose rows are chosen whole; `rows` is how many it shows without scrolling."""
    table = QTableWidget(0, len(headers))
    table.setHorizontalHeaderLabels(headers)
    table.setToolTip(tip)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setTabKeyNavigation(False)  # Tab leads on to what is below
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    header, side = table.horizontalHeader(), table.verticalHeader()
    if header is not None and side is not None:
        header.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        side.setVisible(False)
        side.setDefaultSectionSize(table.fontMetrics().height() + 6)
    table.setFixedHeight((rows + 1) * (table.fontMetrics().height() + 6) + 6)
    return table


def _peak(values: np.ndarray) -> str:
    return f"{float(values.max()):.1%}" if len(values) else ""


def _main_scale(result: SlideResult, values: np.ndarray) -> str:
    """The scale that gets most of the attention, with its share."""
    shares = np.bincount(
        result.grid.scale, weights=values, minlength=len(result.grid.size_px0)
    )
    code = int(shares.argmax())
    return f"{result.grid.spec.scales[code].name} {shares[code] / max(shares.sum(), 1e-12):.0%}"


def _scale_lines(result: SlideResult, without: dict[str, float]) -> str:
    """Attention per scale, and the change without it where that is known."""
    shares = np.bincount(
        result.grid.scale,
        weights=result.attention,
        minlength=len(result.grid.size_px0),
    )
    lines = [RESULT.scale_share]
    for code, spec in enumerate(result.grid.spec.scales):
        line = f"   {spec.name}  {shares[code]:.0%}"
        if spec.name in without:
            change = RESULT.without_scale.format(
                scale=spec.name, delta=100 * without[spec.name]
            )
            line += f"   ·  {result.prediction} {change}"
        lines.append(line)
    return "\n".join(lines)
