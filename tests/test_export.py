"""Result files: values, units and transforms, not only presence."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

from napari_msamil.export import result_document, write_result
from napari_msamil.folders import beside, swap_in, sweep
from napari_msamil.overlay import attention_maps, mean_attention, query_maps
from napari_msamil.pipeline import classify
from napari_msamil.slide import open_slide

if TYPE_CHECKING:
    from pathlib import Path

    from napari_msamil.result import SlideResult


@pytest.fixture(scope="module")
def result(painted_svs: Path, tiny_checkpoint: Path) -> SlideResult:
    return classify(
        painted_svs, tiny_checkpoint, precision="fp32", cache=False, strategy="tissue"
    )


@pytest.fixture(scope="module")
def folder(
    result: SlideResult, painted_svs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target = tmp_path_factory.mktemp("out") / "painted"
    with open_slide(painted_svs) as slide:
        return write_result(result, target, slide)


def test_the_folder_holds_exactly_the_contract(folder: Path) -> None:
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "result.json",
        "patches.csv",
        "mask.geojson",
        "annotations.geojson",
        "overview.png",
        "heatmap.ome.zarr",
    }
    assert not list(folder.parent.glob("*.part"))
    assert not list(folder.parent.glob("*.old"))


def test_result_json_has_the_documented_keys_and_plain_values(
    folder: Path, result: SlideResult
) -> None:
    document = json.loads((folder / "result.json").read_text("utf-8"))
    assert document["format"] == "msamil-result/1"
    assert document["slide"]["width"], document["slide"]["height"] == (1800, 1400)
    assert document["slide"]["mpp"] == pytest.approx(0.5)
    assert document["slide"]["mpp_source"] == "tag"
    assert document["mask"]["source"] == "tissue"
    assert sum(document["probabilities"].values()) == pytest.approx(1)
    assert document["prediction"] == result.prediction
    assert set(document["timings_s"]) == {
        "open",
        "mask",
        "read",
        "encode",
        "aggregate",
        "total",
    }
    assert list(document["patches"]) == ["20x", "10x", "5x"]
    assert any("synthetic" in warning for warning in document["warnings"])


def test_csv_rows_lie_in_the_slide_and_attention_sums_to_one(folder: Path) -> None:
    with (folder / "patches.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["attention"]) for row in rows) == pytest.approx(1, abs=1e-5)
    for q in range(10):
        total = sum(float(row[f"query_{q}"]) for row in rows)
        assert total == pytest.approx(1, abs=1e-5)
    for row in rows:
        assert 0 <= int(row["x"]) <= 1800 - int(row["width"])
        assert 0 <= int(row["y"]) <= 1400 - int(row["height"])
        assert int(row["width"]) == {"20x": 64, "10x": 128, "5x": 256}[row["scale"]]


def test_annotations_are_one_closed_square_per_patch(
    folder: Path, result: SlideResult
) -> None:
    document = json.loads((folder / "annotations.geojson").read_text("utf-8"))
    assert document["type"] == "FeatureCollection"
    assert len(document["features"]) == len(result.grid)
    first = document["features"][0]
    ring = np.array(first["geometry"]["coordinates"][0])
    assert (ring[0] == ring[-1]).all()
    assert (ring[0] == result.grid.coords_xy0[0]).all()
    assert first["properties"]["measurements"]["attention"] == pytest.approx(
        float(result.attention[0]), rel=1e-6
    )


def test_heat_map_transform_puts_every_patch_on_its_place(
    folder: Path, result: SlideResult
) -> None:
    group = zarr.open_group(str(folder / "heatmap.ome.zarr"), mode="r")
    images = group.attrs["ome"]["multiscales"]
    assert [image["name"] for image in images] == [
        "attention 20x",
        "attention 10x",
        "attention 5x",
    ]
    for index, image in enumerate(images):
        transforms = image["datasets"][0]["coordinateTransformations"]
        _, step, _ = transforms[0]["scale"]
        _, shift, _ = transforms[1]["translation"]
        values = np.asarray(group[image["datasets"][0]["path"]])
        assert values.shape[0] == 11
        of_scale = np.flatnonzero(result.grid.scale == index)
        for i in of_scale[:5]:
            x, y = result.grid.coords_xy0[i]
            size = result.grid.size_px0[index]
            centre_um = (np.array([y, x]) + (size - 1) / 2) * 0.5
            row, column = np.round((centre_um - shift) / step).astype(int)
            assert values[0, row, column] == result.attention[i]
        assert np.isfinite(values[0]).sum() == len(of_scale)


def test_a_second_write_replaces_the_folder_whole(
    result: SlideResult, painted_svs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "painted"
    target.mkdir()
    (target / "stale.txt").write_text("old")
    with open_slide(painted_svs) as slide:
        write_result(result, target, slide)
    assert not (target / "stale.txt").exists()
    assert (target / "result.json").exists()


def test_what_a_killed_run_left_is_removed_after_a_day(
    result: SlideResult, painted_svs: Path, tmp_path: Path
) -> None:
    old, young = tmp_path / "a.1.part", tmp_path / "a.2.part"
    other = tmp_path / "b.1.part"
    for left in (old, young, other):
        left.mkdir()
        os.utime(left, (1, 1))
    os.utime(young)
    with open_slide(painted_svs) as slide:
        write_result(result, tmp_path / "a", slide)
    assert {p.name for p in tmp_path.iterdir()} == {"a", young.name, other.name}


def test_what_a_dead_process_left_is_removed_at_once_and_a_live_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    code = (
        "from pathlib import Path; from napari_msamil.folders import beside; "
        f"beside(Path({str(tmp_path / 'a')!r}), 'part').mkdir(); "
        f"beside(Path({str(tmp_path / 'a')!r}), 'part').touch()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    mine, foreign = (
        beside(tmp_path / "a", "part"),
        tmp_path / "a.000000-1-0a0a0a0a.part",
    )
    for left in (mine, foreign):
        left.mkdir()
    assert len(list(tmp_path.iterdir())) == 4  # a folder and a file of a dead process
    sweep(tmp_path / "a")
    assert set(tmp_path.iterdir()) == {mine, foreign}


def test_a_failed_write_leaves_the_old_folder_and_no_rest(
    result: SlideResult,
    painted_svs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "painted"
    target.mkdir()
    (target / "result.json").write_text("{}")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("napari_msamil.export.write_overview", full)
    with open_slide(painted_svs) as slide, pytest.raises(OSError, match="No space"):
        write_result(result, target, slide)
    assert [p.name for p in tmp_path.iterdir()] == ["painted"]
    assert (target / "result.json").read_text() == "{}"


def test_a_folder_that_cannot_be_replaced_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, folder = tmp_path / "a.part", tmp_path / "a"
    for path, text in ((part, "new"), (folder, "old")):
        path.mkdir()
        (path / "result.json").write_text(text)
    real = pathlib.Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self == part:
            raise PermissionError(13, "in use")
        return real(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", rename)
    with pytest.raises(PermissionError, match="in use"):
        swap_in(part, folder)
    assert (folder / "result.json").read_text() == "old"
    monkeypatch.undo()
    swap_in(part, folder)
    assert (folder / "result.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_overlays_cover_the_slide_to_the_half_pixel(result: SlideResult) -> None:
    for overlay in attention_maps(result):
        first_edge = (
            np.array(overlay.translate_yx_um) - np.array(overlay.scale_yx_um) / 2
        )
        assert first_edge == pytest.approx([-0.25, -0.25])
    total = sum(float(np.nansum(o.values)) for o in attention_maps(result))
    assert total == pytest.approx(1, abs=1e-4)


def test_mean_attention_is_the_mean_of_the_scales_over_each_cell(
    result: SlideResult,
) -> None:
    overlay, grid = mean_attention(result), result.grid
    assert overlay.cell_px0 == 64
    assert overlay.values.shape == (-(-1400 // 64), -(-1800 // 64))
    sides = np.array(grid.size_px0)[grid.scale]
    for row, column in ((3, 4), (10, 14), (20, 27), (21, 28)):
        centre = (np.array([column, row]) + 0.5) * 64
        offset = centre - grid.coords_xy0
        over = ((offset >= 0) & (offset < sides[:, None])).all(1)
        expected = result.attention[over].mean() * len(grid) if over.any() else np.nan
        np.testing.assert_allclose(overlay.values[row, column], expected, rtol=1e-5)


def test_heat_map_channels_are_what_ome_asks_for(
    folder: Path, result: SlideResult
) -> None:
    group = zarr.open_group(str(folder / "heatmap.ome.zarr"), mode="r")
    channels = group.attrs["ome"]["omero"]["channels"]
    assert [c["label"] for c in channels] == [
        "attention",
        *(f"query {q}" for q in range(10)),
    ]
    assert channels[0]["window"]["max"] == float(result.attention.max())
    assert {len(c["color"]) for c in channels} == {6}


def test_query_maps_show_each_query(result: SlideResult) -> None:
    for query in (0, 9):
        total = sum(float(np.nansum(o.values)) for o in query_maps(result, query))
        assert total == pytest.approx(1, abs=1e-4)


def test_document_is_json_without_nan(result: SlideResult) -> None:
    json.dumps(result_document(result), allow_nan=False)
