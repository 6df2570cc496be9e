"""Class probabilities as labelled bars with their change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QLabel, QProgressBar, QSizePolicy, QWidget

from napari_msamil.gui.strings import RESULT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

RISE, FALL = "#3fa66b", "#d9534f"


class ProbabilityBars(QWidget):
    """One row per class: name, bar, value, change."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 2, 0, 2)
        self._grid.setHorizontalSpacing(8)
        self._grid.setVerticalSpacing(2)
        self._grid.setColumnStretch(1, 1)
        self._classes: tuple[str, ...] = ()
        self._rows: list[tuple[QProgressBar, QLabel, QLabel]] = []

    def show_values(
        self,
        classes: Sequence[str],
        probabilities: np.ndarray,
        delta: np.ndarray | None = None,
        spread: np.ndarray | None = None,
    ) -> None:
        """Show probabilities (C,) and, where given, their change (C,) and their spread over trainings (C,)."""
        if tuple(classes) != self._classes:
            self._build(tuple(classes))
        for i, (bar, value, change) in enumerate(self._rows):
            bar.setValue(round(1000 * float(probabilities[i])))
            give = "" if spread is None else f" ± {100 * float(spread[i]):.1f}"
            value.setText(f"{float(probabilities[i]):.1%}{give}")
            moved = 0.0 if delta is None else float(delta[i])
            shown = abs(moved) >= 0.0005
            change.setText(f"Δ {100 * moved:+.1f}" if shown else "")
            change.setStyleSheet(f"color: {RISE if moved > 0 else FALL};")

    def texts(self) -> list[tuple[str, str, str]]:
        """What is read: class, probability, change."""
        return [
            (name, value.text(), change.text())
            for name, (_, value, change) in zip(self._classes, self._rows, strict=True)
        ]

    def _build(self, classes: tuple[str, ...]) -> None:
        while (item := self._grid.takeAt(0)) is not None:
            widget = item.widget()
            if widget is not None:
                widget.deleteLater()
        self._classes, self._rows = classes, []
        for i, name in enumerate(classes):
            bar, value, change = QProgressBar(), QLabel(), QLabel()
            bar.setRange(0, 1000)
            bar.setTextVisible(False)
            bar.setFixedHeight(12)
            bar.setAccessibleName(name)
            right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
            value.setAlignment(right)
            change.setAlignment(right)
            change.setToolTip(RESULT.delta_tip)
            change.setMinimumWidth(change.fontMetrics().horizontalAdvance("Δ +00.0"))
            for column, widget in enumerate((QLabel(name), bar, value, change)):
                self._grid.addWidget(widget, i, column)
            self._rows.append((bar, value, change))
