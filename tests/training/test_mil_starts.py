"""What a training on bags may start from and go on with, and which scales its model looks at afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from napari_msamil.config import ModelConfig
from napari_msamil.errors import (
    CohortError,
    ConfigError,
    StoreError,
)
from napari_msamil.models import build_aggregator
from training.assemble import assemble
from training.bag_cohort import narrowed
from training.bag_dataset import BagDataset
from training.bags import load_bag
from training.cli import main
from training.log import RunLog, read_log
from training.loop import Visit, fit
from training.mhim_task import start_student
from training.mil_task import MilSpec, MilTask
from training.state import load_state, save_state

from .test_mil import abmil, iaam, spec_of, toy_bags, toy_set, write_toy_cohort

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return write_toy_cohort(tmp_path)


def words(work: Path, out: str, *more: str, verb: str = "mil") -> list[str]:
    own = [verb, "--config", f"{work}/toy.toml", "--cohort", f"{work}/cohort.csv"]
    own += ["--bags", f"{work}/bags", "--device", "cpu", "-o", f"{work}/{out}"]
    return [*own, *more]


def model_of(work: Path, out: str) -> ModelConfig:
    state = load_state(work / out / "best.pt")
    return assemble([(work / out / "best.pt", state)], None)[0]


@pytest.mark.parametrize("verb", ["mil", "mhim"])
def test_the_published_model_looks_at_the_scales_it_was_trained_on(
    work: Path, verb: str
) -> None:
    assert main(words(work, "all", verb=verb)) == 0  # the bags have two of three
    assert [s.name for s in model_of(work, "all").patches.scales] == ["20x", "10x"]
    one = ("--set", f'{verb}.scales=["10x"]')
    assert main(words(work, "one", *one, verb=verb)) == 0
    patches = model_of(work, "one").patches
    assert [s.name for s in patches.scales] == ["10x"]
    assert len(patches.random_counts) == 1
    # whatever order they are asked for in, 0 is the finest
    turned = ("--set", f'{verb}.scales=["10x","20x"]')
    assert main(words(work, "turned", *turned, verb=verb)) == 0
    assert [s.name for s in model_of(work, "turned").patches.scales] == ["20x", "10x"]
    first = (work / "all" / "predictions.csv").read_text()
    assert (work / "turned" / "predictions.csv").read_text() == first


def test_scales_that_cannot_be_used_are_named(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(work, "o", "--set", 'mil.scales=["40x"]')) == 2
    assert "no scale 40x. It has 20x, 10x, 5x" in capsys.readouterr().err
    both = ("--set", 'mil.scales=["20x"]', "--set", 'mhim.scales=["10x"]')
    assert main(words(work, "o", *both, verb="mhim")) == 2
    assert "Give both the same" in capsys.readouterr().err
    config = ModelConfig(
        name="m", classes=("a", "b"), aggregator=spec_of("csmil"), encoder={"dim": 6}
    )
    with pytest.raises(ConfigError, match=r"20x and 5x are a factor 4 apart"):
        narrowed(config, ["5x", "20x"])
    assert len(narrowed(config, ["10x", "5x"]).patches.scales) == 2


def test_an_older_training_is_not_overwritten_nor_its_best_state_taken(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("mil", "mhim"):
        assert main(words(work, verb, verb=verb)) == 0
        before = (work / verb / "predictions.csv").read_bytes()
        assert main(words(work, verb, "--set", "mil.epochs=1", verb=verb)) == 2
        assert "Go on with --resume, or choose another" in capsys.readouterr().err
        assert (work / verb / "predictions.csv").read_bytes() == before


def test_classes_in_another_order_are_another_model(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(work, "run")) == 0
    before = (work / "run" / "predictions.csv").read_bytes()
    turned = ("--set", 'model.classes=["b","a"]', "--set", "mil.epochs=4")
    assert main(words(work, "run", "--resume", *turned)) == 1
    assert "in another order" in capsys.readouterr().err
    assert (work / "run" / "predictions.csv").read_bytes() == before
    start = ("--start", f"{work}/run/best.pt", *turned)
    assert main(words(work, "again", *start)) == 1
    assert "in another order" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["mil", "mhim"])
def test_a_start_of_another_fold_is_told_and_one_of_other_features_refused(
    work: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    option = "--start" if verb == "mil" else "--pretrained"
    assert main(words(work, "first")) == 0
    start = (option, f"{work}/first/best.pt")
    assert main(words(work, "same", *start, verb=verb)) == 0
    assert "never saw" not in capsys.readouterr().err
    table = work / "cohort.csv"
    table.write_text(table.read_text().replace(",val", ",x").replace(",test", ",val"))
    table.write_text(table.read_text().replace(",x", ",test"))
    assert main(words(work, "other", *start, verb=verb)) == 0
    assert "Make sure that it never saw" in capsys.readouterr().err
    state = load_state(work / "first" / "best.pt")
    state["description"]["encoder_id"] = "another"
    rest = {k: v for k, v in state.items() if k not in ("format", "kind")}
    save_state(work / "first" / "best.pt", "mil", rest)
    assert main(words(work, "third", *start, verb=verb)) == 1
    assert "other features" in capsys.readouterr().err


def test_a_run_that_ended_early_stays_ended(tmp_path: Path) -> None:
    spec = MilSpec(epochs=30, patience=2, tie_resets=False, monitor="val_loss", lr=1.0)
    for resume in (False, True, True):
        torch.manual_seed(5)
        parts = toy_set([3, 5, 2, 6, 4]), toy_set([4, 5, 6, 3], 1)
        task = MilTask(abmil(), spec, *parts, ("a", "b"))
        with RunLog(tmp_path) as log:
            result = fit(task, spec, tmp_path, log, resume=resume)
        ends = [x["epoch"] for x in read_log(tmp_path) if x.get("event") == "end"]
        assert result.reason == "early"
        assert result.epochs == ends[0] < 30
    assert len(ends) == 3


def test_an_auc_that_is_not_defined_chooses_nothing() -> None:
    bags, labels = toy_bags([3, 5, 2, 6])
    val = BagDataset([bags[0], bags[2]], [0, 0])
    train = BagDataset(bags, labels)
    with pytest.raises(CohortError, match="one class only"):
        MilTask(abmil(), MilSpec(), train, val, ("a", "b"))
    task = MilTask(abmil(), MilSpec(monitor="val_loss"), train, val, ("a", "b"))
    figures = task.validate()
    assert figures["val_auc"] != figures["val_auc"]  # NaN, never a number


def test_a_method_without_projection_has_no_start_for_a_student() -> None:
    spec = iaam()  # as wide as its features
    weights = build_aggregator(spec, 2).state_dict()
    with pytest.raises(ConfigError, match=r"no projection .* mhim\.start"):
        start_student(build_aggregator(spec, 2), weights, "projection")
    start_student(build_aggregator(spec, 2), weights, "none")
    wide = spec.model_copy(update={"args": {**spec.args, "dim": 10}})
    source, student = build_aggregator(wide, 2), build_aggregator(wide, 2)
    start_student(student, source.state_dict(), "projection")
    taken = [
        name
        for name, value in student.state_dict().items()
        if torch.equal(value, source.state_dict()[name]) and value.std() > 0
    ]
    assert taken
    assert all(name.startswith("projection.") for name in taken)


def test_bags_of_different_scales_or_without_places_are_refused(tmp_path: Path) -> None:
    bags, labels = toy_bags([4, 3])
    turned = replace(bags[1], scale_names=("10x", "20x"))
    with pytest.raises(StoreError, match="10x/20x and 20x/10x"):
        BagDataset([bags[0], turned], labels)
    torch.save(bags[0].features, tmp_path / "s0.pt")  # as CLAM writes them
    data = BagDataset([load_bag(tmp_path / "s0.pt")] * 2, labels)
    assert MilTask(abmil(), MilSpec(), data, None, ("a", "b"))
    with pytest.raises(StoreError, match="hold no coordinates"):
        MilTask(iaam(), MilSpec(), data, None, ("a", "b"))


def test_a_factor_on_the_bag_loss_counts_in_windows_too() -> None:
    spec = MilSpec(accumulate=2, loss_weights={"bag": 0.25})
    task = MilTask(abmil(), spec, toy_set([3, 5]), None, ("a", "b"))
    visits = [Visit(i, 0, i, 0.5) for i in range(2)]
    together = task.backward_window(visits)
    assert together == pytest.approx([task.backward(v) for v in visits], abs=1e-6)


def test_a_seed_below_zero_is_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        MilSpec(seed=-1)
