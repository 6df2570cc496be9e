"""Slides, masks and overlays as napari layer tuples: the one place where x, y become row, column.

Every layer is placed in µm on the slide: a cell of d level-0 pixels has scale d·mpp and translation
(d − 1)/2·mpp, so that its outer edge falls on the slide's outer edge exactly. Nothing here needs a window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.gui.strings import LAYER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_msamil.masks import SlideMask
    from napari_msamil.overlay import Overlay
    from napari_msamil.patches import PatchGrid
    from napari_msamil.result import SlideResult
    from napari_msamil.slide.base import Slide, SlideInfo

LayerTuple = tuple[Any, dict[str, Any], str]

KEY = "msamil"
"""Key of our entry in a layer's metadata."""

SCALE_COLOURS = ("#ff4d6d", "#ffb703", "#00b4d8")
"""Finest to coarsest."""

ATTENTION_COLOURS = (
    (0.10, 0.20, 0.60, 0.00),
    (0.10, 0.55, 0.80, 0.25),
    (0.15, 0.75, 0.45, 0.45),
    (0.98, 0.85, 0.20, 0.60),
    (0.85, 0.10, 0.10, 0.75),
)
"""Low to high: from nothing over blue, green and yellow to red, so that tissue without attention is seen as it is."""

EVEN_TIMES = 3.0
"""The brightest colour means at least this many times an even share, so that even attention does not glow."""

MASK_COLOURS = {None: (0, 0, 0, 0), 0: (0, 0, 0, 0), 1: (0.93, 0.27, 0.45, 1)}


def pixel_um_yx(info: SlideInfo) -> tuple[float, float]:
    """µm per level-0 pixel along y and x; 1, 1 where the slide has no known pixel size."""
    if info.mpp_yx is not None:
        return info.mpp_yx
    return (info.mpp, info.mpp) if info.mpp is not None else (1.0, 1.0)


def placement(info: SlideInfo, cell_xy0: tuple[float, float]) -> dict[str, Any]:
    """Scale, translation and units of a grid whose cells are `cell_xy0` level-0 pixels wide and high."""
    mpp_y, mpp_x = pixel_um_yx(info)
    cell_x, cell_y = cell_xy0
    units = "um" if info.mpp is not None else "pixel"
    return {
        "scale": (cell_y * mpp_y, cell_x * mpp_x),
        "translate": ((cell_y - 1) / 2 * mpp_y, (cell_x - 1) / 2 * mpp_x),
        "units": (units, units),
    }


def world_yx(info: SlideInfo, xy0: NDArray[np.floating]) -> NDArray[np.float64]:
    """Level-0 positions (N, 2) x, y as napari world coordinates (N, 2) y, x in µm.

    A position of 0 is the left edge of the first pixel, whose centre is napari's origin.
    """
    mpp_y, mpp_x = pixel_um_yx(info)
    xy = np.asarray(xy0, dtype=np.float64) - 0.5
    return np.stack([xy[:, 1] * mpp_y, xy[:, 0] * mpp_x], axis=1)


def level0_xy(info: SlideInfo, world: Sequence[float]) -> tuple[float, float]:
    """A napari world position (…, y, x) in µm as a level-0 position x, y."""
    mpp_y, mpp_x = pixel_um_yx(info)
    return float(world[-1]) / mpp_x + 0.5, float(world[-2]) / mpp_y + 0.5


def slide_layer(slide: Slide) -> LayerTuple:
    """The slide as a lazy multiscale RGB image; its metadata keeps the open slide."""
    from napari_msamil.slide.level_array import start_virtual_levels, view_levels

    info = slide.info
    overview = start_virtual_levels(slide)
    meta = {
        "name": info.name,
        "rgb": True,
        "multiscale": True,
        "contrast_limits": (0, 255),
        "metadata": {KEY: {"role": "slide", "slide": slide, "overview": overview}},
        **placement(info, (1.0, 1.0)),
    }
    return view_levels(slide, virtual=overview), meta, "image"


