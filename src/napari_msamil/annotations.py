"""Masks and outlines to and from the files of other programs, in level-0 pixels.

Read: QuPath GeoJSON, ASAP XML, Aperio ImageScope XML, BCNB/CAMELYON16 JSON, mask pictures. Written: QuPath GeoJSON,
which QuPath opens by drag and drop, and black-and-white PNG.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import shapely

from napari_msamil.annotation_formats import Annotation, parse_json, parse_xml
from napari_msamil.errors import MaskError
from napari_msamil.mask_images import read_mask_image
from napari_msamil.mask_raster import fill_polygons, mask_polygons
from napari_msamil.masks import MaskSource, SlideMask

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "Annotation",
    "mask_polygons",
    "read_annotations",
    "read_mask",
    "write_mask_geojson",
    "write_mask_png",
]

LESION_LABELS = frozenset(
    [
        "lesion",
        "tumor",
        "tumour",
        "cancer",
        "carcinoma",
        "malignant",
        "metastasis",
        "metastases",
        "neoplasm",
        "invasive",
        "positive",
        "cap",
    ]
)
"""Classes that mean the lesion, in lower case; QuPath's derived classes count by their first part."""
OTHER_LABELS = frozenset(
    [
        "stroma",
        "necrosis",
        "normal",
        "benign",
        "negative",
        "ignore",
        "ignore*",
        "region",
        "region*",
        "tissue",
        "artefact",
        "artifact",
        "other",
    ]
) | {"immune cells"}
"""Classes that never mean the lesion unless asked for by name."""
DEFAULT_SHAPE = (1024, 1024)
"""Rows and columns of a mask whose file has no grid of its own (paper section 3.1)."""
_LARGEST_GRID = 1 << 26
_OUTSIDE_SHARE = 0.01
"""Hand-drawn outlines may reach over the edge of the slide by this share of their area."""


@dataclass(frozen=True)
class _Grid:
    """The slide and the mask grid that a file of our own was written from."""

    size_wh0: tuple[int, int]
    shape_hw: tuple[int, int]


def read_annotations(path: Path) -> list[Annotation]:
    """Read the outlines of an annotation file.

    Raises:
        MaskError: The file is missing, damaged, or in no known format.
    """
    return _parsed(path, _content(path))[0]


def read_mask(
    path: Path,
    size_wh0: tuple[int, int],
    shape_hw: tuple[int, int] | None = None,
    label: str | None = None,
) -> SlideMask:
    """Read any supported file as a mask over a slide.

    Args:
        path: Annotations or a mask picture; the format is told by content.
        size_wh0: Width and height of the slide's level 0.
        shape_hw: Rows and columns of the mask; None takes the grid that the file was written from, so that a mask
            comes back exactly, or else 1024 × 1024.
        label: Class, code or colour that is meant. None takes the classes that mean a lesion; if there are none,
            everything but those that certainly do not (`OTHER_LABELS`).

    Raises:
        MaskError: The file cannot be read, lies outside the slide, or has no such label.
    """
    head = _content(path)
    if head is None:
        marked = read_mask_image(path, size_wh0, shape_hw, label)
        return SlideMask(marked, size_wh0, MaskSource.FILE)
    found, grid = _parsed(path, head)
    if grid is not None and grid.size_wh0 != size_wh0:
        raise MaskError(
            f"{path.name} was made for a slide of {grid.size_wh0[0]} × {grid.size_wh0[1]} pixels; this one has "
            f"{size_wh0[0]} × {size_wh0[1]}. Choose the file of this slide."
        )
    if shape_hw is None:
        shape_hw = DEFAULT_SHAPE if grid is None else grid.shape_hw
    added, removed = chosen(found, label, path.name)
    _check_inside(path, added, size_wh0)
    marked = fill_polygons([a.polygon for a in added], size_wh0, shape_hw)
    if removed:
        marked &= ~fill_polygons([a.polygon for a in removed], size_wh0, shape_hw)
    return SlideMask(marked, size_wh0, MaskSource.FILE)


def chosen(
    found: Sequence[Annotation], label: str | None, name: str
) -> tuple[list[Annotation], list[Annotation]]:
    """The areas that make up the lesion, and those that are taken out of it.

    Args:
        found: All areas of a file.
        label: Class that is meant, or None.
        name: File name for the message.

    Raises:
        MaskError: No area has that label.
    """
    removed = [a for a in found if a.subtract]
    areas = [a for a in found if not a.subtract]
    if label is not None:
        added = [a for a in areas if label.lower() in (a.label.lower(), _base(a.label))]
        if not added:
            known = ", ".join(sorted({a.label or "(none)" for a in areas})) or "none"
            raise MaskError(
                f"{name} has no area labelled {label!r}. Its labels are: {known}."
            )
        return added, removed
    added = [a for a in areas if _base(a.label) in LESION_LABELS]
    return added or [a for a in areas if _base(a.label) not in OTHER_LABELS], removed


