"""Layers lie on the slide to half a pixel, and x, y become row, column once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Layer

from napari_msamil.gui.layers import (
    attention_layer,
    difference_layer,
    here_layer,
    level0_xy,
    mask_layer,
    patch_layer,
    placement,
    shapes_xy0,
    slide_layer,
    top_patch_points,
    world_yx,
)
from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.overlay import attention_maps
from napari_msamil.slide.array_slide import ArraySlide

pytestmark = pytest.mark.gui


def edges_um(layer: Layer) -> np.ndarray:
    """Outer edges (2, 2) of a layer in µm: pixel centres, half a pixel further on both sides."""
    low, high = layer.extent.world
    half = np.asarray(layer.scale) / 2
    return np.stack([low - half, high + half])


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(33, 900),
    height=st.integers(33, 900),
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    mpp=st.floats(0.1, 3.0),
)
def test_a_mask_ends_exactly_where_the_slide_ends(width, height, rows, columns, mpp):
    info = ArraySlide(np.zeros((height, width, 3), np.uint8), mpp=mpp).info
    mask = SlideMask(np.ones((rows, columns), bool), (width, height), MaskSource.USER)
    cell_x, cell_y = mask.downsample_xy
    placed = placement(info, (cell_x, cell_y))
    first = np.asarray(placed["translate"]) - np.asarray(placed["scale"]) / 2
    last = first + np.asarray(placed["scale"]) * (rows, columns)
    np.testing.assert_allclose(first, (-mpp / 2, -mpp / 2), atol=1e-9)
    np.testing.assert_allclose(
        last, (mpp * (height - 0.5), mpp * (width - 0.5)), rtol=1e-9
    )


def test_slide_and_mask_layers_have_the_same_edges(slide):
    viewer = ViewerModel()
    mask = SlideMask(np.ones((37, 53), bool), slide.info.size_wh0, MaskSource.USER)
    base = viewer.add_layer(Layer.create(*slide_layer(slide)))
    top = viewer.add_layer(Layer.create(*mask_layer(mask, slide.info)))
    np.testing.assert_allclose(edges_um(top), edges_um(base), atol=1e-6)
    assert [str(u) for u in base.units] == ["micrometer", "micrometer"]
    assert base.units == top.units
    assert not top.multiscale  # a multiscale labels layer could not be painted
    assert top.editable


@settings(deadline=None, max_examples=50)
@given(x=st.floats(-50, 5000), y=st.floats(-50, 5000), mpp=st.floats(0.1, 4.0))
def test_level0_to_world_and_back_is_the_identity(x, y, mpp):
    info = ArraySlide(np.zeros((21, 43, 3), np.uint8), mpp=mpp).info
    world = world_yx(info, np.array([[x, y]]))[0]
    np.testing.assert_allclose(level0_xy(info, world), (x, y), atol=1e-6)


def test_a_slide_without_pixel_size_is_shown_in_pixels():
    info = ArraySlide(np.zeros((21, 43, 3), np.uint8)).info
    placed = placement(info, (1.0, 1.0))
    assert placed["scale"] == (1.0, 1.0)
    assert placed["units"] == ("pixel", "pixel")


def test_attention_of_a_patch_is_under_its_own_place(answered):
    grid, info = answered.grid, answered.info
    high = float(answered.attention.max())
    for code, overlay in enumerate(attention_maps(answered)):
        layer = Layer.create(*attention_layer(overlay, answered, "A {scale}", high))
        here = np.flatnonzero(grid.scale == code)
        for index in (here[0], here[-1]):
            side = grid.size_px0[code]
            centre = world_yx(info, grid.coords_xy0[index][None] + side / 2)[0]
            found = layer.get_value(centre, world=True)
            assert found == pytest.approx(float(answered.attention[index]), rel=1e-9)


def test_patch_preview_holds_lesion_shares_not_shapes(answered):
    values, meta, kind = patch_layer(answered.grid, answered.info, 0)
    assert kind == "image"
    assert np.isfinite(values).sum() == (answered.grid.scale == 0).sum()
    assert meta["name"] == "Patches 20x"


def test_top_patches_carry_their_values_as_features(answered):
    chosen = np.argsort(-answered.attention)[:5]
    data, meta, kind = top_patch_points(answered, chosen, "Top")
    assert kind == "points"
    assert data.shape == (5, 2)
    assert list(meta["features"]["rank"]) == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(
        meta["features"]["attention"], answered.attention[chosen]
    )
    assert set(meta["features"]["query"]) <= set(range(10))


def test_difference_of_an_answer_with_itself_is_zero_where_patches_lie(answered):
    found = [difference_layer(answered, answered, s, "D {scale}") for s in range(3)]
    layers = [layer for layer in found if layer is not None]
    assert [meta["name"] for _, meta, _ in layers] == ["D 20x", "D 10x", "D 5x"]
    for values, meta, _ in layers:
        assert np.nanmax(np.abs(values)) == 0
        assert meta["contrast_limits"][0] == -meta["contrast_limits"][1]


def test_linked_squares_are_the_boxes_of_the_patches(answered):
    from napari_msamil.gui.thumbnails import linked_grid

    linked, _ = linked_grid(answered.grid, answered.mask, 300.0, 500.0)
    squares, _, _ = here_layer(answered.info, linked)
    layer = Layer.create(squares, {"units": ("um", "um")}, "shapes")
    outline = shapes_xy0(layer, answered.info)[0]
    x, y, width, height = linked.boxes_xywh0[0]
    np.testing.assert_allclose(outline.min(axis=0), (x, y), atol=1e-3)
    np.testing.assert_allclose(outline.max(axis=0), (x + width, y + height), atol=1e-3)
