"""Where a dock goes when it is first shown (a table needs width, a second canvas half of the first), and its end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from napari_msamil.gui.worker import Runner

TABLE_HEIGHT_PX = 300


def move_to_bottom(widget: QWidget) -> None:
    """Move the dock of a widget below the canvas."""
    dock, window = _dock_of(widget)
    if dock is not None and window is not None:
        window.addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, dock)
        dock.show()
        window.resizeDocks([dock], [TABLE_HEIGHT_PX], Qt.Orientation.Vertical)


def move_beside_canvas(widget: QWidget) -> None:
    """Move the dock of a widget between the canvas and what is docked at the right; both canvases get half."""
    dock, window = _dock_of(widget)
    central = window.centralWidget() if window is not None else None
    if dock is None or window is None or central is None:
        return
    others = [other for other in _docks_at_right(window) if other is not dock]
    right = Qt.DockWidgetArea.RightDockWidgetArea
    window.addDockWidget(right, dock, Qt.Orientation.Horizontal)
    for other in others:  # what was there goes to the right of it
        window.splitDockWidget(dock, other, Qt.Orientation.Horizontal)
    dock.show()
    narrow = [_least_width(other) for other in others]
    room = window.width() - central.mapTo(window, central.rect().topLeft()).x()
    half = max((room - sum(narrow)) // 2, _least_width(dock))
    window.resizeDocks([dock, *others], [half, *narrow], Qt.Orientation.Horizontal)


def widen(widget: QWidget) -> None:
    """Give the dock of a widget its least width: main windows do not see by themselves that it has grown."""
    _, window = _dock_of(widget)
    layout = window.layout() if window is not None else None
    if layout is not None:
        layout.invalidate()


def give_room_to_canvas(window: QMainWindow) -> None:
    """What is docked at the right becomes as narrow as it can be."""
    docks = _docks_at_right(window)
    widths = [_least_width(dock) for dock in docks]
    window.resizeDocks(docks, widths, Qt.Orientation.Horizontal)


def _docks_at_right(window: QMainWindow) -> list[QDockWidget]:
    right = Qt.DockWidgetArea.RightDockWidgetArea
    docks = window.findChildren(QDockWidget)
    return [d for d in docks if window.dockWidgetArea(d) == right and d.isVisible()]


def when_removed(widget: QWidget, act: Callable[[], None]) -> None:
    """Call `act` when the dock of a widget is closed: napari takes the widget out of it without closing it."""
    widget.installEventFilter(_Removed(widget, act))


class _Removed(QObject):
    def __init__(self, widget: QWidget, act: Callable[[], None]) -> None:
        super().__init__(widget)
        self._widget, self._act = widget, act

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        moved = event is not None and event.type() == QEvent.Type.ParentChange
        if moved and self._widget.parent() is None:
            self._act()
        return False


def stop_at_end(widget: QWidget, runners: Sequence[Runner]) -> None:
    """Stop jobs when the window is closed: its docks may go without any event, the jobs do not."""
    widget.destroyed.connect(partial(_stop, list(runners)))


def _stop(runners: Sequence[Runner], *_: object) -> None:
    for runner in runners:
        runner.cancel()


def _least_width(dock: QDockWidget) -> int:
    return max(dock.minimumWidth(), dock.minimumSizeHint().width())


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
