"""Smooth panning: napari's asynchronous slicing, offered once to every user and never turned on unasked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_msamil.gui.settings import PLUGIN
from napari_msamil.gui.strings import SLIDE

if TYPE_CHECKING:
    from napari.settings import PluginSettings


def is_smooth() -> bool:
    """Whether napari slices asynchronously."""
    from napari.settings import get_settings

    return bool(get_settings().experimental.async_)


def set_smooth(on: bool) -> None:
    """Turn asynchronous slicing on or off, in all viewers and from now on."""
    from napari.settings import get_settings

    get_settings().experimental.async_ = on


def offer_smooth() -> bool:
    """Ask once in a notification whether tiles shall be read beside the window.

    Returns:
        Whether it was asked now. It is not where it is on already or was asked before, nor where that could not be
        remembered; the tick box of the workbench is there all the same.
    """
    from napari.utils.notifications import Notification, notification_manager

    stored = _stored()
    if is_smooth() or stored is None or not stored.viewing.offer_smooth:
        return False
    stored.viewing.offer_smooth = False
    accept = (SLIDE.smooth_accept, _accept)
    notification_manager.dispatch(
        Notification(SLIDE.smooth_offer, "info", actions=(accept,))
    )
    return True


def _accept(_: Any) -> None:
    set_smooth(True)


def _stored() -> PluginSettings | None:
    """Our settings, or None where napari has not read our manifest."""
    from napari.settings import get_plugin_settings

    try:
        return get_plugin_settings(PLUGIN)
    except KeyError:
        return None
