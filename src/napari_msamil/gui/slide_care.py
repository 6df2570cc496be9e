"""What a slide's layer needs while it is shown: a sharper overview as it is made, and no whole slide in memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import napari.layers
from napari.utils.notifications import show_warning
from qtpy.QtCore import QObject, Signal  # type: ignore[attr-defined]

from napari_msamil.gui.layers import KEY

if TYPE_CHECKING:
    from napari.layers import Layer

    from napari_msamil.progress import Progress

LARGEST_LOCKED_PX = 50_000_000
"""A level locked in the layer controls is shown whole: 50 Mpx are 150 MB, level 0 of a slide is many GB."""
TOO_LARGE = (
    "Level {level} of this slide would be held in memory whole ({gb:.1f} GB), so it was not locked. "
    "Zoom in instead: the finest level is shown where you look."
)
REFRESH_S = 1.0
"""Seconds between two refreshes while the overview is made."""


class Image(napari.layers.Image):  # type: ignore[misc]
    """An image layer that refuses to show a whole level of a slide that does not fit memory.

    napari materialises a level before it tells anyone that it was locked, so the refusal sits in the setter. The name
    is napari's, because layers are saved and copied by the name of their class.
    """

    @property
    def locked_data_level(self) -> int | None:
        """The level shown whatever the zoom, or None."""
        level: int | None = super().locked_data_level
        return level

    @locked_data_level.setter
    def locked_data_level(self, level: int | None) -> None:
        if level is not None and 0 <= level < len(self.level_shapes):
            height, width = self.level_shapes[level][:2]
            if int(height) * int(width) > LARGEST_LOCKED_PX:
                show_warning(TOO_LARGE.format(level=level, gb=height * width * 3 / 1e9))
                self.events.locked_data_level()  # the drop-down shows the true state again
                return
        napari.layers.Image.locked_data_level.fset(self, level)


class _Steps(QObject):
    """Carries steps of the background thread into the window's thread."""

    stepped = Signal(bool)

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self._layer = layer
        self._last = 0.0
        self.stepped.connect(self._refresh)

    def tell(self, progress: Progress) -> None:
        """A step was done; called in the background thread."""
        now = time.monotonic()
        if progress.done >= progress.total or now - self._last > REFRESH_S:
            self._last = now
            self.stepped.emit(progress.done >= progress.total)

    def _refresh(self, done: bool) -> None:
        if done:
            # napari keeps the level of the layer's thumbnail until the data are set anew.
            self._layer.data = self._layer.data
        else:
            self._layer.refresh(extent=False, thumbnail=False)


def look_after(layer: Layer) -> None:
    """Guard a slide's layer against showing it whole, and refresh it while its overview is made; once per layer."""
    state = layer.metadata.get(KEY, {})
    if type(layer) is napari.layers.Image and layer.multiscale:
        layer.__class__ = Image
    overview = state.get("overview")
    if overview is not None and "steps" not in state:
        state["steps"] = _Steps(layer)
        if not overview.is_complete:
            overview.watch(state["steps"].tell)
