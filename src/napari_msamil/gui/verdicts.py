"""Cells of the worklist: numbers that sort as numbers, and the agree/disagree choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QComboBox, QTableWidgetItem

from napari_msamil.gui.strings import WORKLIST

if TYPE_CHECKING:
    from collections.abc import Callable


class NumberItem(QTableWidgetItem):
    """A read-only number; rows without one sort last."""

    def __init__(self, value: float | None) -> None:
        super().__init__("" if value is None else f"{value:.3f}")
        self.value = float("-inf") if value is None else value
        self.setFlags(self.flags() & ~Qt.ItemFlag.ItemIsEditable)
        self.setTextAlignment(Qt.AlignmentFlag.AlignCenter)

    def __lt__(self, other: QTableWidgetItem) -> bool:
        return isinstance(other, NumberItem) and self.value < other.value


def text_item(text: str, *, editable: bool = False) -> QTableWidgetItem:
    """A cell of text."""
    item = QTableWidgetItem(text)
    if not editable:
        item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
    return item


class VerdictBox(QComboBox):
    """Open, agree or disagree.

    Args:
        name: The slide.
        judged: Called with the slide and what was chosen.
    """

    def __init__(self, name: str, judged: Callable[[str, str], None]) -> None:
        super().__init__()
        self.name = name
        self.addItem(WORKLIST.open_verdict, "")
        self.addItem(WORKLIST.agree, "agree")
        self.addItem(WORKLIST.disagree, "disagree")
        self.setToolTip(WORKLIST.verdict_tip)
        self.setAccessibleName(WORKLIST.verdict_tip)
        self.activated.connect(lambda _: judged(name, str(self.currentData())))

    def show_verdict(self, verdict: str) -> None:
        """Show what was said."""
        self.setCurrentIndex(self.findData(verdict))
