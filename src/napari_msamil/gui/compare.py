"""Two answers for one slide side by side: another model or another mask, linked cameras, a difference map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari.components import ViewerModel
from napari.layers import Layer
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
from napari_msamil.gui.buttons import button, check, chooser
from napari_msamil.gui.cameras import CameraLink
from napari_msamil.gui.canvas import (
    drop_layers,
    find_layers,
    fit_slide,
    order_layers,
    put_layer,
)
from napari_msamil.gui.docking import (
    give_room_to_canvas,
    move_beside_canvas,
    stop_at_end,
    when_removed,
)
from napari_msamil.gui.layers import (
    attention_layer,
    brightest,
    difference_layer,
    mask_layer,
    slide_layer,
)
from napari_msamil.gui.section import note, row
from napari_msamil.gui.session import session_of
from napari_msamil.gui.settings import read_settings
from napari_msamil.gui.strings import COMPARE, LAYER, RUN
from napari_msamil.gui.work import Answer, Question, classify_question
from napari_msamil.gui.worker import Runner
from napari_msamil.overlay import attention_maps

if TYPE_CHECKING:
    from napari.qt import QtViewer
    from napari.viewer import Viewer
    from qtpy.QtGui import QCloseEvent

    from napari_msamil.progress import Progress
    from napari_msamil.result import SlideResult


class CompareWidget(QWidget):
    """Answer A is the current one in the main window; B is made here.

    Args:
        napari_viewer: The viewer with answer A.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        from napari.qt import QtViewer

        super().__init__()
        self.viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self.model = ViewerModel(title=COMPARE.right)
        self._follow_theme()
        self.canvas: QtViewer | None = QtViewer(self.model)
        self._link = CameraLink(napari_viewer, self.model)
        self._runner = Runner()
        self.result: SlideResult | None = None
        self._what = chooser(
            [(COMPARE.other_model, "model"), (COMPARE.other_mask, "mask")],
            COMPARE.tip,
            self._on_what,
        )
        self._other = QLineEdit()
        self._other.setAccessibleName(COMPARE.what)
        self._choose = button(COMPARE.choose, COMPARE.tip, self._on_choose)
        self._run = button(COMPARE.run, COMPARE.run_tip, self.run)
        self._linked = check(
            COMPARE.linked, COMPARE.linked_tip, self._link.set_on, on=True
        )
        self._difference = check(
            COMPARE.difference,
            COMPARE.difference_tip,
            lambda _: self._draw_difference(),
            on=True,
        )
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setMaximumHeight(8)
        self._bar.setVisible(False)
        self._status = note(COMPARE.need_result)
        self._build()
        self._on_what()
        when_removed(self, self._end)
        stop_at_end(self, [self._runner])
        QTimer.singleShot(0, self._settle)
        self._listen()

    def _listen(self) -> None:
        self.session.result_changed.connect(self._on_result)
        self.session.scale_changed.connect(self._on_scale)
        self.viewer.events.theme.connect(self._follow_theme)

    def _follow_theme(self) -> None:
        """B stands on the same dark or light ground as A."""
        self.model.theme = self.viewer.theme

    def _settle(self) -> None:
        """Once docked: beside the canvas of A and as large; the slide is fitted into both."""
        if self.canvas is not None:
            move_beside_canvas(self)
            QTimer.singleShot(0, self._fit)

    def _fit(self) -> None:
        if self.session.slide is not None and self.canvas is not None:
            fit_slide(self.viewer, self.session.slide.info)

    def _build(self) -> None:
        column = QVBoxLayout(self)
        column.setContentsMargins(6, 6, 6, 6)
        column.addLayout(row(QLabel(COMPARE.what), self._what, self._run, stretch=1))
        column.addLayout(row(self._other, self._choose, stretch=0))
        column.addLayout(row(self._linked, self._difference))
        column.addWidget(self._bar)
        column.addWidget(self._status)
        column.addWidget(self.canvas, 1)
        self.setMinimumWidth(380)

    def _on_what(self) -> None:
        model = self._what.currentData() == "model"
        self._other.setPlaceholderText(
            COMPARE.model_hint if model else COMPARE.mask_hint
        )

    def _on_choose(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, COMPARE.choose)
        if name:
            self._other.setText(name)

    def compare_with(self, kind: str, other: str) -> None:
        """Set what B is made with: `model` and a reference, or `mask` and a file (`tissue`: the tissue mask)."""
        self._what.setCurrentIndex(self._what.findData(kind))
        self._other.setText(other)
        self.run()

    def run(self) -> None:
        """Make answer B with the mask of A and another model, or the model of A and another mask."""
        result = self.session.result
        if result is None or self.session.slide is None:
            self._status.setText(COMPARE.need_result)
            return
        try:
            question = self._question(self._other.text().strip())
        except MsamilError as error:
            self._status.setText(str(error))
            return
        self._bar.setVisible(True)
        self._bar.setRange(0, 0)
        self._runner.start(
            classify_question(question),
            on_progress=self._on_progress,
            on_done=self._on_answer,
            on_failed=self._on_failed,
        )

    def _question(self, other: str) -> Question:
        session = self.session
        assert session.slide is not None
        question = Question(
            slide=session.slide,
            model_ref=session.model_ref,
            choice=session.choice,
            loaded=session.loaded,
            mask=session.mask,
            tissue=session.tissue,
            settings=read_settings(),
        )
        if self._what.currentData() == "model":
            return replace(question, model_ref=other or "demo", loaded=None)
        if other in ("", "tissue"):
            from napari_msamil.config import TissueSpec
            from napari_msamil.tissue import find_tissue

            return replace(question, mask=find_tissue(session.slide, TissueSpec()))
        from napari_msamil.annotations import read_mask

        mask = read_mask(Path(other), session.slide.info.size_wh0)
        return replace(question, mask=mask)

    def _on_progress(self, step: Progress) -> None:
        self._bar.setRange(0, step.total)
        self._bar.setValue(step.done)
        self._status.setText(step.message or RUN.busy)

    def _on_failed(self, message: str) -> None:
        self._bar.setVisible(False)
        self._status.setText(message)

    def _on_answer(self, answer: Answer) -> None:
        self._bar.setVisible(False)
        self.result = answer.result
        self._show_b(answer.result)
        self._draw_difference()
        self._say()

    def _say(self) -> None:
        a, b = self.session.result, self.result
        if a is not None and b is not None:
            self._status.setText(
                COMPARE.line.format(
                    a=a.prediction,
                    pa=float(a.probabilities.max()),
                    b=b.prediction,
                    pb=float(b.probabilities.max()),
                )
            )

    def _show_b(self, result: SlideResult) -> None:
        """The slide, attention and mask of B in the canvas here."""
        slide = self.session.slide
        if slide is None:
            return
        self.model.layers.clear()
        self.model.add_layer(Layer.create(*slide_layer(slide)))
        self._draw_attention(result)
        data, meta, kind = mask_layer(result.mask, result.info)
        mask = self.model.add_layer(Layer.create(data, meta, kind))
        mask.contour = 2
        mask.editable = False
        self._link.follow_first()

    def _draw_attention(self, result: SlideResult) -> None:
        maps = attention_maps(result)
        overlay = maps[min(self.session.scale, len(maps) - 1)]
        high = brightest(result.attention)
        put_layer(self.model, attention_layer(overlay, result, LAYER.attention, high))
        order_layers(self.model)

    def _draw_difference(self) -> None:
        """Attention of A minus attention of B on the slide in the main window, in place of the attention of A."""
        a, b, layer = self.session.result, self.result, None
        if a is not None and b is not None and self._difference.isChecked():
            layer = difference_layer(a, b, self.session.scale, LAYER.difference)
        if layer is None:
            if find_layers(self.viewer, "difference"):
                drop_layers(self.viewer, "difference")
                self._show_attention(True)
            return
        if not find_layers(self.viewer, "difference"):
            self._show_attention(False)
        put_layer(self.viewer, layer)
        order_layers(self.viewer)

    def _show_attention(self, on: bool) -> None:
        for layer in find_layers(self.viewer, "attention"):
            layer.visible = on

    def _on_scale(self) -> None:
        if self.result is not None:
            self._draw_attention(self.result)
            self._draw_difference()

    def _on_result(self) -> None:
        """A has changed: B stays, the difference follows; a new slide clears B."""
        slide = self.session.slide
        if self.result is not None and (
            slide is None or slide.info != self.result.info
        ):
            self.result = None
            self.model.layers.clear()
        self._draw_difference()
        self._say()

    def close_down(self) -> None:
        """Stop what runs and let the two cameras go."""
        self._runner.cancel()
        self._link.set_on(False)
        self.viewer.events.theme.disconnect(self._follow_theme)
        self.session.result_changed.disconnect(self._on_result, missing_ok=True)
        self.session.scale_changed.disconnect(self._on_scale, missing_ok=True)

    def _end(self) -> None:
        """The dock is gone: so is the difference map, and the canvas with its OpenGL memory."""
        self.close_down()
        if self.canvas is not None:
            self._difference.setChecked(False)
            self.canvas.close()
            self.canvas.setParent(None)
            self.canvas.deleteLater()
            self.canvas = None
            give_room_to_canvas(self.viewer.window._qt_window)

    def closeEvent(self, event: QCloseEvent | None) -> None:
        """The widget is closed by itself, outside a dock."""
        self._end()
        super().closeEvent(event)
