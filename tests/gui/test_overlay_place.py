"""On the screen, an overlay lies on the feature it was drawn on, at the finest level and at a coarse one."""

from __future__ import annotations

import numpy as np
import pytest
from qtpy.QtWidgets import QApplication

from napari_msamil.gui.layers import mask_layer, slide_layer
from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.slide.array_slide import ArraySlide
from napari_msamil.slide.write import halved_levels

pytestmark = pytest.mark.gui

CELL = 12
LEFT, TOP, RIGHT, BOTTOM = (
    58 * CELL, 33 * CELL, 101 * CELL, 76 * CELL,
)  # fmt: skip


def boundaries(picture: np.ndarray, is_feature: np.ndarray) -> tuple[int, int]:
    """First row and first column of the feature on the screen."""
    assert 0.01 < is_feature.mean() < 0.9, picture.mean(axis=(0, 1))
    rows, columns = (np.flatnonzero(is_feature.mean(axis=a) > 0.05) for a in (1, 0))
    return int(rows[0]), int(columns[0])


def look(viewer) -> np.ndarray:
    """The canvas, once the level that fits the zoom is drawn."""
    viewer.screenshot(canvas_only=True, flash=False)
    QApplication.processEvents()
    return viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)


@pytest.mark.parametrize(
    ("screen_px_per_px0", "half_pixel"), [(8.0, 4), (0.25, 1)], ids=["level0", "coarse"]
)
def test_a_mask_covers_its_feature_to_half_a_level_0_pixel(
    make_napari_viewer, screen_px_per_px0, half_pixel
):
    pixels = np.full((1501, 2003, 3), 255, np.uint8)
    pixels[TOP:BOTTOM, LEFT:RIGHT] = (0, 0, 90)
    slide = ArraySlide(halved_levels(pixels), mpp=0.25)
    drawn = np.zeros((-(-1501 // CELL), -(-2003 // CELL)), bool)
    drawn[TOP // CELL : BOTTOM // CELL, LEFT // CELL : RIGHT // CELL] = True
    size_wh0 = (drawn.shape[1] * CELL, drawn.shape[0] * CELL)
    mask = SlideMask(drawn, size_wh0, MaskSource.USER)
    viewer = make_napari_viewer(show=True)
    base = viewer._add_layer_from_data(*slide_layer(slide))[0]
    top = viewer._add_layer_from_data(*mask_layer(mask, slide.info))[0]
    top.opacity = 1.0
    camera = viewer.scene.camera
    camera.center = (TOP * 0.25, LEFT * 0.25)
    camera.zoom = screen_px_per_px0 / 0.25
    top.visible = False
    shown = look(viewer)
    assert (base.data_level == 0) == (screen_px_per_px0 > 1)
    feature = boundaries(shown, (shown[..., 0] < 100) & (shown[..., 2] > 45))
    top.visible, base.visible = True, False
    shown = look(viewer)
    overlay = boundaries(shown, shown[..., 0] > 120)
    assert np.abs(np.subtract(feature, overlay)).max() <= half_pixel
