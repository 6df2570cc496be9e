"""Masks and outlines to and from the files of other programs, in level-0 pixels."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from napari_msamil.errors import MaskError
from napari_msamil.masks import MaskSource, SlideMask

if TYPE_CHECKING:
    from pathlib import Path


def mask_polygons(mask: SlideMask) -> list[shapely.Polygon]:
    """Outlines of a mask along the edges of its pixels, with holes, in level-0 pixels."""
    padded = np.zeros((mask.mask.shape[0], mask.mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask.mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    _, ends = np.nonzero(change == -1)
    step_x, step_y = mask.downsample_xy
    runs = shapely.box(
        starts * step_x, rows * step_y, ends * step_x, (rows + 1) * step_y
    )
    shape = shapely.union_all(runs)
    return [p for p in getattr(shape, "geoms", [shape]) if not p.is_empty]


def write_mask_geojson(
    mask: SlideMask, path: Path, classification: str = "lesion"
) -> None:
    """Write a mask as QuPath GeoJSON: one annotation per part, holes included; beside, then renamed."""
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(polygon)),
            "properties": {
                "objectType": "annotation",
                "classification": {"name": classification, "color": [200, 0, 0]},
            },
        }
        for polygon in mask_polygons(mask)
    ]
    part = path.with_name(path.name + ".part")
    part.write_text(
        json.dumps({"type": "FeatureCollection", "features": features}),
        encoding="utf-8",
    )
    part.replace(path)


def read_mask(
    path: Path, size_wh0: tuple[int, int], shape_hw: tuple[int, int] = (1024, 1024)
) -> SlideMask:
    """Read a QuPath GeoJSON as a mask over the slide.

    Raises:
        MaskError: The file is no GeoJSON, or lies outside the slide.
    """
    try:
        document: Any = json.loads(path.read_text("utf-8"))
        features = document["features"] if isinstance(document, dict) else document
        shapes = [shapely.from_geojson(json.dumps(f["geometry"])) for f in features]
    except (ValueError, KeyError, TypeError, shapely.errors.GEOSException) as error:
        raise MaskError(
            f"{path} is no GeoJSON mask: {error}. Export it from QuPath or napari-msamil."
        ) from error
    area = shapely.union_all(shapes)
    step_x, step_y = size_wh0[0] / shape_hw[1], size_wh0[1] / shape_hw[0]
    x = (np.arange(shape_hw[1]) + 0.5) * step_x
    y = (np.arange(shape_hw[0]) + 0.5) * step_y
    shapely.prepare(area)
    grid_x, grid_y = np.meshgrid(x, y)
    inside = shapely.contains_xy(area, grid_x, grid_y)
    return SlideMask(np.asarray(inside, np.bool_), size_wh0, MaskSource.FILE)
