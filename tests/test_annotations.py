"""Annotation exchange: files as each tool writes them, round trips, and refusals with numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from napari_msamil.annotations import (
    mask_polygons,
    read_annotations,
    read_mask,
    write_mask_geojson,
    write_mask_png,
)
from napari_msamil.errors import MaskError
from napari_msamil.mask_raster import fill_polygons
from napari_msamil.masks import MaskSource, SlideMask

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = (4000, 3000)
SHAPE = (300, 400)
"""One mask pixel is 10 × 10 level-0 pixels."""


def save(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def area(path: Path, label: str | None = None) -> NDArray[np.bool_]:
    return read_mask(path, SIZE, SHAPE, label).mask


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(
    rings: list[Any], name: str | None = "Tumor", **more: Any
) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": "annotation"}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    geometry = {"type": "Polygon", "coordinates": rings}
    return {
        "type": "Feature",
        "id": "5c2ba0ab-3fcb-4f0a-a8cb-ff8b3c3ae0f3",
        "geometry": geometry,
        "properties": properties | more,
    }


# QuPath


def test_qupath_collection_with_a_hole(tmp_path: Path) -> None:
    rings = [square(1000, 500, 1000), square(1200, 700, 400)]
    path = save(
        tmp_path,
        "a.geojson",
        {"type": "FeatureCollection", "features": [feature(rings, name="Tumor")]},
    )
    found = area(path)
    assert found.sum() == 100 * 100 - 40 * 40
    assert found[50:150, 100:200][0].all()
    assert not found[70:110, 120:160].any()
    assert read_mask(path, SIZE, SHAPE).source is MaskSource.FILE


def test_qupath_bare_array_multipolygon_and_old_colour(tmp_path: Path) -> None:
    multi = {
        "type": "Feature",
        "id": "PathAnnotationObject",
        "geometry": {
            "type": "MultiPolygon",
            "coordinates": [
                [square(0, 0, 100)],
                [square(500, 500, 200), square(550, 550, 100)],
            ],
        },
        "properties": {
            "classification": {"name": "Tumor", "colorRGB": -3670016},
            "isLocked": False,
            "measurements": [],
        },
    }
    path = save(tmp_path, "b.json", [multi])
    assert area(path).sum() == 100 + 400 - 100
    (only,) = read_annotations(path)
    assert only.label == "Tumor"
    assert only.polygon.area == 100**2 + 200**2 - 100**2


def test_qupath_classes_choose_the_lesion(tmp_path: Path) -> None:
    features = [
        feature([square(0, 0, 500)], name="Tumor: Positive"),
        feature([square(1000, 0, 1000)], name="Stroma"),
        feature([square(2000, 2000, 300)], name=None, name_=""),
        feature([square(3000, 2000, 300)], name="Ignore*"),
    ]
    path = save(
        tmp_path, "c.geojson", {"type": "FeatureCollection", "features": features}
    )
    assert area(path).sum() == 50 * 50
    assert area(path, "stroma").sum() == 100 * 100
    assert area(path, "tumor").sum() == 50 * 50
    with pytest.raises(MaskError, match=r"no area labelled 'gland'.*Stroma"):
        area(path, "gland")
    unknown = [feature([square(0, 0, 500)], name="Region A"), features[1]]
    path = save(
        tmp_path, "d.geojson", {"type": "FeatureCollection", "features": unknown}
    )
    assert area(path).sum() == 50 * 50


def test_points_and_lines_are_no_areas_and_bow_ties_are_repaired(
    tmp_path: Path,
) -> None:
    bow_tie = [[0, 0], [400, 400], [400, 0], [0, 400], [0, 0]]
    point = {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [1, 1]},
        "properties": {},
    }
    empty = {"type": "Feature", "geometry": None, "properties": {}}
    path = save(
        tmp_path,
        "e.geojson",
        {"type": "FeatureCollection", "features": [feature([bow_tie]), point, empty]},
    )
    (only,) = read_annotations(path)
    assert only.polygon.is_valid
    assert only.polygon.area == pytest.approx(80_000)
    assert 760 <= area(path).sum() <= 840


def test_an_empty_collection_is_an_empty_mask(tmp_path: Path) -> None:
    path = save(tmp_path, "f.geojson", {"type": "FeatureCollection", "features": []})
    assert not area(path).any()


# ASAP, as CAMELYON16 and CAMELYON17 write it

ASAP = """<?xml version="1.0"?>
<ASAP_Annotations>
	<Annotations>
		<Annotation Name="Annotation 0" Type="Spline" PartOfGroup="{tumor}" Color="#F4FA58">
			<Coordinates>
				<Coordinate Order="2" X="1500.0" Y="1000.0" />
				<Coordinate Order="0" X="500" Y="0" />
				<Coordinate Order="1" X="1500" Y="0" />
				<Coordinate Order="3" X="500,0" Y="1000,0" />
			</Coordinates>
		</Annotation>
		<Annotation Name="Annotation 1" Type="Polygon" PartOfGroup="{hole}" Color="#64FE2E">
			<Coordinates>
				<Coordinate Order="0" X="700" Y="200" />
				<Coordinate Order="1" X="900" Y="200" />
				<Coordinate Order="2" X="900" Y="400" />
				<Coordinate Order="3" X="700" Y="400" />
			</Coordinates>
		</Annotation>
		<Annotation Name="Annotation 2" Type="Dot" PartOfGroup="{tumor}" Color="#64FE2E">
			<Coordinates><Coordinate Order="0" X="3000" Y="200" /></Coordinates>
		</Annotation>
	</Annotations>
	<AnnotationGroups>
		<Group Name="{tumor}" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>
		<Group Name="{hole}" PartOfGroup="None" Color="#ff0000"><Attributes /></Group>
	</AnnotationGroups>
