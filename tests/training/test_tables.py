"""The papers' tables at toy size: from `synth` to finished tables, as a newcomer walks."""

from __future__ import annotations

import csv
import json
import tomllib

import pytest

from napari_msamil.checkpoint import save_checkpoint
from napari_msamil.config import (
    AggregatorSpec,
    EncoderSpec,
    ModelConfig,
    PatchSpec,
    ScaleSpec,
    SegmenterSpec,
    TissueSpec,
)
from napari_msamil.progress import finish
from training import table_methods
from training.cli import main
from training.synth import make_cohort
from training.synth_plan import SynthSpec
from training.table_work import TableResult, _toml, as_markdown
from training.tables import TABLES

CLASSES = ("glandular-smooth", "trabecular-smooth")


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A cohort of small slides and an untrained model with a segmenter."""
    import torch

    from napari_msamil.models import build_model

    folder = tmp_path_factory.mktemp("tables")
    spec = SynthSpec(
        slides=8,
        size_wh=(330, 270),
        classes=CLASSES,
        forty_share=0,
        slides_per_patient=(1, 1),
        shares=(0.4, 0.2, 0.4),
    )
    finish(make_cohort(folder, spec, jobs=1))
    scales = (
        ScaleSpec(name="20x", mpp=0.5, size_px=32),
        ScaleSpec(name="10x", mpp=1.0, size_px=32),
    )
    config = ModelConfig(
        name="toy",
        classes=CLASSES,
        patches=PatchSpec(scales=scales, lesion_threshold=0.2),
        tissue=TissueSpec(mpp=2.0, min_area_um2=50.0, hole_area_um2=50.0),
        encoder=EncoderSpec(
            backbone="lcnet_050", dim=16, layers=1, heads=2, ffn=16, grid=1
        ),
        aggregator=AggregatorSpec(
            in_dim=16, args={"heads": 2, "rank": 4, "mlp_dim": 16}
        ),
        segmenter=SegmenterSpec(
            encoder="tu-lcnet_050",
            decoder_channels=(16, 8, 8, 8, 8),
            channels=("lesion",),
            size_px=64,
        ),
    )
    torch.manual_seed(0)
    save_checkpoint(folder / "toy.safetensors", build_model(config).eval())
    return folder


def tables(walk, *names, more=()):
    words = [
        "tables",
        *names,
        "--cohort",
        str(walk / "cohort.csv"),
        "--model",
        str(walk / "toy.safetensors"),
    ]
    return main(
        [
            *words,
            "-o",
            str(walk / "out"),
            "--folds",
            "2",
            "--device",
            "cpu",
            "--precision",
            "fp32",
            "--epochs",
            "2",
            *more,
        ]
    )


def test_table_1_and_figure_2_run_through_the_engine_once(walk, capsys):
    assert tables(walk, "msamil-1", "msamil-fig2") == 0
    out = walk / "out"
    shown = capsys.readouterr().out
    assert "| 3. Lesion area patches |" in shown
    values = json.loads((out / "msamil-1.json").read_text())
    assert all(v["patches"] > 0 for v in values.values())
    for name in values:
        assert (out / "msamil-1" / name / "fold_1" / "best.pt").exists()
        bags = out / "shared" / f"bags_toy_{name}_model"
        assert len(list(bags.glob("*.pt"))) == 8
    assert values["random"]["patches"] <= values["tissue"]["patches"]
    assert (
        0 < values["lesion"]["seconds"]["low"] <= values["lesion"]["seconds"]["value"]
    )
    saved = json.loads((out / "msamil-fig2.json").read_text())["saved"]
    assert all(s < 1 for s in saved)
    assert (out / "figure-2.png").exists()
    before = (out / "shared" / "engine" / "lesion.csv").stat().st_mtime_ns
    assert tables(walk, "msamil-1") == 0
    assert (out / "shared" / "engine" / "lesion.csv").stat().st_mtime_ns == before
    assert (out / "tables.md").read_text().count("## MsaMIL-Net") == 2


@pytest.mark.slow
def test_table_2_trains_methods_on_the_same_slides(walk, capsys):
    assert tables(walk, "msamil-2", more=("--methods", "abmil")) == 0
    with (walk / "out" / "msamil-2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["method"] for r in rows] == ["ABMIL†", "Ours (IAAM)‡"]
    assert rows[-1]["ACC (paper)"] == "0.932 / 0.945 / 0.949"
    assert "8 slides, 2 folds" in capsys.readouterr().out
    assert tables(walk, "msamil-2", more=("--methods", "abmill")) == 2


def test_recipes_of_methods_are_toml_and_name_the_scales(walk, tmp_path):
    from napari_msamil.checkpoint import read_header
    from training.config import model_config, read_recipe
    from training.table_work import TableOptions, TableWork

    config = read_header(walk / "toy.safetensors").config
    work = TableWork(TableOptions(walk / "cohort.csv", tmp_path), "msamil-2")
    for name in table_methods.PAPER:
        scales = ["20x"] if name in table_methods.SINGLE_SCALE else []
        path = work.write_recipe(
            name, table_methods.method_recipe(work, config, name, scales)
        )
        recipe = read_recipe(path)
        assert model_config(recipe).aggregator.name == name
        assert len(recipe["model"]["patches"]["scales"]) == (1 if scales else 2)
        assert recipe["mil"]["scales"] == scales


def test_stages_of_table_3_are_a_recipe_whose_folds_cannot_mix(tmp_path):
    from training.config import checked, read_recipe
    from training.run import RunSpec
    from training.table_training import stages_toml
    from training.table_work import TableOptions, TableWork

    options = TableOptions(
        tmp_path / "cohort.csv", tmp_path, overrides=("e2e.epochs=2",)
    )
    path = tmp_path / "stages.toml"
    text = stages_toml(
        TableWork(options, "msamil-3"), "e2e", ["--set", "e2e.instances=8"]
    )
    path.write_text(text, encoding="utf-8")
    stages = checked(RunSpec, {"stages": read_recipe(path)["stages"]}, "recipe").stages
    assert [s.verb for s in stages] == ["e2e", "publish", "extract", "mil"]
    assert all(s.makes.startswith("{out}/") for s in stages)
    assert "--set e2e.instances=8 --set e2e.epochs=2" in stages[0].args
    for stage in (stages[0], stages[3]):
        assert "--splits {splits} --fold {fold}" in stage.args


def test_toml_is_written_as_it_is_read():
    content = {
        "a": {
            "b": [1, 2.5, True],
            "c": [{"name": "20x", "mpp": 0.5}],
            "d": {"e": 'x"y'},
        },
        "f": 1e-4,
    }
    assert tomllib.loads("\n".join(_toml(content))) == content


def test_tables_are_listed_and_wrong_names_refused(capsys):
    assert main(["tables", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TABLES)
    assert main(["tables", "msamil-9", "--cohort", "c.csv", "-o", "out"]) == 2
    assert "Unknown: msamil-9" in capsys.readouterr().err


def test_markdown_has_one_line_per_row():
    result = TableResult("T", ("a", "b"), [("1", "2"), ("3", "4")], ["a note"])
    assert as_markdown(result).splitlines() == [
        "## T",
        "",
        "| a | b |",
        "|---|---|",
        "| 1 | 2 |",
        "| 3 | 4 |",
        "",
        "- a note",
        "",
    ]
