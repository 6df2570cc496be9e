"""Where a dock goes when it is first shown: a table needs width, a second canvas needs height."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget


def move_to_bottom(widget: QWidget) -> None:
    """Move the dock of a widget below the canvas."""
    dock, window = _dock_of(widget)
    if dock is not None and window is not None:
        window.addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, dock)


def move_beside(widget: QWidget) -> None:
    """Move the dock of a widget to the right, beside what is docked there instead of below it."""
    dock, window = _dock_of(widget)
    if dock is not None and window is not None:
        right = Qt.DockWidgetArea.RightDockWidgetArea
        window.addDockWidget(right, dock, Qt.Orientation.Horizontal)


def _dock_of(widget: QWidget) -> tuple[QDockWidget | None, QMainWindow | None]:
    above: QWidget | None = widget
    dock: QDockWidget | None = None
    while above is not None:
        if dock is None and isinstance(above, QDockWidget):
            dock = above
        if isinstance(above, QMainWindow):
            return dock, above
        above = above.parentWidget()
    return dock, None
