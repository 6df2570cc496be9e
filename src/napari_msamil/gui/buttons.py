"""Small makers of widgets, so that each panel reads as a list of what is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QCheckBox, QComboBox, QPushButton

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def button(
    text: str, tip: str, clicked: Callable[[], object], *, checkable: bool = False
) -> QPushButton:
    """A push button; for a checkable one `clicked` is called after each change."""
    made = QPushButton(text)
    made.setToolTip(tip)
    made.setCheckable(checkable)
    made.setAutoDefault(False)
    made.clicked.connect(lambda *_: clicked())
    return made


def check(
    text: str, tip: str, toggled: Callable[[bool], object], *, on: bool = False
) -> QCheckBox:
    """A check box."""
    made = QCheckBox(text)
    made.setToolTip(tip)
    made.setChecked(on)
    made.toggled.connect(toggled)
    return made


def chooser(
    items: Iterable[tuple[str, object]], tip: str, chosen: Callable[[], object]
) -> QComboBox:
    """A combo box of texts with data; `chosen` is called when the user chooses."""
    made = QComboBox()
    made.setToolTip(tip)
    made.setAccessibleName(tip)
    made.setSizeAdjustPolicy(
        QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
    )
    made.setMinimumContentsLength(9)
    for text, data in items:
        made.addItem(text, data)
    made.activated.connect(lambda _: chosen())
    return made
