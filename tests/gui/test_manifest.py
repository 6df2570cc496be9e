"""The manifest: valid, every command resolves, readers claim slides and only slides."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from npe2 import PluginManifest

from napari_msamil.errors import MsamilError
from napari_msamil.gui.reader import get_folder_reader, get_reader
from napari_msamil.gui.writer import write_mask, write_result_layers

pytestmark = pytest.mark.gui


@pytest.fixture(scope="module")
def manifest():
    return PluginManifest.from_distribution("napari-msamil")


def test_npe2_finds_the_manifest_valid():
    done = subprocess.run(
        [sys.executable, "-m", "npe2", "validate", "napari_msamil"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout


def test_every_command_resolves(manifest):
    for command in manifest.contributions.commands:
        module, name = str(command.python_name).split(":")
        assert callable(getattr(import_module(module), name)), command.id


def test_docks_are_in_the_menus_of_napari(manifest):
    menus = manifest.contributions.menus
    classify = {item.command for item in menus["napari/layers/classify"]}
    assert "napari-msamil.workbench" in classify
    assert "napari/layers/segment" in menus


def test_settings_have_the_keys_the_workbench_reads(manifest):
    from napari_msamil.gui.settings import Settings

    keys = {
        key
        for group in manifest.contributions.configurations.values()
        for key in group.properties
    }
    assert keys == set(Settings.__dataclass_fields__) | {"offer_smooth"}


def test_opening_the_dock_imports_no_torch():
    code = (
        "import sys, napari_msamil.gui.workbench, napari_msamil.gui.worklist, napari_msamil.gui.compare\n"
        "print([m for m in ('torch', 'timm', 'segmentation_models_pytorch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_slide_becomes_one_lazy_multiscale_layer(painted_svs):
    read = get_reader(str(painted_svs))
    (levels, meta, kind), *rest = read(str(painted_svs))
    assert not rest
    assert kind == "image"
    assert meta["multiscale"]
    assert meta["rgb"]
    assert next(level.shape for level in levels) == (1400, 1800, 3)
    assert not any(isinstance(level, np.ndarray) for level in levels)
    assert levels[0][3:5, 1799].shape == (2, 3)
    meta["metadata"]["msamil"]["slide"].close()


def test_tiffs_that_are_no_slides_are_left_to_others(tmp_path):
    import tifffile

    plain = tmp_path / "cells.tif"
    tifffile.imwrite(plain, np.zeros((33, 21), np.uint16))
    assert get_reader(str(plain)) is None
    assert get_reader(str(tmp_path)) is None


def test_folders_without_dicom_are_left_to_others(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert get_folder_reader(str(tmp_path)) is None


def test_a_dicom_folder_is_a_slide(shared_data):
    folder = shared_data / "slides" / "dicom_CMU-1-Small-Region"
    read = get_folder_reader(str(folder))
    (levels, meta, _), *_ = read(str(folder))
    assert levels[0].shape == (2967, 2220, 3)
    meta["metadata"]["msamil"]["slide"].close()


def test_real_slides_are_claimed(shared_data):
    for name in ("CMU-1-Small-Region.svs", "stritt_TRITC.ndpi", "boxes.tiff"):
        assert get_reader(str(shared_data / "slides" / name)) is not None


def test_a_labels_layer_without_a_slide_can_only_be_a_picture(tmp_path):
    labels = np.zeros((11, 17), np.uint8)
    labels[3:5, 4:9] = 1
    with pytest.raises(MsamilError, match=r"\.png"):
        write_mask(str(tmp_path / "m.geojson"), labels, {})
    assert write_mask(str(tmp_path / "m.png"), labels, {}) == [str(tmp_path / "m.png")]


def test_overlays_are_saved_as_the_result_they_belong_to(answered, tmp_path):
    meta = {"metadata": {"msamil": {"role": "attention", "result": answered}}}
    target = tmp_path / "patches.csv"
    write_result_layers(str(target), [(np.zeros((3, 3)), meta, "image")])
    assert len(target.read_text().splitlines()) == len(answered.grid) + 1
    with pytest.raises(MsamilError, match="Classify a slide first"):
        write_result_layers(str(target), [(np.zeros((3, 3)), {}, "image")])
    with pytest.raises(MsamilError, match="suffix"):
        write_result_layers(
            str(tmp_path / "x.docx"), [(np.zeros((3, 3)), meta, "image")]
        )


def test_sample_data_is_the_demo_slide():
    from napari_msamil.gui.sample_data import demo_slide_layers

    (levels, meta, _), *_ = demo_slide_layers()
    assert meta["name"] == "demo"
    assert levels[0].shape[2] == 3
    meta["metadata"]["msamil"]["slide"].close()


def test_settings_come_from_preferences(plugin_settings, npe2pm, monkeypatch, tmp_path):
    import os

    from napari.settings import get_plugin_settings

    from napari_msamil.gui.settings import read_settings

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    npe2pm.register(PluginManifest.from_distribution("napari-msamil"))
    stored = get_plugin_settings("napari-msamil")
    stored.compute.precision = "fp32"
    stored.files.cache_gb = 0.5
    stored.files.cache_folder = str(tmp_path)
    stored.files.offline = True
    found = read_settings()
    assert found.precision == "fp32"
    assert found.store().max_bytes == 2**29
    assert found.store().folder == tmp_path / "features"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")
