"""The dock widget: the sections in the order of the work."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import QEvent, QObject, Qt, QTimer
from qtpy.QtGui import QKeySequence, QShortcut  # type: ignore[attr-defined]
from qtpy.QtWidgets import QFrame, QScrollArea, QVBoxLayout, QWidget

from napari_msamil.gui.buttons import button
from napari_msamil.gui.classify_panel import ClassifyPanel
from napari_msamil.gui.docking import stop_at_end, when_removed, widen
from napari_msamil.gui.export_panel import ExportPanel
from napari_msamil.gui.gallery_panel import GalleryPanel
from napari_msamil.gui.mask_panel import MaskPanel
from napari_msamil.gui.mhim_panel import MhimPanel
from napari_msamil.gui.model_panel import ModelPanel
from napari_msamil.gui.patches_panel import PatchesPanel
from napari_msamil.gui.query_panel import QueryPanel
from napari_msamil.gui.result_panel import ResultPanel
from napari_msamil.gui.section import row
from napari_msamil.gui.session import session_of
from napari_msamil.gui.settings import PLUGIN
from napari_msamil.gui.slide_panel import SlidePanel
from napari_msamil.gui.strings import COMPARE, RUN, WORKLIST
from napari_msamil.gui.trust_panel import TrustPanel
from napari_msamil.gui.warm_up import warm_up_later
from napari_msamil.gui.what_if_panel import WhatIfPanel

if TYPE_CHECKING:
    from napari.viewer import Viewer
    from qtpy.QtGui import QCloseEvent, QShowEvent

    from napari_msamil.gui.section import Panel


class WorkbenchWidget(QScrollArea):
    """Slide → Model → Mask → Patches → Classify → Result.

    Args:
        napari_viewer: The viewer it is docked in.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.classify_panel = ClassifyPanel(self.session)
        self.slide_panel = SlidePanel(self.session, napari_viewer)
        self.model_panel = ModelPanel(self.session)
        self.mask_panel = MaskPanel(
            self.session, napari_viewer, self.classify_panel.find_mask
        )
        self.patches_panel = PatchesPanel(
            self.session, napari_viewer, self._show_sample
        )
        self.result_panel = ResultPanel(
            self.session, napari_viewer, lambda: self.classify_panel.running
        )
        self.gallery_panel = GalleryPanel(self.session, napari_viewer)
        self.query_panel = QueryPanel(self.session)
        self.what_if_panel = WhatIfPanel(self.session, napari_viewer)
        self.trust_panel = TrustPanel(self.session)
        self.mhim_panel = MhimPanel(self.session, napari_viewer)
        self.export_panel = ExportPanel(self.session)
        self._fill()
        self._add_shortcuts()
        if self.session.header is None:
            self.model_panel.choose(self.session.model_ref)
        self.viewer.canvas.overlays.scale_bar.visible = True
        stop_at_end(self, [runner for p in self.panels for runner in p.runners])
        when_removed(self, self.close_down)
        warm_up_later()

    @property
    def panels(self) -> list[Panel]:
        """All sections, top to bottom."""
        return [
            self.slide_panel,
            self.model_panel,
            self.mask_panel,
            self.patches_panel,
            self.classify_panel,
            self.result_panel,
            self.query_panel,
            self.gallery_panel,
            self.what_if_panel,
            self.trust_panel,
            self.mhim_panel,
            self.export_panel,
        ]

    def _fill(self) -> None:
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(6, 6, 6, 6)
        column.setSpacing(6)
        for panel in self.panels:
            column.addWidget(panel.section)
            line = QFrame()
            line.setFrameShape(QFrame.Shape.HLine)
            line.setStyleSheet("color: rgba(128, 128, 128, 90);")
            column.addWidget(line)
        column.addLayout(
            row(
                button(
                    RUN.worklist,
                    WORKLIST.empty,
                    partial(self._open_dock, WORKLIST.title),
                ),
                button(
                    RUN.compare, COMPARE.tip, partial(self._open_dock, COMPARE.title)
                ),
            )
        )
        column.addStretch(1)
        self.setWidget(inside)
        self._keep_width()

    def _keep_width(self) -> None:
        """Never narrower than the widest section, so that nothing is cut off at the right."""
        inside, bar = self.widget(), self.verticalScrollBar()
        if inside is not None and bar is not None:
            needed = max(p.minimum_width for p in self.panels) + 18
            needed = max(needed, inside.minimumSizeHint().width())
            needed += bar.sizeHint().width()
            if needed != self.minimumWidth():
                self.setMinimumWidth(needed)
                QTimer.singleShot(0, partial(widen, self))

    def showEvent(self, event: QShowEvent | None) -> None:
        """Take the width that every section needs at once, so that the canvas does not shrink when one is opened."""
        super().showEvent(event)
        for widget in self.findChildren(QWidget):
            widget.ensurePolished()  # the theme's margins count
        self._keep_width()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Follow the sections when they open or their texts grow."""
        handled = bool(super().eventFilter(watched, event))
        if event is not None and event.type() == QEvent.Type.LayoutRequest:
            self._keep_width()
        return handled

    def _add_shortcuts(self) -> None:
        """Ctrl+Return runs, Esc cancels, wherever the focus is in the dock."""
        for keys, act in (
            ("Ctrl+Return", self.classify_panel.classify),
            ("Esc", self.classify_panel.cancel),
        ):
            shortcut = QShortcut(QKeySequence(keys), self)
            shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
            shortcut.activated.connect(act)

    def _open_dock(self, name: str) -> None:
        self.viewer.window.add_plugin_dock_widget(PLUGIN, name)

    def _show_sample(self) -> None:
        self.gallery_panel.show_sample()
        self.ensureWidgetVisible(self.gallery_panel.section)

    def close_down(self) -> None:
        """Stop every job and let go of the viewer."""
        for panel in self.panels:
            panel.close_down()

    def closeEvent(self, event: QCloseEvent | None) -> None:
        """The dock is closed."""
        self.close_down()
        super().closeEvent(event)
