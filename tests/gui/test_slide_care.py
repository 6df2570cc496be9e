"""A slide's layer is never held in memory whole, and its overview gets sharper while it is made."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from napari_msamil.progress import finish
from napari_msamil.slide.array_slide import ArraySlide

pytestmark = pytest.mark.gui
napari = pytest.importorskip("napari")


def test_locking_a_huge_level_is_refused_before_anything_is_read(qapp) -> None:
    from napari.utils.notifications import notification_manager

    from napari_msamil.gui.slide_care import look_after

    def forbidden(_: object) -> np.ndarray:
        raise AssertionError("the whole level was asked for")

    huge = da.zeros((30_000, 40_000, 3), chunks=1000, dtype=np.uint8).map_blocks(
        forbidden, dtype=np.uint8
    )
    small = da.zeros((3000, 4000, 3), chunks=1000, dtype=np.uint8)
    layer = napari.layers.Image(
        [huge, small], multiscale=True, rgb=True, contrast_limits=(0, 255)
    )
    look_after(layer)
    layer.locked_data_level = 0
    assert "3.6 GB" in notification_manager.records[-1].message
    assert layer.locked_data_level is None
    assert layer.data_level == 1
    layer.locked_data_level = 1
    assert layer.locked_data_level == 1
    layer.locked_data_level = None
    assert layer.as_layer_data_tuple()[2] == "image"


def test_layer_is_refreshed_when_its_overview_is_complete(qtbot, tmp_path, rng) -> None:
    from napari_msamil.gui.layers import KEY
    from napari_msamil.gui.slide_care import look_after
    from napari_msamil.slide.pyramid import lazy_pyramid
    from napari_msamil.slide.virtual import VirtualPyramid

    slide = ArraySlide(rng.integers(0, 256, (601, 4300, 3), dtype=np.uint8))
    overview = VirtualPyramid(slide, tmp_path)
    layer = napari.layers.Image(
        lazy_pyramid(slide, virtual=overview), multiscale=True, rgb=True, cache=False, contrast_limits=(0, 255),
        metadata={KEY: {"role": "slide", "slide": slide, "overview": overview}},
    )  # fmt: skip
    look_after(layer)
    look_after(layer)
    before = np.asarray(layer._data_view).copy()
    overview.start()
    qtbot.waitUntil(lambda: overview.is_complete, timeout=60_000)
    qtbot.waitUntil(
        lambda: (np.asarray(layer._data_view) != before).any(), timeout=60_000
    )
    overview.close()


def test_smooth_panning_is_offered_once_and_never_turned_on_unasked(
    plugin_settings, npe2pm, painted_svs
) -> None:
    from napari.settings import get_settings
    from napari.utils.notifications import notification_manager
    from npe2 import PluginManifest

    from napari_msamil.gui.reader import read_slides
    from napari_msamil.gui.strings import SLIDE

    npe2pm.register(PluginManifest.from_distribution("napari-msamil"))
    setting = get_settings().experimental
    before = len(notification_manager.records)
    for opened in range(2):
        ((_, meta, _),) = read_slides(str(painted_svs))
        meta["metadata"]["msamil"]["slide"].close()
        offers = [
            record
            for record in list(notification_manager.records)[before:]
            if record.message == SLIDE.smooth_offer
        ]
        assert len(offers) == 1, opened
    assert not setting.async_
    ((text, accept),) = offers[0].actions
    assert text == SLIDE.smooth_accept
    try:
        accept(None)
        assert setting.async_
    finally:
        setting.async_ = False


def test_overview_of_the_array_slide_is_whole(tmp_path, rng) -> None:
    from napari_msamil.slide.virtual import VirtualPyramid

    overview = VirtualPyramid(
        ArraySlide(rng.integers(0, 9, (700, 900, 3), dtype=np.uint8)), tmp_path
    )
    finish(overview.build())
    assert overview.is_complete
    overview.close()