def mask_layer(mask: SlideMask, info: SlideInfo) -> LayerTuple:
    """The mask as a single-scale labels layer (a multiscale one cannot be painted), 1 is lesion."""
    from napari.utils.colormaps import DirectLabelColormap

    meta = {
        "name": LAYER.mask,
        "opacity": 0.45,
        "colormap": DirectLabelColormap(color_dict=dict(MASK_COLOURS)),
        "metadata": {KEY: {"role": "mask", "info": info, "source": mask.source}},
        **placement(info, mask.downsample_xy),
    }
    return mask.mask.astype(np.uint8), meta, "labels"


def overlay_layer(
    overlay: Overlay, *, role: str, result: SlideResult | None = None, **style: Any
) -> LayerTuple:
    """One grid of values as an image: a cell is a pixel, NaN is transparent."""
    values = overlay.values
    high = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    meta = {
        "name": overlay.name,
        "colormap": "inferno",
        "contrast_limits": (0.0, max(high, 1e-9)),
        "opacity": 0.6,
        "blending": "translucent",
        "interpolation2d": "nearest",
        "scale": overlay.scale_yx_um,
        "translate": overlay.translate_yx_um,
        "units": ("um", "um"),
        "metadata": {
            KEY: {"role": role, "scale": overlay.scale_name, "result": result}
        },
    }
    return values, meta | style, "image"


def difference_layer(
    a: SlideResult, b: SlideResult, scale: int, name: str
) -> LayerTuple | None:
    """Attention of A minus attention of B at one scale; 0 is the middle colour.

    A cell that only one of them uses counts as 0 in the other; a cell that none uses is transparent.

    Returns:
        The layer, or None where B has no such scale on the same cells.
    """
    from napari_msamil.overlay import attention_maps

    maps = attention_maps(a)
    mine = maps[min(scale, len(maps) - 1)]
    others = {(o.scale_name, o.values.shape): o for o in attention_maps(b)}
    other = others.get((mine.scale_name, mine.values.shape))
    if other is None:
        return None
    seen = np.isfinite(mine.values) | np.isfinite(other.values)
    change = np.nan_to_num(mine.values) - np.nan_to_num(other.values)
    values = np.where(seen, change, np.nan).astype(np.float32)
    reach = max(float(np.nanmax(np.abs(values), initial=0.0)), 1e-9)
    _, meta, kind = overlay_layer(
        mine, role="difference", colormap="PiYG", contrast_limits=(-reach, reach)
    )
    meta["metadata"][KEY]["slot"] = "difference"
    meta["name"] = name.format(scale=mine.scale_name)
    return values, meta, kind


def brightest(values: NDArray[np.floating]) -> float:
    """The value (of N shares) that gets the brightest colour; one for all scales, so that they can be compared."""
    if not len(values):
        return 1.0
    return max(float(np.quantile(values, 0.995)), EVEN_TIMES / len(values))


def attention_layer(
    overlay: Overlay, result: SlideResult, name: str, high: float
) -> LayerTuple:
    """Attention of one scale; low values are transparent."""
    from napari.utils.colormaps import Colormap

    data, meta, kind = overlay_layer(overlay, role="attention", result=result)
    meta["metadata"][KEY]["slot"] = "attention"
    meta |= {
        "name": name.format(scale=overlay.scale_name),
        "colormap": Colormap(ATTENTION_COLOURS, name="msamil attention"),
        "contrast_limits": (0.0, high),
        "opacity": 1.0,
    }
    return data, meta, kind


def patch_layer(grid: PatchGrid, info: SlideInfo, scale: int) -> LayerTuple:
    """Preview of the selected patches of one scale: lesion share per patch."""
    from napari_msamil.overlay import patch_map

    values = patch_map(grid, grid.lesion_fraction, scale)
    step = float(grid.step_px0[scale])
    name = grid.spec.scales[scale].name
    meta = {
        "name": LAYER.patches.format(scale=name),
        "colormap": "viridis",
        "contrast_limits": (0.0, 1.0),
        "opacity": 0.4,
        "interpolation2d": "nearest",
        "metadata": {KEY: {"role": "patches", "slot": "patches", "scale": name}},
        **placement(info, (step, step)),
    }
    return values, meta, "image"