</ASAP_Annotations>
"""


@pytest.mark.parametrize(
    ("tumor", "hole"), [("_0", "_2"), ("_1", "_2"), ("Tumor", "Exclusion")]
)
def test_asap_groups_of_camelyon16(tmp_path: Path, tumor: str, hole: str) -> None:
    path = save(tmp_path, "tumor_001.xml", ASAP.format(tumor=tumor, hole=hole))
    assert area(path).sum() == 100 * 100 - 20 * 20
    assert [a.label for a in read_annotations(path)] == ["Tumor", "Exclusion"]


def test_asap_groups_of_camelyon17(tmp_path: Path) -> None:
    path = save(tmp_path, "p.xml", ASAP.format(tumor="metastases", hole="normal"))
    assert area(path).sum() == 100 * 100
    assert area(path, "normal").sum() == 20 * 20


# Aperio ImageScope

IMAGESCOPE = """<Annotations MicronsPerPixel="0.252000">
	<Annotation Id="1" Name="" ReadOnly="0" Type="4" LineColor="65280" Visible="1">
		<Attributes><Attribute Name="CaP" Id="0" Value=""/></Attributes>
		<Regions><RegionAttributeHeaders><AttributeHeader Id="9999" Name="Region"/></RegionAttributeHeaders>
			<Region Id="1" Type="0" Text="" NegativeROA="0" DisplayId="1"><Attributes/><Vertices>
				<Vertex X="100.0" Y="100.0"/><Vertex X="1100.0" Y="100.0"/>
				<Vertex X="1100.0" Y="1100.0"/><Vertex X="100.0" Y="1100.0"/></Vertices></Region>
			<Region Id="2" Type="0" Text="" NegativeROA="1" DisplayId="2"><Vertices>
				<Vertex X="200" Y="200" Z="0"/><Vertex X="600" Y="200" Z="0"/>
				<Vertex X="600" Y="600" Z="0"/><Vertex X="200" Y="600" Z="0"/></Vertices></Region>
			<Region Id="3" Type="1" Text="" NegativeROA="0"><Vertices>
				<Vertex X="2000" Y="2000"/><Vertex X="2500" Y="2200"/></Vertices></Region>
			<Region Id="4" Type="2" Text="stroma" NegativeROA="0"><Vertices>
				<Vertex X="3000" Y="1000"/><Vertex X="3600" Y="1400"/></Vertices></Region>
			<Region Id="5" Type="4" Text="" NegativeROA="0"><Vertices>
				<Vertex X="0" Y="0"/><Vertex X="3600" Y="1400"/><Vertex X="0" Y="1400"/></Vertices></Region>
		</Regions><Plots/></Annotation>
