"""What would the answer be without a region, and with that region only?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QTableWidgetItem

from napari_msamil.gui.buttons import button
from napari_msamil.gui.canvas import drop_layers, find_layers, order_layers, put_layer
from napari_msamil.gui.explain import WhatIf, patches_inside, what_if_steps
from napari_msamil.gui.layers import region_layer, shapes_xy0
from napari_msamil.gui.query_panel import make_table
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.strings import TITLE, WHAT_IF
from napari_msamil.gui.worker import Runner

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_msamil.gui.session import Session


class WhatIfPanel(Panel):
    """Draw a region, ask, read the difference."""

    title = TITLE.what_if
    starts_open = False

    def __init__(self, session: Session, viewer: ViewerModel) -> None:
        super().__init__(session)
        self._viewer = viewer
        self._runner = Runner()
        self._draw = button(WHAT_IF.draw, WHAT_IF.draw_tip, self.draw)
        self._ask = button(WHAT_IF.ask, WHAT_IF.ask_tip, self.ask)
        self._clear = button(WHAT_IF.clear, WHAT_IF.clear, self.clear)
        self._counts = note(WHAT_IF.draw_tip)
        headers = [
            WHAT_IF.column_class,
            WHAT_IF.column_full,
            WHAT_IF.column_without,
            WHAT_IF.column_only,
        ]
        self.table = make_table(headers, WHAT_IF.ask_tip, rows=4)
        self.column.addLayout(row(self._draw, self._ask, self._clear))
        self.column.addWidget(self._counts)
        self.column.addWidget(self.table)
        session.result_changed.connect(self.refresh)
        session.slide_changed.connect(self.clear)
        self.refresh()

    def refresh(self) -> None:
        """A new answer: what was asked about the one before is void."""
        result = self.session.result
        ready = result is not None and not result.partial
        for widget in (self._draw, self._ask, self._clear):
            widget.setEnabled(ready)
        self.table.setRowCount(0)
        self.table.setVisible(False)
        self.sum_up("", State.EMPTY)

    def draw(self) -> None:
        """Take the polygon tool into the hand."""
        slide = self.session.slide
        if slide is None:
            return
        layers = find_layers(self._viewer, "region")
        layer: Any = layers[0] if layers else None
        if layer is None:
            layer = put_layer(self._viewer, region_layer(slide.info))
            layer.events.data.connect(self._on_region)
        order_layers(self._viewer)
        self._viewer.layers.selection.active = layer
        layer.mode = "add_polygon_lasso"

    def _on_region(self, event: Any) -> None:
        """A region was closed, moved or taken away: the question is clear, so it is asked."""
        if event.action in ("added", "changed", "removed") and len(event.value):
            self.ask()

    def ask(self) -> None:
        """Ask for the answer without the region and with it only."""
        result, loaded = self.session.result, self.session.loaded
        if result is None or loaded is None:
            return
        shapes = [
            s
            for layer in find_layers(self._viewer, "region")
            for s in shapes_xy0(layer, result.info)
        ]
        inside = (
            patches_inside(result, shapes)
            if shapes
            else np.zeros(len(result.grid), bool)
        )
        self.sum_up("…", State.RUNNING)
        self._runner.start(
            what_if_steps(loaded, result, inside),
            on_done=self._show,
            on_failed=self._on_failed,
        )

    def _on_failed(self, message: str) -> None:
        self._counts.setText(message)
        self.sum_up("", State.ERROR)

    def _show(self, found: WhatIf) -> None:
        result = self.session.result
        if result is None:
            return
        self._counts.setText(
            WHAT_IF.counts.format(inside=found.inside, total=found.total)
        )
        count = len(result.classes)
        self.table.setRowCount(count)
        self.table.setFixedHeight(
            (min(count, 12) + 1) * (self.table.fontMetrics().height() + 6) + 8
        )
        for position, name in enumerate(result.classes):
            values = (found.full, found.without, found.only)
            texts = [name, *(f"{float(v[position]):.1%}" for v in values)]
            for column, text in enumerate(texts):
                item = QTableWidgetItem(text)
                if column:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignCenter)
                self.table.setItem(position, column, item)
        self.table.setVisible(True)
        best = int(np.argmax(found.full))
        delta = 100 * float(found.without[best] - found.full[best])
        self.sum_up(f"{result.classes[best]} {delta:+.1f} without", State.DONE)

    def clear(self) -> None:
        """Forget the region."""
        self._runner.cancel()
        drop_layers(self._viewer, "region")
        self._counts.setText(WHAT_IF.draw_tip)
        self.refresh()
