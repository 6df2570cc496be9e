"""A result as files that other programs open: JSON, CSV, GeoJSON, PNG, OME-Zarr.

A result folder appears whole or not at all: everything is written into a folder beside it, which is then renamed.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.annotations import write_mask_geojson
from napari_msamil.folders import beside, swap_in, sweep
from napari_msamil.overlay import attention_maps, mean_attention, patch_map

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from napari_msamil.result import SlideResult
    from napari_msamil.slide.base import Slide

FORMAT = "msamil-result/1"


def write_result(result: SlideResult, folder: Path, slide: Slide) -> Path:
    """Write the whole result folder (DESIGN section 4).

    Args:
        result: What to write.
        folder: The result folder itself; replaced as a whole if it is there.
        slide: The open slide, for the overview picture.

    Returns:
        The folder.
    """
    part = beside(folder, "part")
    part.mkdir(parents=True)
    try:
        write_patches_csv(result, part / "patches.csv")
        write_mask_geojson(result.mask, part / "mask.geojson")
        write_annotations(result, part / "annotations.geojson")
        write_overview(result, part / "overview.png", slide)
        write_heatmap_zarr(result, part / "heatmap.ome.zarr")
        write_result_json(result, part / "result.json")
        swap_in(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        sweep(folder)
    return folder


def result_document(result: SlideResult) -> dict[str, Any]:
    """The content of `result.json`, plain JSON values only."""
    info = result.info
    return {
        "format": FORMAT,
        "slide": {
            "path": str(info.path),
            "width": info.size_wh0[0],
            "height": info.size_wh0[1],
            "mpp": info.mpp,
            "mpp_source": str(info.mpp_source) if info.mpp_source else None,
            "vendor": info.vendor,
            "quickhash": info.quickhash,
        },
        "model": {
            "name": result.model_name,
            "sha256": result.model_sha256,
            "classes": list(result.classes),
        },
        "mask": {
            "source": str(result.mask.source),
            "lesion_fraction": round(result.mask.fraction, 6),
        },
        "patches": result.counts,
        "prediction": result.prediction,
        "probabilities": dict(
            zip(result.classes, map(float, result.probabilities), strict=True)
        ),
        "logits": [float(v) for v in result.logits],
        **_trust(result),
        "partial": result.partial,
        "timings_s": {k: round(v, 4) for k, v in result.timings_s.items()},
        "warnings": list(result.warnings),
        "software": dict(result.software),
        "command": result.command,
    }


def _trust(result: SlideResult) -> dict[str, Any]:
    """What is known about the reliability of the answer; keys that a model cannot fill are absent."""
    found: dict[str, Any] = {}
    members, spread = result.member_probabilities, result.spread
    if members is not None:
        found["members"] = [
            dict(zip(result.classes, map(float, row), strict=True)) for row in members
        ]
    if spread is not None:
        found["spread"] = dict(zip(result.classes, map(float, spread), strict=True))
    if result.coverage is not None:
        found["class_set"] = {
            "coverage": result.coverage,
            "classes": list(result.class_set),
        }
    found["verdicts"] = [asdict(verdict) for verdict in result.verdicts]
    return found


def write_result_json(result: SlideResult, path: Path) -> None:
    """Write `result.json`."""
    write_json(result_document(result), path)


def write_json(document: Any, path: Path) -> None:
    """Write JSON beside, then rename; NaN is refused because other readers do."""
    part = beside(path, "part")
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def patch_rows(result: SlideResult) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of `patches.csv`: level-0 pixels, attention sums to 1, 10 queries where the model has them."""
    queries = 0 if result.query_attention is None else len(result.query_attention)
    header = ["scale", "x", "y", "width", "height", "lesion_fraction", "attention"]
    header += [f"query_{q}" for q in range(queries)]
    grid = result.grid
    rows = []
    for i, (x, y) in enumerate(grid.coords_xy0.tolist()):
        code = int(grid.scale[i])
        size = grid.size_px0[code]
        row = [grid.spec.scales[code].name, x, y, size, size]
        row += [_short(grid.lesion_fraction[i]), _short(result.attention[i])]
        if result.query_attention is not None:
            row += [_short(v) for v in result.query_attention[:, i]]
        rows.append(row)
    return header, rows


def _short(value: float) -> str:
    """Nine significant digits: float32 read back exactly."""
    return f"{float(value):.9g}"


def write_patches_csv(result: SlideResult, path: Path) -> None:
    """Write `patches.csv`."""
    header, rows = patch_rows(result)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def annotation_features(result: SlideResult) -> list[dict[str, Any]]:
    """One QuPath detection per patch: a square in level-0 pixels with its measurements."""
    header, rows = patch_rows(result)
    colour = _attention_colours(result.attention)
    features = []
    for i, row in enumerate(rows):
        scale, x, y, width, height = row[:5]
        corners = [
            [x, y],
            [x + width, y],
            [x + width, y + height],
            [x, y + height],
            [x, y],
        ]
        measures = {name: float(v) for name, v in zip(header[5:], row[5:], strict=True)}
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [corners]},
                "properties": {
                    "objectType": "detection",
                    "name": f"patch {scale}",
                    "classification": {"name": f"patch {scale}", "color": colour[i]},
                    "measurements": measures,
                },
            }
        )
    return features


def _attention_colours(attention: np.ndarray) -> list[list[int]]:
    """Colour per patch, dark to bright with attention."""
    from matplotlib import colormaps

    top = float(attention.max()) or 1.0
    rgb = np.asarray(colormaps["inferno"](attention / top))[:, :3] * 255
    return [[int(v) for v in row] for row in rgb]


