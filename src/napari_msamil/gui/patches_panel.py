"""Section 4: which patches the model will see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QDoubleSpinBox, QLabel

from napari_msamil.config import Strategy
from napari_msamil.gui.buttons import button, check, chooser
from napari_msamil.gui.canvas import drop_layers, order_layers, put_layer
from napari_msamil.gui.layers import patch_layer
from napari_msamil.gui.scale_chooser import ScaleChooser
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.session import Choice
from napari_msamil.gui.strings import PATCHES, RESULT, TITLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.components import ViewerModel

    from napari_msamil.gui.session import Session


class PatchesPanel(Panel):
    """Strategy, threshold, counts per scale, preview."""

    title = TITLE.patches

    def __init__(
        self, session: Session, viewer: ViewerModel, show_sample: Callable[[], None]
    ) -> None:
        super().__init__(session)
        self._viewer = viewer
        self._strategy = chooser(
            [
                (PATCHES.strategy_model, None),
                (PATCHES.strategy_lesion, Strategy.LESION),
                (PATCHES.strategy_tissue, Strategy.TISSUE),
                (PATCHES.strategy_random, Strategy.RANDOM),
            ],
            PATCHES.strategy_tip,
            self._on_choice,
        )
        self._threshold = QDoubleSpinBox()
        self._threshold.setRange(0.0, 0.99)
        self._threshold.setSingleStep(0.05)
        self._threshold.setDecimals(2)
        self._threshold.setValue(0.7)
        self._threshold.setToolTip(PATCHES.threshold_tip)
        self._threshold.setAccessibleName(PATCHES.threshold)
        self._threshold.valueChanged.connect(lambda _: self._on_choice())
        self._show = check(PATCHES.preview, PATCHES.preview_tip, self._on_preview)
        self._gallery = button(PATCHES.gallery, PATCHES.gallery_tip, show_sample)
        self._facts = note()
        self._scale = ScaleChooser(session)
        self.column.addLayout(row(QLabel(PATCHES.strategy), self._strategy, stretch=1))
        self.column.addLayout(row(QLabel(PATCHES.threshold), self._threshold))
        self.column.addLayout(
            row(self._show, QLabel(RESULT.at_scale), self._scale, self._gallery)
        )
        self.column.addWidget(self._facts)
        session.counts_changed.connect(self.refresh)
        session.grid_changed.connect(self._on_scale)
        session.scale_changed.connect(self._on_scale)
        session.model_changed.connect(self._on_model)
        self._on_model()
        self.refresh()

    def _on_model(self) -> None:
        """Start from the model's own threshold."""
        header = self.session.header
        if header is not None and self.session.choice.threshold is None:
            self._threshold.blockSignals(True)
            self._threshold.setValue(header.config.patches.lesion_threshold)
            self._threshold.blockSignals(False)

    def _on_choice(self) -> None:
        header = self.session.header
        value = round(self._threshold.value(), 2)
        own = None if header is None else header.config.patches.lesion_threshold
        threshold = None if own is not None and abs(value - own) < 1e-6 else value
        self.session.set_choice(Choice(self._strategy.currentData(), threshold))

    def _on_scale(self) -> None:
        if self._show.isChecked():
            self._draw()

    def _on_preview(self, on: bool) -> None:
        if on:
            self._draw()
        else:
            drop_layers(self._viewer, "patches")

    def _draw(self) -> None:
        """The image grid of the chosen scale."""
        grid, slide = self.session.grid, self.session.slide
        if grid is None or slide is None:
            drop_layers(self._viewer, "patches")
            return
        before = len(self._viewer.layers)
        put_layer(self._viewer, patch_layer(grid, slide.info, self.session.scale))
        if len(self._viewer.layers) != before:
            order_layers(self._viewer)

    def refresh(self) -> None:
        """Show how many patches the session has; the preview follows when the brush rests."""
        counts = self.session.counts
        self._gallery.setEnabled(counts is not None)
        if counts is None:
            problem = self.session.grid_problem
            self._facts.setText(problem)
            self._facts.setVisible(bool(problem))
            self.sum_up(
                PATCHES.none if problem else PATCHES.empty,
                State.ERROR if problem else State.EMPTY,
            )
            return
        self._facts.setText("\n".join(counts.warnings))
        self._facts.setVisible(bool(counts.warnings))
        words = " · ".join(f"{name}: {n:,}" for name, n in counts.by_scale.items())
        self.sum_up(words, State.STALE if counts.warnings else State.DONE)