def write_mask_geojson(
    mask: SlideMask, path: Path, classification: str = "lesion"
) -> None:
    """Write a mask as QuPath GeoJSON: one annotation per connected part, with its holes.

    Args:
        mask: The mask.
        path: The file; it is written beside and then renamed.
        classification: QuPath class of the annotations.
    """
    features = [_feature(polygon, classification) for polygon in mask_polygons(mask)]
    # QuPath skips members it does not know; with this one a file cannot be put on another slide by mistake.
    (width, height), (rows, columns) = mask.size_wh0, mask.mask.shape
    grid = {"width": width, "height": height, "rows": rows, "columns": columns}
    document = {"type": "FeatureCollection", "msamil_grid": grid, "features": features}
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    part.replace(path)


def write_mask_png(mask: SlideMask, path: Path) -> None:
    """Write a mask as a black-and-white PNG at its own resolution; beside, then renamed."""
    from PIL import Image

    part = path.with_name(path.name + ".part")
    Image.fromarray(mask.mask.astype(np.uint8) * 255).save(part, format="PNG")
    part.replace(path)


def _feature(polygon: shapely.Polygon, classification: str) -> dict[str, Any]:
    rings = [
        shapely.get_coordinates(ring).round(2).tolist()
        for ring in (polygon.exterior, *polygon.interiors)
    ]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": rings},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": classification, "color": [200, 0, 0]},
        },
    }


def _content(path: Path) -> str | None:
    """Text of a JSON or XML file, or None for anything else (a picture).

    Raises:
        MaskError: The file is missing or empty.
    """
    if not path.is_file():
        raise MaskError(f"There is no file {path}. Check the path of the mask.")
    with path.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not head:
        raise MaskError(f"{path.name} is empty. Export the mask again.")
    if head[:1] not in (b"{", b"[", b"<"):
        return None
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return path.read_text(encoding="latin-1")


def _parsed(path: Path, text: str | None) -> tuple[list[Annotation], _Grid | None]:
    """The areas of a text file, and the grid it was written from where it says so."""
    if text is None:
        raise MaskError(
            f"{path.name} is no annotation file. Use GeoJSON, ASAP or ImageScope XML, or BCNB JSON."
        )
    try:
        if text.lstrip().startswith("<"):
            return parse_xml(ET.fromstring(text), path), None
        document = json.loads(text)
    except (ValueError, ET.ParseError) as error:
        raise MaskError(
            f"{path.name} is damaged or incomplete ({error}). Export it again."
        ) from error
    return parse_json(document, path), _grid_of(document)


def _grid_of(document: Any) -> _Grid | None:
    """The grid of a file of our own; anything odd in it is as good as none."""
    grid = document.get("msamil_grid") if isinstance(document, dict) else None
    if not isinstance(grid, dict):
        return None
    numbers: list[Any] = [
        grid.get(key) for key in ("width", "height", "rows", "columns")
    ]
    if not all(isinstance(n, int) and 0 < n < 2**31 for n in numbers):
        return None
    width, height, rows, columns = numbers
    if rows * columns > _LARGEST_GRID:
        return None
    return _Grid((width, height), (rows, columns))


def _base(label: str) -> str:
    """`Tumor: Positive` is a kind of `tumor`."""
    return label.split(":")[0].strip().lower()


def _check_inside(
    path: Path, areas: Sequence[Annotation], size_wh0: tuple[int, int]
) -> None:
    if not areas:
        return
    slide = shapely.box(0, 0, *size_wh0)
    outside = [a for a in areas if not slide.covers(a.polygon)]
    lost = sum(a.polygon.area - a.polygon.intersection(slide).area for a in outside)
    if lost > _OUTSIDE_SHARE * sum(a.polygon.area for a in areas):
        left, top, right, bottom = shapely.total_bounds([a.polygon for a in areas])
        raise MaskError(
            f"{path.name} reaches from x {left:.0f}, y {top:.0f} to x {right:.0f}, y {bottom:.0f}, but the slide has "
            f"{size_wh0[0]} × {size_wh0[1]} pixels. It seems to belong to another slide."
        )
