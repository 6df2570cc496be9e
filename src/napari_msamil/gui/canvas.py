"""Layers of the workbench in a viewer: put, find, drop, fly. Layers are updated in place where possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.gui.layers import KEY, world_yx

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

    from napari_msamil.gui.layers import LayerTuple
    from napari_msamil.slide.base import SlideInfo


def role_of(layer: Layer) -> str:
    """What a layer is to the workbench; empty for layers that are not ours."""
    return str(layer.metadata.get(KEY, {}).get("role", ""))


def slot_of(layer: Layer) -> str:
    """Which of the layers of its role this is: its slot, else its name."""
    return str(layer.metadata.get(KEY, {}).get("slot", layer.name))


def find_layers(viewer: ViewerModel, role: str) -> list[Layer]:
    """Our layers of one role, bottom first."""
    return [layer for layer in viewer.layers if role_of(layer) == role]


def put_layer(viewer: ViewerModel, data: LayerTuple, *, visible: bool = True) -> Layer:
    """Add a layer, or give the one with the same role and slot (its name, unless it says otherwise) new data.

    What the user set on an existing layer (visibility, opacity, colormap) stays. The active layer stays active.
    """
    from napari.layers import Layer

    values, meta, kind = data
    ours = meta["metadata"][KEY]
    slot = ours.get("slot", meta["name"])
    for layer in find_layers(viewer, ours["role"]):
        if slot_of(layer) != slot:
            continue
        if _fits(layer, values, meta):
            layer.metadata[KEY] = ours
            _refill(layer, values, meta)
            return layer
        viewer.layers.remove(layer)
    active = viewer.layers.selection.active
    layer = viewer.add_layer(Layer.create(values, meta | {"visible": visible}, kind))
    if active is not None and active in viewer.layers:
        viewer.layers.selection.active = active
    return layer


def _fits(layer: Layer, values: object, meta: dict[str, object]) -> bool:
    if layer._type_string != "image" or not isinstance(values, np.ndarray):
        return False
    return layer.data.shape == values.shape and np.allclose(layer.scale, meta["scale"])  # type: ignore[arg-type]


def _refill(layer: Layer, values: np.ndarray, meta: dict[str, object]) -> None:
    layer.data = values
    if layer.name != meta["name"]:
        layer.name = meta["name"]
    if "contrast_limits" in meta:
        layer.contrast_limits = meta["contrast_limits"]
        layer.contrast_limits_range = meta["contrast_limits"]


def drop_layers(viewer: ViewerModel, role: str) -> None:
    """Remove our layers of one role."""
    for layer in find_layers(viewer, role):
        viewer.layers.remove(layer)


def fly_to(viewer: ViewerModel, info: SlideInfo, box_xywh0: np.ndarray) -> None:
    """Centre the view on a box in level-0 pixels, so that it takes about half of the canvas."""
    x, y, width, height = (float(v) for v in box_xywh0)
    corners = world_yx(info, np.array([[x, y], [x + width, y + height]]))
    viewer.scene.camera.center = tuple(corners.mean(axis=0))
    extent = float((corners[1] - corners[0]).max())
    viewer.scene.camera.zoom = 0.5 * min(viewer.canvas.size) / max(extent, 1e-6)


def order_layers(viewer: ViewerModel) -> None:
    """Keep slides at the bottom, overlays above them, the mask and points on top."""
    rank = {"slide": 0, "patches": 1, "mask": 3, "outline": 4, "region": 5, "top": 6}
    wanted = sorted(
        viewer.layers, key=lambda layer: rank.get(role_of(layer), 2), reverse=False
    )
    for position, layer in enumerate(wanted):
        at = viewer.layers.index(layer)
        if at != position:
            viewer.layers.move(at, position)
