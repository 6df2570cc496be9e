"""Masks from the command line feed the same path as masks in memory and on screen."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from napari_msamil import cli
from napari_msamil.annotations import read_mask, write_mask_geojson
from napari_msamil.checkpoint import load_checkpoint, save_checkpoint
from napari_msamil.device import choose_runtime
from napari_msamil.lesion import find_lesion
from napari_msamil.models import build_model
from napari_msamil.patches import make_grid
from napari_msamil.slide import open_slide
from tests.conftest import tiny_model_config

if TYPE_CHECKING:
    from pathlib import Path

    from napari_msamil.masks import SlideMask


@pytest.fixture(scope="module")
def model_file(painted_svs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights whose threshold marks the half of the slide it finds likelier."""
    torch.manual_seed(11)
    config = tiny_model_config(segmenter=True)
    model = build_model(config).eval()
    assert config.segmenter is not None
    assert model.segmenter is not None
    with open_slide(painted_svs) as slide:
        found = find_lesion(
            slide, model.segmenter, config.segmenter, choose_runtime("cpu")
        )
    assert found.probability is not None
    threshold = float(np.quantile(found.probability, 0.4))
    spec = config.segmenter.model_copy(update={"threshold": threshold})
    model.config = config.model_copy(update={"segmenter": spec})
    path = tmp_path_factory.mktemp("model") / "half.safetensors"
    return save_checkpoint(path, model, {"data": "synthetic"})


def lesion_in_memory(slide_file: Path, model_file: Path) -> SlideMask:
    loaded = load_checkpoint(model_file)
    assert loaded.config.segmenter is not None
    assert loaded.model.segmenter is not None
    with open_slide(slide_file) as slide:
        return find_lesion(
            slide,
            loaded.model.segmenter,
            loaded.config.segmenter,
            choose_runtime("cpu"),
        )


def boxes(folder: Path) -> list[tuple[int, int, str]]:
    with next(folder.glob("*/patches.csv")).open() as file:
        return [(int(r["x"]), int(r["y"]), r["scale"]) for r in csv.DictReader(file)]


def test_the_mask_command_writes_the_mask_of_the_model(
    painted_svs: Path, model_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mask.geojson"
    words = [
        "mask",
        str(painted_svs),
        "--model",
        str(model_file),
        "-o",
        str(out),
        "--device",
        "cpu",
    ]
    assert cli.main(words) == 0
    expected = lesion_in_memory(painted_svs, model_file)
    found = read_mask(out, expected.size_wh0)
    assert 0.3 < expected.fraction < 0.8
    assert np.array_equal(found.mask, expected.mask)


def test_classify_with_an_edited_mask_selects_what_that_mask_selects_in_memory(
    painted_svs: Path, model_file: Path, tmp_path: Path
) -> None:
    mask = lesion_in_memory(painted_svs, model_file)
    mask.mask[:, :40] = False
    mask.mask[20:70, 60:110] = True
    edited = tmp_path / "edited.geojson"
    write_mask_geojson(mask, edited)
    out = tmp_path / "out"
    words = ["classify", str(painted_svs), "--model", str(model_file), "-o", str(out)]
    assert cli.main([*words, "--mask", str(edited), "--device", "cpu"]) == 0
    with open_slide(painted_svs) as slide:
        spec = load_checkpoint(model_file).config.patches
        grid = make_grid(slide.info, spec, mask)
    names = [s.name for s in spec.scales]
    expected = [
        (int(x), int(y), names[int(s)])
        for (x, y), s in zip(grid.coords_xy0, grid.scale, strict=True)
    ]
    assert len(expected) > 20
    assert boxes(out) == expected