def write_annotations(result: SlideResult, path: Path) -> None:
    """Write `annotations.geojson`, which QuPath opens as it is."""
    write_json(
        {"type": "FeatureCollection", "features": annotation_features(result)}, path
    )


def write_overview(
    result: SlideResult, path: Path, slide: Slide, max_side: int = 900
) -> None:
    """Write `overview.png`: the slide with the mask's outline, and attention over it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = result.info.size_wh0
    factor = max_side / max(width, height)
    thumb_wh = (max(1, round(width * factor)), max(1, round(height * factor)))
    thumbnail = slide.thumbnail(thumb_wh)
    figure = Figure(
        figsize=(11, 1.3 + 5.2 * min(height / width, 2)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.imshow(thumbnail, extent=(0, width, height, 0), interpolation="nearest")
        axes.set_axis_off()
    _draw_mask(left, result)
    _draw_attention(right, result)
    for axes in (left, right):
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
    figure.suptitle(overview_title(result), fontsize=10)
    figure.savefig(path, dpi=100)


def _draw_mask(axes: Axes, result: SlideResult) -> None:
    """Outline of the mask, through the centres of its pixels."""
    mask, (step_x, step_y) = result.mask.mask, result.mask.downsample_xy
    if 0 < mask.mean() < 1 and min(mask.shape) > 1:
        x = (np.arange(mask.shape[1]) + 0.5) * step_x
        y = (np.arange(mask.shape[0]) + 0.5) * step_y
        axes.contour(
            x, y, mask.astype(np.float32), levels=[0.5], colors="red", linewidths=1
        )
    axes.set_title(
        f"mask ({result.mask.source}), {result.mask.fraction:.1%} of the slide",
        fontsize=9,
    )


def _draw_attention(axes: Axes, result: SlideResult) -> None:
    """Attention, brighter is more; the bar says how much, so that an almost even one cannot be mistaken for a strong one."""
    overlay = mean_attention(result)
    rows, columns = overlay.values.shape
    seen = overlay.values[np.isfinite(overlay.values)]
    low, high = np.percentile(seen, (1, 99)) if len(seen) else (0.0, 1.0)
    image = axes.imshow(
        overlay.values,
        extent=(0, columns * overlay.cell_px0, rows * overlay.cell_px0, 0),
        cmap="inferno",
        alpha=0.5,
        vmin=low,
        vmax=max(high, low + 1e-6),
        interpolation="nearest",
    )
    assert axes.figure is not None
    bar = axes.figure.colorbar(
        image, ax=axes, orientation="horizontal", fraction=0.04, pad=0.02
    )
    bar.ax.tick_params(labelsize=8)
    bar.set_label("attention, times that of the average patch", fontsize=8)
    even = "attention (almost even)" if high < 1.1 * low else "attention"
    axes.set_title(f"{even}, mean of the scales", fontsize=9)


def overview_title(result: SlideResult) -> str:
    """Prediction, probabilities and the label that this is no diagnosis."""
    order = np.argsort(result.probabilities)[::-1]
    parts = ", ".join(
        f"{result.classes[i]} {result.probabilities[i]:.3f}" for i in order[:4]
    )
    partial = "PARTIAL RESULT · " if result.partial else ""
    return f"{partial}{result.info.name} · {result.model_name}\n{parts}\nresearch only, not for diagnosis"


def write_heatmap_zarr(result: SlideResult, path: Path) -> None:
    """Write `heatmap.ome.zarr`: OME-Zarr 0.5, one image per scale, channels attention and queries.

    The translation puts cell centres on the slide in µm, so a reader that shows the slide with
    scale = mpp shows the heat map exactly over it.
    """
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    layers = [("attention", result.attention)]
    if result.query_attention is not None:
        layers += [
            (f"query {q}", values) for q, values in enumerate(result.query_attention)
        ]
    images = []
    for index, overlay in enumerate(attention_maps(result)):
        stack = np.stack(
            [patch_map(result.grid, values, index) for _, values in layers]
        )
        stored = group.create_array(
            overlay.scale_name, data=stack, dimension_names=["c", "y", "x"]
        )
        stored.attrs["channels"] = [name for name, _ in layers]
        images.append(
            _multiscale(
                overlay.name,
                overlay.scale_name,
                overlay.scale_yx_um,
                overlay.translate_yx_um,
            )
        )
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": images,
        "omero": {"channels": [_channel(*layer) for layer in layers]},
    }


def _channel(name: str, values: NDArray[np.floating]) -> dict[str, Any]:
    """How a viewer shows a channel: grey, from nothing to the strongest patch."""
    top = float(values.max(initial=0.0)) or 1.0
    window = {"min": 0.0, "start": 0.0, "max": top, "end": top}
    return {"label": name, "color": "FFFFFF", "active": True, "window": window}


def _multiscale(
    name: str,
    path: str,
    scale_yx_um: tuple[float, float],
    translate_yx_um: tuple[float, float],
) -> dict[str, Any]:
    if not all(math.isfinite(v) for v in (*scale_yx_um, *translate_yx_um)):
        raise ValueError("a heat map needs a finite transform")
    return {
        "name": name,
        "axes": [
            {"name": "c", "type": "channel"},
            {"name": "y", "type": "space", "unit": "micrometer"},
            {"name": "x", "type": "space", "unit": "micrometer"},
        ],
        "datasets": [
            {
                "path": path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0, *scale_yx_um]},
                    {"type": "translation", "translation": [0.0, *translate_yx_um]},
                ],
            }
        ],
    }
