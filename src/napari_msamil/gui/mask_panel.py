"""Section 3: find the mask, correct it, exchange it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog

from napari_msamil.errors import MsamilError
from napari_msamil.gui.buttons import button, check, chooser
from napari_msamil.gui.canvas import drop_layers, order_layers, put_layer
from napari_msamil.gui.layers import mask_layer
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.strings import MASK, TITLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.components import ViewerModel
    from napari.layers import Labels

    from napari_msamil.gui.session import Session

PAINT_MS = 15
"""A stroke is taken over at most this often while the brush moves."""

SETTLE_MS = 250
"""Patches are placed, sorted and previewed at most this often meanwhile; counting them does not wait for it."""

SOURCES = {
    "model": MASK.source_model,
    "tissue": MASK.source_tissue,
    "file": MASK.source_file,
    "user": MASK.source_user,
}


class MaskPanel(Panel):
    """The mask as a labels layer that can be painted."""

    title = TITLE.mask

    def __init__(
        self, session: Session, viewer: ViewerModel, find: Callable[[str], None]
    ) -> None:
        super().__init__(session)
        self._viewer = viewer
        self._find_mask = find
        self.layer: Labels | None = None
        self._method = chooser(
            [
                (MASK.method_lesion, "lesion"),
                (MASK.method_tissue, "tissue"),
                (MASK.method_all, "all"),
            ],
            MASK.method_tip,
            lambda: None,
        )
        self._find = button(MASK.find, MASK.find_tip, self._on_find)
        self._edit = button(MASK.edit, MASK.edit_tip, self.edit)
        self._reset = button(MASK.reset, MASK.reset_tip, session.reset_mask)
        self._lock = check(MASK.lock, MASK.lock_tip, self._on_lock)
        self._outline = check(MASK.outline, MASK.outline_tip, self._on_outline)
        self._load = button(MASK.load, MASK.load_tip, self._on_load)
        self._save = button(MASK.save, MASK.save_tip, self._on_save)
        self._facts = note()
        self.column.addLayout(row(self._method, self._find, stretch=0))
        self.column.addLayout(row(self._edit, self._reset, self._load, self._save))
        self.column.addLayout(row(self._outline, self._lock))
        self.column.addWidget(self._facts)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(PAINT_MS)
        self._timer.timeout.connect(self._take_paint)
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(session.settle)
        session.mask_changed.connect(self.refresh)
        session.result_changed.connect(self._on_result)
        session.slide_changed.connect(self.refresh)
        viewer.layers.events.removed.connect(self._on_removed)
        self.refresh()

    def _on_find(self) -> None:
        self._find_mask(str(self._method.currentData()))

    def edit(self) -> None:
        """Take the brush into the hand."""
        if self.layer is not None:
            self._lock.setChecked(False)
            self._outline.setChecked(False)
            self.layer.visible = True
            self._viewer.layers.selection.active = self.layer
            self.layer.selected_label = 1
            self.layer.brush_size = max(8, self.layer.data.shape[0] // 48)
            self.layer.mode = "paint"

    def _on_lock(self, on: bool) -> None:
        if self.layer is not None:
            self.layer.mode = "pan_zoom"
            self.layer.editable = not on

    def _on_outline(self, on: bool) -> None:
        if self.layer is not None:
            self.layer.contour = 2 if on else 0

    def _on_result(self) -> None:
        """A first answer: only the border of the mask stays, so that the attention can be seen."""
        first = self.session.previous is None and self.session.result is not None
        painting = self.layer is not None and str(self.layer.mode) != "pan_zoom"
        if first and not painting:
            self._outline.setChecked(True)

    def _on_load(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, MASK.load, "", MASK.load_filter)
        if name:
            self.load(Path(name))

    def load(self, path: Path) -> None:
        """Import a mask or annotation file of this slide."""
        from napari_msamil.annotations import read_mask

        if self.session.slide is None:
            return
        try:
            mask = read_mask(path, self.session.slide.info.size_wh0)
        except MsamilError as error:
            self.session.failed.emit(str(error))
            return
        self.session.set_mask(mask, path)

    def _on_save(self) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self, MASK.save, "mask.geojson", MASK.save_filter
        )
        if name:
            self.save(Path(name))

    def save(self, path: Path) -> None:
        """Export the mask on screen."""
        from napari_msamil.gui.writer import write_mask

        if self.session.mask is not None and self.session.slide is not None:
            data, meta, _ = mask_layer(self.session.mask, self.session.slide.info)
            try:
                write_mask(str(path), data, meta)
            except MsamilError as error:
                self.session.failed.emit(str(error))

    def refresh(self) -> None:
        """Show the session's mask."""
        mask, slide = self.session.mask, self.session.slide
        self._find.setEnabled(slide is not None)
        self._load.setEnabled(slide is not None)
        for widget in (self._edit, self._reset, self._lock, self._outline, self._save):
            widget.setEnabled(mask is not None)
        if mask is None or slide is None:
            self._drop()
            self._facts.setVisible(False)
            self.sum_up(MASK.empty, State.EMPTY)
            return
        self._show_layer(mask_layer(mask, slide.info))
        summary = MASK.summary.format(
            share=mask.fraction, source=SOURCES[str(mask.source)]
        )
        self._facts.setVisible(False)
        self.sum_up(summary, State.DONE)

    def _show_layer(self, data: Any) -> None:
        values, meta, _ = data
        if self.layer is not None and self.layer.data.shape == values.shape:
            self.layer.metadata.update(meta["metadata"])
            if not np.array_equal(np.asarray(self.layer.data) > 0, values > 0):
                self.layer.data = values
            return
        self._drop()
        self.layer = put_layer(self._viewer, data)
        self.layer.events.connect(self._on_layer_event)
        self._on_outline(self._outline.isChecked())
        self._on_lock(self._lock.isChecked())
        order_layers(self._viewer)

    def _drop(self) -> None:
        self.layer = None
        drop_layers(self._viewer, "mask")

    def _on_layer_event(self, event: Any) -> None:
        painted = event.type in ("paint", "labels_update", "data", "set_data")
        if painted and not self._timer.isActive():
            self._timer.start()

    def _on_removed(self, event: Any) -> None:
        """The user deleted the mask layer: the mask is gone, and Classify finds a new one."""
        if self.layer is not None and event.value is self.layer:
            self.layer = None
            self.session.clear_mask()

    def _take_paint(self) -> None:
        mask = self.session.mask
        if self.layer is None or mask is None:
            return
        labels = np.asarray(self.layer.data)
        if not np.array_equal(labels > 0, mask.mask):
            self.session.paint_mask(labels)
            if not self._settle.isActive():
                self._settle.start()

    def close_down(self) -> None:
        """Stop the timers."""
        self._timer.stop()
        self._settle.stop()
