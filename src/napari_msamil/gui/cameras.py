"""Two cameras that look at the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari.components import ViewerModel


class CameraLink:
    """Keeps the centre and zoom of two viewers equal while it is on.

    Args:
        first: One viewer; the other follows it when the link is made.
        second: The other.
    """

    def __init__(self, first: ViewerModel, second: ViewerModel) -> None:
        self._cameras = (first.scene.camera, second.scene.camera)
        self._busy = False
        self._on = False
        self.set_on(True)

    def set_on(self, on: bool) -> None:
        """Link or part the cameras."""
        if on == self._on:
            return
        self._on = on
        first, second = self._cameras
        for camera, follow in (
            (first, self.follow_first),
            (second, self._follow_second),
        ):
            for event in (camera.events.center, camera.events.zoom):
                if on:
                    event.connect(follow)
                else:
                    event.disconnect(follow)
        if on:
            self.follow_first()

    def follow_first(self, event: object = None) -> None:
        """The second camera goes where the first is."""
        self._copy(0, 1)

    def _follow_second(self, event: object = None) -> None:
        self._copy(1, 0)

    def _copy(self, source: int, target: int) -> None:
        if self._busy or not self._on:
            return
        self._busy = True
        try:
            self._cameras[target].center = self._cameras[source].center
            self._cameras[target].zoom = self._cameras[source].zoom
        finally:
            self._busy = False
