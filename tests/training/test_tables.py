"""The papers' tables: recipes, stages and text. That they run is in test_walk.py."""

from __future__ import annotations

import tomllib

from training import table_methods
from training.cli import main
from training.table_work import TableResult, _toml, as_markdown
from training.tables import TABLES

from .walk_parts import toy_config


def test_recipes_of_methods_are_toml_and_name_the_scales(tmp_path):
    from training.config import model_config, read_recipe
    from training.table_work import TableOptions, TableWork

    config = toy_config()
    work = TableWork(TableOptions(tmp_path / "cohort.csv", tmp_path), "msamil-2")
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
    from training.table_work import TableOptions, TableWork
    from training.training_runs import stages_toml

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
    assert "--start {out}/encoder/best.pt" in stages[3].args


def test_self_supervision_trains_one_encoder_per_scale_and_frozen_ones_none(tmp_path):
    from training.table_work import TableOptions, TableWork
    from training.training_runs import stages_toml

    options = TableOptions(tmp_path / "cohort.csv", tmp_path, recipe="tables-small")
    work = TableWork(options, "msamil-3")
    stages = tomllib.loads(stages_toml(work, "dino"))["stages"]
    assert [s["verb"] for s in stages] == ["dino", "publish"] * 3 + ["extract", "mil"]
    scales = [s["args"].split("--scale ")[1].split()[0] for s in stages[:6:2]]
    assert scales == ["20x", "10x", "5x"]
    models = " ".join(f"{s}={{out}}/encoder-{s}.safetensors" for s in scales)
    assert f"--model {models} --cohort" in stages[6]["args"]
    assert len({s["makes"] for s in stages}) == 8
    assert not any("--start" in s["args"] for s in stages)
    encoder = tomllib.loads(stages_toml(work, "frozen"))["stages"][0]["args"]
    assert "e2e.lr_encoder=0 --set e2e.lr_tokens=0" in encoder


def test_figure_3b_says_where_it_reaches_self_supervision(tmp_path, monkeypatch):
    import numpy as np

    from training import table_training
    from training.prediction_table import Predictions
    from training.splits import Splits
    from training.table_work import TableOptions, TableWork
    from training.training_runs import Cost

    right = {"dino": 6, "e2e": 7, "e2e-1": 3, "e2e-3": 5}
    asked = []

    def trained(work, name, way, changes=(), folds=None):
        asked.append((work.folder.name, name, list(folds)))
        labels = np.arange(8) % 2
        shown = np.where(np.arange(8) < right[name], labels, 1 - labels)
        names = tuple(f"s{i}" for i in range(8))
        empty, fold = ("test",) * 8, (0,) * 8
        found = Predictions(
            ("a", "b"), names, names, empty, fold, labels, np.eye(2)[shown]
        )
        return found, Cost(9, 6)

    monkeypatch.setattr(table_training, "run_training", trained)
    monkeypatch.setattr(
        table_training, "read_splits", lambda path: Splits(({},) * 5, "", 0)
    )
    monkeypatch.setattr(TableWork, "splits", lambda self: tmp_path)
    sets = ("tables.in_graph=[1, 3, 24]", "tables.sweep_folds=2")
    options = TableOptions(
        tmp_path / "c.csv", tmp_path, recipe="tables-small", overrides=sets
    )
    result = table_training.figure_3b(TableWork(options, "msamil-fig3b"))
    assert [float(r[1].split()[0]) for r in result.rows] == [0.375, 0.625, 0.875, 0.75]
    assert "reaches DINO at 24 patches" in result.notes[-1]
    assert ("msamil-3", "e2e", [0, 1]) in asked
    assert ("msamil-fig3b", "e2e-3", [0, 1]) in asked


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