def top_patch_points(
    result: SlideResult, indices: NDArray[np.integer], name: str
) -> LayerTuple:
    """Chosen patches as points with features, for napari's features table."""
    grid, info = result.grid, result.info
    sizes = np.asarray(grid.size_px0)[grid.scale[indices]]
    centres = grid.coords_xy0[indices] + sizes[:, None] / 2
    features: dict[str, Any] = {
        "rank": np.arange(1, len(indices) + 1),
        "scale": [grid.spec.scales[int(s)].name for s in grid.scale[indices]],
        "attention": result.attention[indices],
        "lesion_fraction": grid.lesion_fraction[indices],
        "x": grid.coords_xy0[indices, 0],
        "y": grid.coords_xy0[indices, 1],
        "patch": np.asarray(indices),
    }
    if result.query_attention is not None:
        features["query"] = result.query_attention[:, indices].argmax(axis=0)
    meta = {
        "name": name,
        "features": features,
        "size": 12,
        "canvas_size_limits": (6, 14),
        "symbol": "square",
        "face_color": "transparent",
        "border_color": "#39ff14",
        "border_width": 0.15,
        "scale": (1.0, 1.0),
        "units": ("um", "um"),
        "metadata": {KEY: {"role": "top", "result": result}},
    }
    return world_yx(info, centres), meta, "points"


def here_layer(info: SlideInfo, linked: PatchGrid) -> LayerTuple:
    """The linked patches of one place as a few squares, one colour per scale."""
    squares = []
    for x, y, width, height in linked.boxes_xywh0:
        corners = np.array(
            [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
        )
        squares.append(world_yx(info, corners))
    meta = {
        "name": LAYER.here,
        "shape_type": "rectangle",
        "face_color": "transparent",
        "edge_color": [SCALE_COLOURS[i % len(SCALE_COLOURS)] for i in linked.scale],
        "edge_width": max(float(linked.size_px0[0]) * pixel_um_yx(info)[0] / 25, 0.5),
        "units": ("um", "um"),
        "metadata": {KEY: {"role": "here"}},
    }
    return squares, meta, "shapes"


def outline_layer(mask: SlideMask, info: SlideInfo) -> LayerTuple:
    """The border of the mask as a line, on the mask grid."""
    data, meta, kind = mask_layer(mask, info)
    meta |= {
        "name": LAYER.outline,
        "opacity": 0.9,
        "metadata": {KEY: {"role": "outline"}},
    }
    line = data.astype(bool)
    inner = line.copy()
    inner[1:-1, 1:-1] &= (
        line[:-2, 1:-1] & line[2:, 1:-1] & line[1:-1, :-2] & line[1:-1, 2:]
    )
    return (line & ~inner).astype(np.uint8), meta, kind


def region_layer(info: SlideInfo) -> LayerTuple:
    """An empty layer to draw a region on."""
    width = max(info.size_wh0) * pixel_um_yx(info)[0] / 400
    meta = {
        "name": LAYER.region,
        "ndim": 2,
        "face_color": "#00b4d833",
        "edge_color": "#00b4d8",
        "edge_width": width,
        "units": ("um", "um"),
        "metadata": {KEY: {"role": "region"}},
    }
    return [], meta, "shapes"


def shapes_xy0(layer: Any, info: SlideInfo) -> list[NDArray[np.float64]]:
    """Outlines (K, 2) of drawn shapes in level-0 pixels, x then y; an ellipse as 64 points."""
    outlines = []
    for kind, data in zip(layer.shape_type, layer.data, strict=True):
        points = np.asarray(data, np.float64)[:, -2:]
        if kind == "ellipse":
            turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)[:, None]
            across, down = (points[1] - points[0]) / 2, (points[3] - points[0]) / 2
            points = points.mean(axis=0) + np.cos(turn) * across + np.sin(turn) * down
        world = np.array([layer.data_to_world(p) for p in points])
        outlines.append(np.array([level0_xy(info, p) for p in world]))
    return outlines


def mask_from_labels(
    labels: NDArray[np.integer], size_wh0: tuple[int, int]
) -> SlideMask:
    """A painted labels array as a user's mask; any label but 0 is lesion."""
    from napari_msamil.masks import MaskSource, SlideMask

    return SlideMask(np.asarray(labels) > 0, size_wh0, MaskSource.USER)
