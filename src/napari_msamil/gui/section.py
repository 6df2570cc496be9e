"""A collapsible section of the dock: a title, one line that sums it up, and a body."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from psygnal import Signal
from qtpy.QtCore import QSize, Qt
from qtpy.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QElidingLabel

from napari_msamil.gui.worker import Runner

if TYPE_CHECKING:
    from qtpy.QtGui import QResizeEvent

    from napari_msamil.gui.session import Session


class State(StrEnum):
    """State of a section; each has a sign as well as a colour, so that neither is needed alone."""

    EMPTY = "empty"
    RUNNING = "running"
    DONE = "done"
    STALE = "stale"
    ERROR = "error"


SIGNS = {
    State.EMPTY: ("○", "#8a8f98"),
    State.RUNNING: ("◐", "#4a9eda"),
    State.DONE: ("●", "#3fa66b"),
    State.STALE: ("▲", "#d08a1e"),
    State.ERROR: ("✕", "#d9534f"),
}
"""Mid-tone colours: readable on napari's light and dark backgrounds."""


class Section(QWidget):
    """A titled, collapsible part of the dock.

    Args:
        title: Always visible.
        body: Shown when open.
        is_open: Whether it starts open.
    """

    opened = Signal()
    closed = Signal()

    def __init__(self, title: str, body: QWidget, *, is_open: bool = True) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.body = body
        self._toggle = QToolButton()
        self._toggle.setText(title)
        self._toggle.setAccessibleName(title)
        self._toggle.setCheckable(True)
        self._toggle.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._toggle.setStyleSheet(
            "QToolButton { border: none; background: transparent; font-weight: bold; padding: 2px; }"
        )
        self._toggle.toggled.connect(self.set_open)
        self._sign = QLabel()
        self._summary = QElidingLabel()
        self._summary.setSizePolicy(
            QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred
        )
        self._summary.setAlignment(
            Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        )
        header = QHBoxLayout()
        header.setContentsMargins(0, 0, 4, 0)
        header.setSpacing(6)
        header.addWidget(self._toggle)
        header.addWidget(self._summary, 1)
        header.addWidget(self._sign)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addLayout(header)
        layout.addWidget(body)
        self.set_summary("", State.EMPTY)
        self.set_open(is_open)

    @property
    def is_open(self) -> bool:
        """Whether the body is shown."""
        return self._toggle.isChecked()

    def set_open(self, is_open: bool) -> None:
        """Show or hide the body."""
        self._toggle.blockSignals(True)
        self._toggle.setChecked(is_open)
        self._toggle.blockSignals(False)
        arrow = Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow
        self._toggle.setArrowType(arrow)
        self.body.setVisible(is_open)
        (self.opened if is_open else self.closed).emit()

    def set_summary(self, text: str, state: State) -> None:
        """Say in one line how this part stands."""
        sign, colour = SIGNS[state]
        self._sign.setText(sign)
        self._sign.setStyleSheet(f"color: {colour};")
        self._sign.setAccessibleName(str(state))
        self._sign.setToolTip(str(state))
        self._summary.setText(text)
        self._summary.setToolTip(text)

    @property
    def summary(self) -> str:
        """The line in the header."""
        return str(self._summary.text())


class Panel(QWidget):
    """Body of a section that shows one part of a session.

    Subclasses set `title`, build their widgets in `__init__`, and call `sum_up` when something changed.
    """

    title = ""
    starts_open = True

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(18, 0, 4, 8)
        self.column.setSpacing(4)
        self.section = Section(self.title, self, is_open=self.starts_open)

    def sum_up(self, text: str, state: State) -> None:
        """Set the header's line."""
        self.section.set_summary(text, state)

    @property
    def minimum_width(self) -> int:
        """Width below which something would be cut off, open or not."""
        return int(self.column.totalMinimumSize().width())

    @property
    def runners(self) -> list[Runner]:
        """Everything of this panel that may run in a thread."""
        return [v for v in vars(self).values() if isinstance(v, Runner)]

    def close_down(self) -> None:
        """The dock is closing: stop what runs. Subclasses extend it."""
        for runner in self.runners:
            runner.cancel()


def row(*widgets: QWidget, stretch: int | None = None) -> QHBoxLayout:
    """Widgets side by side; `stretch` is the position of the one that grows."""
    line = QHBoxLayout()
    line.setContentsMargins(0, 0, 0, 0)
    line.setSpacing(4)
    for position, widget in enumerate(widgets):
        line.addWidget(widget, 1 if position == stretch else 0)
    if stretch is None:
        line.addStretch(1)
    return line


class Note(QLabel):
    """A text that wraps instead of widening the dock, and is never cut off below.

    Layouts within layouts ask for a height at a width too late, so this label asks for the height that its text
    needs at the width it has, and again when the width has changed.

    Args:
        text: What it says.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(text)
        self.setWordWrap(True)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)

    def hasHeightForWidth(self) -> bool:
        """Never: see above."""
        return False

    def sizeHint(self) -> QSize:
        """The height at the present width."""
        return QSize(0, self.heightForWidth(self.width()) if self.text() else 0)

    def minimumSizeHint(self) -> QSize:
        """Nothing less."""
        return self.sizeHint()

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        """Another width wraps the text anew."""
        super().resizeEvent(event)
        if event is not None and event.size().width() != event.oldSize().width():
            self.updateGeometry()


def note(text: str = "") -> Note:
    """A text in a panel."""
    return Note(text)
