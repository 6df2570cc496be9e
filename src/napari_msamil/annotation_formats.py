"""Outlines as other programs write them: QuPath, ASAP, Aperio ImageScope, and the JSON of BCNB and CAMELYON16.

Every parser takes the parsed document and gives `Annotation`s in level-0 pixels. Which format a file has is told by
its content, never by its name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from napari_msamil.errors import MaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from xml.etree import ElementTree as ET

_CAMELYON_GROUPS = {"_0": "Tumor", "_1": "Tumor", "_2": "Exclusion", "none": ""}
_SUBTRACTED = {"exclusion", "exclude", "hole", "holes"}
_ELLIPSE_POINTS = 128
_BOX, _ELLIPSE, _LINES = "1", "2", {"3", "4"}
"""Region types of ImageScope: 0 freehand, 1 rectangle, 2 ellipse, 3 arrow, 4 ruler."""


@dataclass(frozen=True, eq=False)
class Annotation:
    """One area that someone drew.

    Attributes:
        polygon: Polygon or MultiPolygon in level-0 pixels, valid, with its holes.
        label: Class of the area as its program calls it, or empty.
        name: Name of this one area, or empty.
        subtract: The area is taken out of the others (a negative region, an exclusion).
    """

    polygon: shapely.Polygon | shapely.MultiPolygon
    label: str
    name: str = ""
    subtract: bool = False


def parse_json(document: Any, path: Path) -> list[Annotation]:
    """GeoJSON of QuPath or anyone, or `{"positive": …, "negative": …}` of BCNB and CAMELYON16.

    Raises:
        MaskError: It is neither.
    """
    outlines = isinstance(document, dict) and {"positive", "negative"} & set(document)
    try:
        return list(_positive_negative(document) if outlines else _geojson(document))
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        shapely.errors.GEOSException,
    ) as error:
        raise MaskError(
            f"{path.name} is JSON, but neither GeoJSON nor a list of positive and negative outlines "
            f"({type(error).__name__}: {error}). Export it from QuPath as GeoJSON."
        ) from error


def parse_xml(root: ET.Element, path: Path) -> list[Annotation]:
    """XML of ASAP or of Aperio ImageScope.

    Raises:
        MaskError: It is neither, or a coordinate is no number.
    """
    try:
        if root.tag == "ASAP_Annotations":
            return list(_asap(root))
        if root.tag == "Annotations":
            return list(_imagescope(root))
    except (KeyError, ValueError) as error:
        raise MaskError(
            f"{path.name} is damaged: a coordinate is missing or no number ({error}). Export it again."
        ) from error
    raise MaskError(
        f"{path.name} is XML with the root <{root.tag}>; known are ASAP (<ASAP_Annotations>) and "
        "Aperio ImageScope (<Annotations>). Export it in one of these, or as QuPath GeoJSON."
    )


def _geojson(document: Any) -> Iterator[Annotation]:
    """A FeatureCollection, one Feature, a bare array of them, or a bare geometry."""
    if isinstance(document, list):
        for feature in document:
            yield from _geojson(feature)
    elif document["type"] == "FeatureCollection":
        yield from _geojson(document["features"])
    elif document["type"] == "Feature":
        properties = document.get("properties") or {}
        if document.get("geometry") is not None:
            yield from _areas(
                shapely.from_geojson(json.dumps(document["geometry"])),
                _class_name(properties),
                str(properties.get("name") or ""),
            )
    else:
        yield from _areas(shapely.from_geojson(json.dumps(document)), "", "")


def _class_name(properties: dict[str, Any]) -> str:
    """QuPath's class: `classification.name`, in version 0.5 also `classification.names` for derived classes."""
    found = properties.get("classification") or {}
    if isinstance(found, str):
        return found
    if isinstance(found, list):
        return ": ".join(str(name) for name in found)
    return str(found.get("name") or ": ".join(found.get("names", [])))


def _areas(
    shape: Any, label: str, name: str, subtract: bool = False
) -> Iterator[Annotation]:
    """The polygonal part of a shape, repaired where it crosses itself; points and lines are no areas."""
    parts = [shapely.make_valid(part) for part in shapely.get_parts(shape)]
    flat = [p for part in parts for p in shapely.get_parts(part)]
    polygons = [p for p in flat if shapely.get_dimensions(p) == 2 and p.area > 0]
    if polygons:
        taken = subtract or label.strip().lower() in _SUBTRACTED
        yield Annotation(shapely.union_all(polygons), label, name, taken)


def _ring(points: Sequence[Sequence[float]], **words: Any) -> Iterator[Annotation]:
    xy = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if len(xy) >= 3:
        yield from _areas(shapely.Polygon(xy), **words)


def _positive_negative(document: dict[str, Any]) -> Iterator[Annotation]:
    for kind in ("positive", "negative"):
        for region in document.get(kind) or []:
            yield from _ring(
                region["vertices"],
                label=kind,
                name=str(region.get("name", "")),
                subtract=kind == "negative",
            )


def _asap(root: ET.Element) -> Iterator[Annotation]:
    for item in root.iter("Annotation"):
        if item.get("Type", "Polygon") in ("Dot", "PointSet", "Measurement"):
            continue
        points = sorted(
            item.iter("Coordinate"), key=lambda c: float(c.get("Order", "0"))
        )
        group = item.get("PartOfGroup", "")
        yield from _ring(
            [(_number(c.attrib["X"]), _number(c.attrib["Y"])) for c in points],
            label=_CAMELYON_GROUPS.get(group.lower(), group),
            name=item.get("Name", ""),
        )


def _imagescope(root: ET.Element) -> Iterator[Annotation]:
    for layer in root.iter("Annotation"):
        label = _layer_label(layer)
        for region in layer.iter("Region"):
            kind = region.get("Type", "0")
            points = [
                (_number(v.attrib["X"]), _number(v.attrib["Y"]))
                for v in region.iter("Vertex")
            ]
            if kind in _LINES or len(points) < 2:
                continue
            yield from _ring(
                _corners(kind, points),
                label=region.get("Text") or label,
                name=region.get("Id", ""),
                subtract=region.get("NegativeROA", "0") == "1",
            )


def _layer_label(layer: ET.Element) -> str:
    """Name of an ImageScope layer; where it has none, its first attribute that says something."""
    if layer.get("Name"):
        return layer.get("Name", "")
    for attribute in layer.iterfind("Attributes/Attribute"):
        name, value = attribute.get("Name", ""), attribute.get("Value", "")
        if value or name not in ("", "Description"):
            return value or name
    return ""


def _corners(kind: str, points: list[tuple[float, float]]) -> Any:
    """Outline of a rectangle or an ellipse given by corners of its box; other outlines as they are."""
    if kind not in (_BOX, _ELLIPSE) or len(points) > 4:
        return points
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    if kind == _BOX:
        return [low, (high[0], low[1]), high, (low[0], high[1])]
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    return (low + high) / 2 + circle * (high - low) / 2


def _number(text: str) -> float:
    """A coordinate; European installations of ASAP and ImageScope write a decimal comma."""
    return float(text.replace(",", "."))