</Annotations>
"""


def test_imagescope_layers_holes_boxes_and_ellipses(tmp_path: Path) -> None:
    path = save(tmp_path, "scan.xml", IMAGESCOPE)
    found = read_annotations(path)
    assert [(a.label, a.subtract) for a in found] == [
        ("CaP", False),
        ("CaP", True),
        ("CaP", False),
        ("stroma", False),
    ]
    assert area(path).sum() == 100 * 100 - 40 * 40 + 50 * 20
    assert found[3].polygon.area == pytest.approx(np.pi * 300 * 200, rel=1e-2)


def test_imagescope_as_histoqc_has_it(shared_data: Path) -> None:
    path = shared_data / "annotations" / "histoqc_TCGA-EJ-5518-01Z-00-DX1.xml"
    found = read_annotations(path)
    assert len(found) == 4
    assert [a.label for a in found] == ["CaP", "CaP", "", ""]
    # ImageScope wrote the area of the first region itself: 29046449.6 level-0 pixels.
    assert found[0].polygon.area == pytest.approx(29_046_449.6, rel=1e-3)
    with pytest.raises(MaskError, match=r"but the slide has 4000 × 3000"):
        area(path)


# BCNB and CAMELYON16 as JSON


def test_bcnb_json(tmp_path: Path) -> None:
    document = {
        "positive": [
            {"name": "Annotation 0", "vertices": square(0, 0, 1000)[:-1]},
            {"vertices": square(2000, 2000, 100)[:-1]},
        ],
        "negative": [{"name": "hole", "vertices": square(100, 100, 200)[:-1]}],
    }
    path = save(tmp_path, "1.json", document)
    assert area(path).sum() == 100 * 100 + 10 * 10 - 20 * 20


def test_camelyon16_json_of_ncrf(shared_data: Path) -> None:
    path = shared_data / "annotations" / "ncrf_camelyon16_Tumor_073.json"
    (only,) = read_annotations(path)
    assert only.label == "positive"
    assert only.name == "Tumor1"
    assert only.polygon.bounds == (43417, 58924, 48061, 64832)
    size = (97_792, 221_184)
    found = read_mask(path, size, (2048, 1024))
    cell = (size[0] / 1024) * (size[1] / 2048)
    assert found.mask.sum() * cell == pytest.approx(only.polygon.area, rel=0.02)
    with pytest.raises(
        MaskError, match=r"x 48061, y 64832, but the slide has 4000 × 3000"
    ):
        area(path)


def test_qupath_file_of_dlup(shared_data: Path) -> None:
    found = read_annotations(shared_data / "annotations" / "dlup_qupath05.geojson")
    assert [(a.label, a.name) for a in found] == [("", "UT"), ("", "I"), ("", "I")]


# Pictures


def picture(folder: Path, array: NDArray[Any], name: str = "m.png") -> Path:
    path = folder / name
    Image.fromarray(array).save(path)
    return path


def test_black_and_white_picture_at_any_reduction(tmp_path: Path) -> None:
    for shrink in (1, 4, 25):
        array = np.zeros((SIZE[1] // shrink, SIZE[0] // shrink), dtype=np.uint8)
        array[: array.shape[0] // 2] = 255
        found = area(picture(tmp_path, array))
        assert found[:150].all()
        assert not found[150:].any()


def test_smooth_edges_are_cut_in_the_middle(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 255, 400).astype(np.uint8), (300, 1))
    found = area(picture(tmp_path, ramp))
    assert found.sum(axis=1).tolist() == [int((ramp[0] >= 128).sum())] * 300


def test_black_and_white_jpeg_of_digestpath(tmp_path: Path) -> None:
    array = np.zeros((600, 800), dtype=np.uint8)
    array[100:500, 200:600] = 253
    path = tmp_path / "2018_64982_1-1_mask.jpg"
    Image.fromarray(array).save(path, quality=60)
    expected = np.zeros(SHAPE, dtype=bool)
    expected[50:250, 100:300] = True
    assert iou(area(path), expected) > 0.99


def test_colours_of_ubc_ocean(tmp_path: Path) -> None:
    array = np.zeros((600, 800, 3), dtype=np.uint8)
    array[:200, :, 0] = 255
    array[200:300, :, 1] = 255
    array[300:350, :, 2] = 255
    path = picture(tmp_path, array)
    assert area(path).sum() == 100 * 400
    assert area(path, "stroma").sum() == 50 * 400
    assert area(path, "blue").sum() == 25 * 400
    with pytest.raises(MaskError, match=r"no colour for 'violet'"):
        area(path, "violet")


def test_grey_picture_saved_as_rgb_is_black_and_white(tmp_path: Path) -> None:
    array = np.zeros((300, 400, 3), dtype=np.uint8)
    array[:, :100] = 255
    path = picture(tmp_path, array)
    assert area(path).sum() == area(path, "lesion").sum() == 300 * 100
    with pytest.raises(MaskError, match="it has no 'stroma'"):
        area(path, "stroma")
    with pytest.raises(MaskError, match="it has no 'stroma'"):
        area(picture(tmp_path, array[..., 0]), "stroma")


def test_label_codes_need_a_label(tmp_path: Path, shared_data: Path) -> None:
    codes = np.repeat(np.arange(4, dtype=np.uint8), 100)[None].repeat(300, axis=0)
    path = picture(tmp_path, codes)
    with pytest.raises(MaskError, match=r"several codes \(1, 2, 3\)"):
        area(path)
    assert area(path, "2").sum() == 300 * 100
    with pytest.raises(MaskError, match="no pixel of code 7"):
        area(path, "7")
    real = next((shared_data / "masks").glob("bcss_*.png"))
    tumour = read_mask(real, (4542, 4594), (1024, 1024), "1")
    exact = np.asarray(Image.open(real)) == 1
    assert tumour.fraction == pytest.approx(exact.mean(), abs=1e-3)


def test_pyramidal_mask_of_hs2p(shared_data: Path) -> None:
    path = shared_data / "masks" / "hs2p_test-mask.tif"
    found = read_mask(path, (864 * 16, 800 * 16), (800, 864))
    assert found.fraction == pytest.approx(0.459, abs=0.001)


def test_a_picture_of_another_shape_is_refused_with_numbers(tmp_path: Path) -> None:
    path = picture(tmp_path, np.zeros((300, 300), dtype=np.uint8))
    with pytest.raises(MaskError, match=r"300 × 300 pixels.*4000 × 3000"):
        area(path)
    odd = picture(tmp_path, np.ones((45, 60), dtype=np.uint8))
    assert read_mask(odd, (4019, 3007), SHAPE).mask.all()


# Damage


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.geojson", '{"type": "FeatureCollection", "features": [', "damaged"),
        ("b.json", '{"hello": 1}', "neither GeoJSON nor"),
        ("c.json", "[1, 2]", "neither GeoJSON nor"),
        ("d.xml", "<ASAP_Annotations><Annotations>", "damaged"),
        ("e.xml", "<html></html>", "root <html>"),
        ("f.xml", ASAP.replace("1500.0", "left"), "no number"),
        ("g.json", '{"positive": [{"name": "a"}]}', "neither GeoJSON nor"),
        ("h.png", "", "is empty"),
        ("i.png", "this is text", "no mask that can be read"),
    ],
)
def test_damaged_files_get_one_sentence(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    path = save(tmp_path, name, content)
    with pytest.raises(MaskError, match=words) as caught:
        area(path)
    assert name in str(caught.value)


def test_damaged_and_missing_pictures(tmp_path: Path) -> None:
    whole = picture(tmp_path, np.full((300, 400), 255, np.uint8))
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:60])
    with pytest.raises(MaskError, match=r"cut.png"):
        area(cut)
    with pytest.raises(MaskError, match="There is no file"):
        area(tmp_path / "none.png")


# Round trips


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    union = (a | b).sum()
    return 1.0 if not union else float((a & b).sum() / union)


@settings(deadline=None, max_examples=40)
@given(
    array=arrays(np.bool_, st.tuples(st.integers(1, 23), st.integers(1, 19))),
    size=st.tuples(st.integers(30, 90_000), st.integers(30, 90_000)),
)
def test_mask_to_geojson_and_back_is_the_same_mask(
    tmp_path_factory: pytest.TempPathFactory,
    array: NDArray[np.bool_],
    size: tuple[int, int],
) -> None:
    path = tmp_path_factory.mktemp("trip") / "mask.geojson"
    write_mask_geojson(SlideMask(array, size, MaskSource.USER), path)
    back = read_mask(path, size)
    assert np.array_equal(back.mask, array)
    assert back.size_wh0 == size


def test_a_large_mask_survives_two_round_trips(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    rough = ndimage.gaussian_filter(rng.random((1024, 1024)), 6)
    mask = SlideMask(rough > np.median(rough), (70_001, 40_013), MaskSource.MODEL)
    path, again = tmp_path / "one.geojson", tmp_path / "two.geojson"
    write_mask_geojson(mask, path)
    back = read_mask(path, mask.size_wh0)
    assert iou(mask.mask, back.mask) >= 0.995
    write_mask_geojson(back, again)
    assert again.read_text() == path.read_text()


def test_a_mask_comes_back_on_its_own_grid(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """So `--mask` with an exported mask selects the same patches as the mask on screen."""
    mask = SlideMask(rng.random((36, 48)) < 0.5, SIZE, MaskSource.USER)
    write_mask_geojson(mask, tmp_path / "m.geojson")
    write_mask_png(mask, tmp_path / "m.png")
    for name in ("m.geojson", "m.png"):
        assert np.array_equal(read_mask(tmp_path / name, SIZE).mask, mask.mask)
    odd = tmp_path / "odd.geojson"
    text = (tmp_path / "m.geojson").read_text()
    odd.write_text(text.replace('"rows":36', '"rows":null'))
    assert read_mask(odd, SIZE).mask.shape == (1024, 1024)


def test_png_round_trip(tmp_path: Path, rng: np.random.Generator) -> None:
    mask = SlideMask(rng.random(SHAPE) < 0.5, SIZE, MaskSource.USER)
    write_mask_png(mask, tmp_path / "m.png")
    assert np.array_equal(area(tmp_path / "m.png"), mask.mask)


@pytest.mark.parametrize("kind", ["asap", "imagescope", "bcnb", "picture"])
def test_every_format_survives_the_way_through_geojson(
    tmp_path: Path, kind: str
) -> None:
    ring = square(300, 200, 900)[:-1]
    if kind == "asap":
        source = save(tmp_path, "a.xml", ASAP.format(tumor="_0", hole="_2"))
    elif kind == "imagescope":
        source = save(tmp_path, "i.xml", IMAGESCOPE)
    elif kind == "bcnb":
        source = save(tmp_path, "b.json", {"positive": [{"vertices": ring}]})
    else:
        source = picture(tmp_path, np.tri(300, 400, dtype=np.uint8) * 255)
    mask = read_mask(source, SIZE)
    write_mask_geojson(mask, tmp_path / "out.geojson")
    back = read_mask(tmp_path / "out.geojson", SIZE)
    assert mask.mask.any()
    assert iou(mask.mask, back.mask) == 1


def test_a_written_mask_knows_its_slide(tmp_path: Path) -> None:
    path = tmp_path / "m.geojson"
    write_mask_geojson(
        SlideMask(np.ones((5, 5), bool), (900, 700), MaskSource.USER), path
    )
    with pytest.raises(
        MaskError, match=r"made for a slide of 900 × 700 .* 4000 × 3000"
    ):
        area(path)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_filling_equals_point_in_polygon(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hull = shapely.convex_hull(shapely.multipoints(rng.uniform(-20, 130, (9, 2))))
    hole = shapely.convex_hull(shapely.multipoints(rng.uniform(20, 80, (5, 2))))
    polygon = shapely.difference(hull, hole)
    found = fill_polygons([polygon], (110, 97), (31, 41))
    x, y = (np.arange(41) + 0.5) * 110 / 41, (np.arange(31) + 0.5) * 97 / 31
    expected = shapely.contains_xy(polygon, *np.meshgrid(x, y))
    assert np.array_equal(found, expected)


def test_outlines_have_holes_and_parts() -> None:
    array = np.zeros((7, 9), dtype=bool)
    array[1:6, 1:6] = True
    array[3, 3] = False
    array[0, 8] = True
    polygons = mask_polygons(SlideMask(array, (90, 70), MaskSource.USER))
    assert sorted(p.area for p in polygons) == [100, 2400]
    assert sum(len(p.interiors) for p in polygons) == 1
