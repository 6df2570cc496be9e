"""What MHIM's teacher sees: instance probability, attention, and the instances it would mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import QDoubleSpinBox, QFormLayout

from napari_msamil.gui.buttons import button
from napari_msamil.gui.canvas import drop_layers, order_layers, put_layer
from napari_msamil.gui.explain import instance_probability, mhim_masked
from napari_msamil.gui.layers import outline_layer, overlay_layer
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.strings import LAYER, MHIM, TITLE
from napari_msamil.overlay import value_maps

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_msamil.gui.session import Session
    from napari_msamil.result import SlideResult

ROLES = ("mhim", "outline")


class MhimPanel(Panel):
    """The picture of MHIM-MIL's supplementary (Figure 1) as layers on the slide."""

    title = TITLE.mhim
    starts_open = False

    def __init__(self, session: Session, viewer: ViewerModel) -> None:
        super().__init__(session)
        self._viewer = viewer
        self._hint = note(MHIM.tip)
        self._shares = [
            _percent(MHIM.high, 3.0),
            _percent(MHIM.low, 0.0),
            _percent(MHIM.random, 50.0),
        ]
        form = QFormLayout()
        labels = (MHIM.high, MHIM.low, MHIM.random)
        for label, box in zip(labels, self._shares, strict=True):
            form.addRow(label, box)
            box.valueChanged.connect(lambda _: self._redraw())
        self._show = button(MHIM.show, MHIM.tip, self.redraw, checkable=True)
        self._facts = note()
        self.column.addWidget(self._hint)
        self.column.addLayout(form)
        self.column.addLayout(row(self._show))
        self.column.addWidget(self._facts)
        session.result_changed.connect(self.redraw)
        session.model_changed.connect(self._on_model)
        self._on_model()
        self.redraw()

    def _on_model(self) -> None:
        """Start from the shares the model was trained with."""
        header = self.session.header
        ratios = None if header is None else trained_ratios(header.provenance)
        self._hint.setText(MHIM.tip if ratios else f"{MHIM.none}\n{MHIM.tip}")
        if ratios:
            for box, value in zip(self._shares, ratios, strict=True):
                box.blockSignals(True)
                box.setValue(100 * value)
                box.blockSignals(False)
        self.sum_up("trained with MHIM" if ratios else "", State.EMPTY)

    def show_layers(self) -> None:
        """Show the picture, as a click on the button does."""
        self._show.setChecked(True)
        self.redraw()

    def _redraw(self) -> None:
        if self._show.isChecked():
            self.redraw()

    def redraw(self) -> None:
        """Draw, or take away."""
        result = self.session.result
        self._show.setEnabled(result is not None)
        if result is None or not self._show.isChecked():
            for role in ROLES:
                drop_layers(self._viewer, role)
            self._facts.setText("")
            return
        high, low, random = (box.value() / 100 for box in self._shares)
        attention = result.attention
        if result.mining_attention is not None:
            attention = result.mining_attention
        masked = mhim_masked(attention, high, low, random)
        self._draw(result, masked.any)
        self._facts.setText(
            MHIM.masked.format(
                masked=int(masked.any.sum()),
                total=len(masked.any),
                high=int(masked.high.sum()),
                low=int(masked.low.sum()),
                random=int(masked.random.sum()),
                kept=int((~masked.any).sum()),
            )
        )

    def _draw(self, result: SlideResult, masked: np.ndarray) -> None:
        """Cyan under bright under magenta, the outline on top."""
        probability = instance_probability(result)
        if probability is not None:
            self._put(result, probability, LAYER.probability, "cyan", (0.0, 1.0))
        values = np.where(masked, 1.0, np.nan)
        self._put(result, values, LAYER.masked, "magenta", (0.0, 1.0))
        put_layer(self._viewer, outline_layer(result.mask, result.info))
        order_layers(self._viewer)

    def _put(
        self,
        result: SlideResult,
        values: np.ndarray,
        name: str,
        colormap: str,
        limits: tuple[float, float],
    ) -> None:
        for code, overlay in enumerate(value_maps(result, values, name)):
            data, meta, kind = overlay_layer(overlay, role="mhim", result=result)
            meta |= {
                "name": name.format(scale=overlay.scale_name),
                "colormap": colormap,
                "contrast_limits": limits,
                "opacity": 0.45,
            }
            put_layer(self._viewer, (data, meta, kind), visible=code == 0)


def trained_ratios(
    provenance: dict[str, Any],
) -> tuple[float, float, float] | None:
    """Shares (high, low, random) that the training stage `mhim` of a model masked, or None."""
    stages = provenance.get("recipe")
    for stage in stages if isinstance(stages, list) else []:
        if isinstance(stage, dict) and stage.get("verb") == "mhim":
            settings = stage.get("settings") or {}
            high, low, random = (
                float(settings.get(name) or 0.0) for name in ("high", "low", "random")
            )
            return high, low, random
    return None


def _percent(tip: str, value: float) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setRange(0.0, 100.0)
    box.setDecimals(1)
    box.setSuffix(" %")
    box.setValue(value)
    box.setToolTip(tip)
    box.setAccessibleName(tip)
    return box
