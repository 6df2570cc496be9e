"""The README's walk from nothing to the papers' tables: its own commands, word for word, at small size."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from napari_msamil.checkpoint import read_header
from napari_msamil.cli import main as msamil
from training import calibration, familiar
from training.cli import main as msamil_train

from .walk_parts import CLASSES, save_toy, save_toy_recipe

README = Path(__file__).parents[2] / "README.md"
HEADING = "## From nothing to the papers' tables"
SMALL = {
    "--slides 160": "--slides 9 --size 330 270 --forty-share 0 --slides-per-patient 1 1 --jobs 1 --classes "
    + " ".join(CLASSES),
    "--folds 5": "--folds 2",
    "--model demo": "--model toy.safetensors",
    "--base demo": "--base toy.safetensors",
    "--config demo": "--config toy.toml",
    "slides/*.tiff": "slides/*0.tiff",
    "-o tables": "-o tables --epochs 1 --methods abmil --device cpu --precision fp32",
}
"""What makes the walk short: fewer and smaller slides, and an untrained model."""


def commands() -> list[str]:
    section = README.read_text(encoding="utf-8").split(HEADING)[1]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    lines = block.group(1).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0] for line in lines if line.strip()]


def words_of(command: str, folder: Path) -> list[str]:
    """The words a shell would hand over, in a small version of the command."""
    for long, short in SMALL.items():
        command = command.replace(long, short)
    words = []
    for word in shlex.split(command):
        found = sorted(folder.glob(word)) if "*" in word else []
        words += [str(p.relative_to(folder)) for p in found] or [word]
    return words


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a newcomer who typed all commands."""
    folder = tmp_path_factory.mktemp("walk")
    save_toy(folder / "toy.safetensors")
    save_toy_recipe(folder / "toy.toml")
    program = {"msamil": msamil, "msamil-train": msamil_train}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MSAMIL_CACHE", str(folder / "cache"))
        # nine slides have no ten for validation
        patch.setattr(calibration, "FEWEST", 1)
        patch.setattr(familiar, "FEWEST", 1)
        for command in commands():
            name, *words = words_of(command, folder)
            assert program[name](words) == 0, command
    return folder


def test_the_walk_tests_every_slide_once_and_reports_it(walked: Path) -> None:
    with (walked / "cv" / "predictions.csv").open() as file:
        slides = [line["slide_id"] for line in csv.DictReader(file)]
    assert len(set(slides)) == len(slides) == 9
    report = (walked / "report" / "report.html").read_text(encoding="utf-8")
    assert "9 slides" in report


def test_the_walk_publishes_an_ensemble_that_the_plugin_runs(walked: Path) -> None:
    header = read_header(walked / "published" / "model.safetensors")
    assert header.config.ensemble is not None
    assert header.config.ensemble.members == 2
    assert header.config.familiarity is not None
    card = (walked / "published" / "README.md").read_text(encoding="utf-8")
    assert "2 trainings" in card
    (result,) = (walked / "results").glob("*/result.json")
    document = json.loads(result.read_text(encoding="utf-8"))
    each = [m[CLASSES[0]] for m in document["members"]]
    assert document["probabilities"][CLASSES[0]] == pytest.approx(sum(each) / 2)
    assert document["spread"][CLASSES[0]] == pytest.approx(
        abs(each[0] - each[1]) / 2**0.5
    )
    assert set(document["class_set"]["classes"]) <= set(CLASSES)
    assert {v["name"] for v in document["verdicts"]} <= {
        "not enough tissue",
        "unlike the training data",
    }


def test_table_1_and_figure_2_run_through_the_engine_once(
    walked: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = walked / "tables"
    values = json.loads((out / "msamil-1.json").read_text())
    assert all(v["patches"] > 0 for v in values.values())
    for name in values:
        assert (out / "msamil-1" / name / "fold_1" / "best.pt").exists()
        (bags,) = (out / "shared").glob(f"bags_toy-????????_{name}_model")
        assert len(list(bags.glob("*.pt"))) == 9
    assert values["random"]["patches"] <= values["tissue"]["patches"]
    seconds = values["lesion"]["seconds"]
    assert 0 < seconds["low"] <= seconds["value"]
    saved = json.loads((out / "msamil-fig2.json").read_text())["saved"]
    assert all(s < 1 for s in saved)
    assert (out / "figure-2.png").exists()
    before = (out / "shared" / "engine" / "lesion.csv").stat().st_mtime_ns
    monkeypatch.chdir(walked)
    (command,) = [c for c in commands() if " tables " in c]
    assert msamil_train(words_of(command, walked)[1:]) == 0
    assert "| 3. Lesion area patches |" in capsys.readouterr().out
    assert (out / "shared" / "engine" / "lesion.csv").stat().st_mtime_ns == before
    assert (out / "tables.md").read_text().count("## MsaMIL-Net") == 3


def test_table_2_trains_methods_on_the_same_slides(walked: Path) -> None:
    with (walked / "tables" / "msamil-2.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["method"] for r in rows] == ["ABMIL†", "Ours (IAAM)‡"]
    assert rows[-1]["ACC (paper)"] == "0.932 / 0.945 / 0.949"
    text = (walked / "tables" / "msamil-2.md").read_text(encoding="utf-8")
    assert "9 slides, 2 folds" in text
