"""What MHIM's teacher sees: instance probability, attention, and the instances it would mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import QDoubleSpinBox, QGridLayout, QLabel

from napari_msamil.gui.buttons import button
from napari_msamil.gui.canvas import (
    drop_layers,
    find_layers,
    order_layers,
    put_layer,
)
from napari_msamil.gui.explain import Masked, instance_probability_steps, mhim_masked
from napari_msamil.gui.layers import KEY, outline_layer, overlay_layer
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.settings import read_settings
from napari_msamil.gui.strings import LAYER, MHIM, TITLE
from napari_msamil.gui.work import load
from napari_msamil.gui.worker import Runner
from napari_msamil.overlay import value_maps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari.components import ViewerModel

    from napari_msamil.gui.session import Session
    from napari_msamil.progress import ProgressGen
    from napari_msamil.result import SlideResult

ROLES = ("mhim", "masked", "outline")
DARK = ((0, 0, 0, 0.75), (0, 0, 0, 0.0))
"""Brightness of the slide by the rank of a patch's attention, least to most."""
CYAN = ((0, 1, 1, 0.0), (0, 1, 1, 0.0), (0, 1, 1, 0.5))
"""Probability 0, a half, 1: cyan begins where the patch alone would get the predicted class."""
MASKED = ((0.2, 0.3, 1, 0.6), (0.6, 0.2, 0.9, 0.6), (1, 0, 0.6, 0.85))
"""Masked as low, at random, as high."""


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
        labels = (MHIM.high, MHIM.low, MHIM.random)
        shares = QGridLayout()
        shares.setColumnStretch(0, 1)
        for line, (label, box) in enumerate(zip(labels, self._shares, strict=True)):
            shares.addWidget(QLabel(label), line, 0)
            shares.addWidget(box, line, 1)
            box.valueChanged.connect(lambda _: self._redraw())
        self._show = button(MHIM.show, MHIM.tip, self._on_show, checkable=True)
        self._runner = Runner()
        self._scored: tuple[SlideResult, np.ndarray] | None = None
        self._facts = note()
        self.column.addWidget(self._hint)
        self.column.addLayout(shares)
        self.column.addLayout(row(self._show))
        self.column.addWidget(self._facts)
        session.result_changed.connect(self.redraw)
        session.scale_changed.connect(self._redraw)
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
        self._on_show()

    def _on_show(self) -> None:
        """The coloured attention makes way for the dark and bright one, and comes back."""
        for layer in find_layers(self._viewer, "attention"):
            layer.visible = not self._show.isChecked()
        self.redraw()

    def _redraw(self) -> None:
        if self._show.isChecked():
            self.redraw()

    def redraw(self) -> None:
        """Draw, or take away."""
        result = self.session.result
        self._show.setEnabled(result is not None)
        if result is None or not self._show.isChecked():
            self._runner.cancel()
            for role in ROLES:
                drop_layers(self._viewer, role)
            self._facts.setText("")
            return
        high, low, random = (box.value() / 100 for box in self._shares)
        attention = result.attention
        if result.mining_attention is not None:
            attention = result.mining_attention
        masked = mhim_masked(attention, high, low, random)
        self._draw(result, masked)
        self._say(masked)
        if not result.partial:
            self._score(result)

    def _say(self, masked: Masked, note: str = "") -> None:
        text = MHIM.masked.format(
            masked=int(masked.any.sum()),
            total=len(masked.any),
            high=int(masked.high.sum()),
            low=int(masked.low.sum()),
            random=int(masked.random.sum()),
            kept=int((~masked.any).sum()),
        )
        self._facts.setText("\n".join(filter(None, (text, note))))

    def _score(self, result: SlideResult) -> None:
        """The probability of every instance, found once per answer."""
        if self._scored is not None and self._scored[0] is result:
            self._draw_probability(*self._scored)
            return

        def scored(probability: np.ndarray) -> None:
            self._scored = (result, probability)
            self._draw_probability(result, probability)

        self._runner.start(
            self._steps(result), on_done=scored, on_failed=self._on_unscored
        )

    def _steps(self, result: SlideResult) -> ProgressGen[np.ndarray]:
        loaded = load(self.session.model_ref, self.session.loaded, read_settings())
        return (yield from instance_probability_steps(loaded, result))

    def _on_unscored(self, message: str) -> None:
        self._facts.setText(f"{self._facts.text()}\n{message}")

    def _draw(self, result: SlideResult, masked: Masked) -> None:
        """Dark under masked, the outline on top; cyan joins them in between when it is known."""
        order = np.argsort(np.argsort(result.attention, kind="stable"), kind="stable")
        shade = order / max(len(order) - 1, 1)
        self._put(result, shade, LAYER.bright, DARK)
        self._put(result, masked.kinds, LAYER.masked, MASKED, "masked")
        put_layer(self._viewer, outline_layer(result.mask, result.info))
        order_layers(self._viewer)

    def _draw_probability(self, result: SlideResult, probability: np.ndarray) -> None:
        self._put(result, probability, LAYER.probability, CYAN)
        order_layers(self._viewer)

    def _put(
        self,
        result: SlideResult,
        values: np.ndarray,
        name: str,
        colours: Sequence[tuple[float, ...]],
        role: str = "mhim",
    ) -> None:
        from napari.utils.colormaps import Colormap

        maps = value_maps(result, values, name)
        overlay = maps[min(self.session.scale, len(maps) - 1)]
        data, meta, kind = overlay_layer(overlay, role=role, result=result)
        meta["metadata"][KEY]["slot"] = name
        meta |= {
            "name": name.format(scale=overlay.scale_name),
            "colormap": Colormap(colours, name=name.format(scale="")),
            "contrast_limits": (0.0, 1.0),
            "opacity": 1.0,
        }
        put_layer(self._viewer, (data, meta, kind))


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
    box.setToolTip(MHIM.share_tip.format(what=tip))
    box.setAccessibleName(tip)
    return box
