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

    What the user set on an existing image (visibility, opacity, colormap) stays, also when its cells change their
    size. The active layer stays active.
    """
    from napari.layers import Layer

    values, meta, kind = data
    ours = meta["metadata"][KEY]
    slot = ours.get("slot", meta["name"])
    for layer in find_layers(viewer, ours["role"]):
        if slot_of(layer) != slot:
            continue
        if _fits(layer, values):
            layer.metadata[KEY] = ours
            _refill(layer, values, meta)
            return layer
        viewer.layers.remove(layer)
    active = viewer.layers.selection.active
    layer = viewer.add_layer(Layer.create(values, meta | {"visible": visible}, kind))
    if active is not None and active in viewer.layers:
        viewer.layers.selection.active = active
    return layer


def _fits(layer: Layer, values: object) -> bool:
    if layer._type_string != "image" or layer.multiscale:
        return False
    return isinstance(values, np.ndarray) and layer.data.ndim == values.ndim


def _refill(layer: Layer, values: np.ndarray, meta: dict[str, object]) -> None:
    layer.data = values
    for placed in ("scale", "translate"):
        if not np.allclose(getattr(layer, placed), meta[placed]):  # type: ignore[arg-type]
            setattr(layer, placed, meta[placed])
    if layer.name != meta["name"]:
        layer.name = meta["name"]
    if "contrast_limits" in meta:
        layer.contrast_limits = meta["contrast_limits"]
        layer.contrast_limits_range = meta["contrast_limits"]


def drop_layers(viewer: ViewerModel, role: str) -> None:
    """Remove our layers of one role."""
    for layer in find_layers(viewer, role):
        viewer.layers.remove(layer)


def fit_slide(viewer: ViewerModel, info: SlideInfo) -> None:
    """Show the whole slide, whatever else is in the viewer."""
    fly_to(viewer, info, np.array([0, 0, *info.size_wh0]), share=0.95)


def fly_to(
    viewer: ViewerModel, info: SlideInfo, box_xywh0: np.ndarray, share: float = 0.5
) -> None:
    """Centre the view on a box in level-0 pixels, so that it takes a share of the canvas."""
    x, y, width, height = (float(v) for v in box_xywh0)
    corners = world_yx(info, np.array([[x, y], [x + width, y + height]]))
    viewer.scene.camera.center = tuple(corners.mean(axis=0))
    extent_yx = np.maximum(corners[1] - corners[0], 1e-6)
    viewer.scene.camera.zoom = share * float(
        (np.asarray(viewer.canvas.size) / extent_yx).min()
    )


def order_layers(viewer: ViewerModel) -> None:
    """Keep slides at the bottom, overlays above them, the mask and points on top."""
    names = ("slide", "patches", "", "masked", "mask", "outline", "region", "top")
    rank = {name: position for position, name in enumerate(names)}
    wanted = sorted(
        viewer.layers,
        key=lambda layer: rank.get(role_of(layer), rank[""]),
        reverse=False,
    )
    for position, layer in enumerate(wanted):
        at = viewer.layers.index(layer)
        if at != position:
            viewer.layers.move(at, position)
