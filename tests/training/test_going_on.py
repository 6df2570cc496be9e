"""A training goes on, or starts from another, only as what it was: other bags, settings and networks are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from napari_msamil.config import AggregatorSpec, ModelConfig
from napari_msamil.errors import CheckpointError, ConfigError
from napari_msamil.models import build_aggregator
from training.bags import load_bag, save_bag
from training.cli import main
from training.mhim_pictures import PictureAlbum
from training.mhim_task import mining_spec
from training.mil_task import xavier_start
from training.start_weights import other_arguments, read_weights
from training.state import load_state, save_state

from .test_mil import DIM, abmil, spec_of, write_toy_cohort
from .test_mil_starts import words

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

RELU = ("--set", 'model.aggregator.args.activation="relu"')


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return write_toy_cohort(tmp_path)


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"encoder_id": "another"},
            "the encoder of the split 'test' (s18, …): another",
        ),
        ({"scale_names": ("x20x", "x10x")}, "the scales of the split 'test'"),
        ({"features": torch.zeros(5, 9)}, "values per instance of the split 'test'"),
    ],
)
def test_bags_of_the_test_slides_must_be_made_as_those_that_are_trained_on(
    work: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], told: str
) -> None:
    for i in range(18, 24):
        path = work / "bags" / f"s{i}.pt"
        bag = load_bag(path)
        if "features" in change:
            change["features"] = torch.zeros(len(bag.scale), 9)
        save_bag(path, replace(bag, **change))  # type: ignore[arg-type]
    assert main(words(work, "run")) == 1
    assert told in capsys.readouterr().err
    assert not (work / "run").exists()


def test_a_start_with_equal_shapes_and_another_formula_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(work, "first")) == 0
    assert main(words(work, "o", "--start", f"{work}/first/best.pt", *RELU)) == 1
    assert "another network: activation tanh instead of relu" in capsys.readouterr().err
    given = ("--pretrained", f"{work}/first/best.pt")
    assert main(words(work, "o", *given, *RELU, verb="mhim")) == 1
    assert "activation tanh instead of relu" in capsys.readouterr().err
    assert not (work / "o").exists()
    less = ("--set", "model.aggregator.args.dropout=0.5")
    assert main(words(work, "o", "--start", f"{work}/first", *less)) == 0


def test_networks_are_compared_by_what_they_compute() -> None:
    def iaam(heads: int, rank: int) -> AggregatorSpec:
        return spec_of("iaam", heads=heads, rank=rank)

    assert other_arguments(iaam(2, 8), iaam(4, 4)) == [
        "heads 2 instead of 4",
        "rank 8 instead of 4",
    ]
    assert other_arguments(spec_of("abmil"), spec_of("dsmil")) == [
        "abmil instead of dsmil"
    ]
    # a default and the same value by name are one; what is no part of the answer may differ
    plain = spec_of("transmil", hidden=16)
    named = spec_of("transmil", hidden=16, heads=8, projection_dropout=0.3)
    assert other_arguments(plain, mining_spec(named, "last")) == []


def test_a_checkpoint_of_other_classes_or_features_is_no_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from napari_msamil.checkpoint import save_checkpoint
    from napari_msamil.encoding import weights_hash
    from napari_msamil.models import build_model

    config = ModelConfig(
        name="m",
        classes=("a", "b"),
        encoder={"kind": "timm", "backbone": "resnet18", "dim": 512},
        aggregator=spec_of("abmil", hidden=8).model_copy(update={"in_dim": 512}),
        segmenter=None,
    )
    model = build_model(config)
    path = save_checkpoint(tmp_path / "m.safetensors", model, {})
    made = weights_hash(model.encoder, config.encoder)
    about = {
        "aggregator": config.aggregator.model_dump_json(),
        "classes": ["a", "b"],
        "encoder_id": f"{made}-fp32",
    }
    found = read_weights(path, about)
    assert found.keys() == model.aggregator.state_dict().keys()
    with pytest.raises(CheckpointError, match="other classes"):
        read_weights(path, {**about, "classes": ["b", "a"]})
    with pytest.raises(CheckpointError, match="other features"):
        read_weights(path, {**about, "encoder_id": "0" * len(made) + "-fp32"})


def test_a_resumed_training_keeps_its_settings(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(work, "run", "--set", "mil.weight_decay=0.5")) == 0
    before = files(work / "run")
    other = ("--set", "mil.seed=5", "--set", "mil.epochs=4")
    assert main(words(work, "run", "--resume", *other)) == 1
    told = capsys.readouterr().err
    assert "another value of weight_decay, seed" in told
    assert files(work / "run") == before
    same = ("--set", "mil.weight_decay=0.5", "--set", "mil.epochs=4")
    assert main(words(work, "run", "--resume", *same)) == 0
    assert load_state(work / "run" / "state.pt")["position"]["epoch"] == 4


@pytest.mark.parametrize("verb", ["mil", "mhim"])
def test_another_network_leaves_an_older_run_and_a_new_folder_as_they_were(
    work: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert main(words(work, "run", verb=verb)) == 0
    before = files(work / "run")
    wide = ("--set", "model.aggregator.args.hidden=16", "--set", "mil.accumulate=1")
    assert main(words(work, "run", "--resume", *wide, verb=verb)) == 1
    assert "settings of the aggregator" in capsys.readouterr().err
    assert files(work / "run") == before
    for wrong in ('name="abmill"', "args.depth=3"):
        named = ("--set", f"model.aggregator.{wrong}")
        assert main(words(work, "new", *named, verb=verb)) == 2
    start = "--start" if verb == "mil" else "--pretrained"
    assert main(words(work, "new", start, f"{work}/none.pt", verb=verb)) == 1
    assert not (work / "new").exists()


def test_a_finished_pretraining_counts_only_with_its_own_settings(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("--set", "mil.epochs=1")
    assert main(words(work, "run", *short, verb="mhim")) == 0
    (work / "run" / "state.pt").unlink()
    before = files(work / "run")
    assert main(words(work, "run", "--resume", *RELU, verb="mhim")) == 1
    assert "settings of the aggregator" in capsys.readouterr().err
    slow = ("--set", "mil.lr=1e-4")
    assert main(words(work, "run", "--resume", *slow, *short, verb="mhim")) == 1
    assert "another value of lr" in capsys.readouterr().err
    assert files(work / "run") == before
    assert main(words(work, "run", "--resume", verb="mhim")) == 0
    state = load_state(work / "run" / "pretrain" / "state.pt")
    assert state["position"]["epoch"] == 3
    before = files(work / "run")
    assert main(words(work, "run", "--resume", *short, verb="mhim")) == 1
    assert "began with a plain network" in capsys.readouterr().err
    assert files(work / "run") == before
    told = json.loads((work / "run" / "config.json").read_text())
    assert told["mil"]["epochs"] == 3


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        (("--visualise", "s99"), "No slide of"),
        (("--set", 'mhim.layer="last"'), "one attention to rank by"),
        (
            ("--set", 'model.aggregator={name="iaam",in_dim=6,args={heads=2}}'),
            "no projection",
        ),
    ],
)
def test_what_cannot_work_is_told_before_the_plain_network_is_trained(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    mistake: tuple[str, str],
    told: str,
) -> None:
    assert main(words(work, "run", *mistake, verb="mhim")) in (1, 2)
    assert told in capsys.readouterr().err
    assert not (work / "run").exists()


def test_looking_on_does_not_change_the_training(work: Path) -> None:
    assert main(words(work, "alone", verb="mhim")) == 0
    assert main(words(work, "seen", "--visualise", "s1", verb="mhim")) == 0
    alone, seen = (work / n / "predictions.csv" for n in ("alone", "seen"))
    assert alone.read_bytes() == seen.read_bytes()


def test_pictures_number_scales_as_the_training_does(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Tensor] = []
    album = PictureAlbum.finish

    def look(self: PictureAlbum) -> None:
        assert self.data.scale_names == self.task.train.scale_names
        assert torch.equal(self.data.one(0).scale, self.task.train.one(1).scale)
        shown.append(self.data.one(0).scale)
        album(self)

    monkeypatch.setattr(PictureAlbum, "finish", look)
    turned = [f'{t}.scales=["10x","20x"]' for t in ("mil", "mhim")]
    sets = ("--set", turned[0], "--set", turned[1], "--visualise", "s1")
    assert main(words(work, "run", *sets, verb="mhim")) == 0
    assert shown[0].tolist() == [[0, 1, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize("content", ["table", "junk", "bag", "list"])
def test_a_file_that_is_no_training_state_is_told_in_a_sentence(
    work: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    path = work / "x.pt"
    if content == "table":
        path.write_text((work / "cohort.csv").read_text())
    elif content == "junk":
        path.write_bytes(bytes(range(7, 200)))
    elif content == "bag":
        path = work / "bags" / "s0.pt"
    else:
        torch.save([1, 2], path)
    assert main(words(work, "o", "--start", str(path))) == 1
    told = capsys.readouterr().err
    assert "training state" in told or "is damaged" in told
    assert "unexpected" not in told


def test_a_rank_of_the_method_that_says_another_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mining_layer is 1, but mhim\.layer is"):
        mining_spec(spec_of("transmil", mining_layer=1), "first")
    assert mining_spec(spec_of("transmil", mining_layer=1), "last").args == {
        "mining_layer": 1
    }


def test_step_sizes_of_mamba_keep_their_start() -> None:
    torch.manual_seed(0)
    network = build_aggregator(spec_of("mambamil", hidden=16, layers=1), 2)
    steps = {k: v.clone() for k, v in network.state_dict().items() if ".step." in k}
    assert steps
    xavier_start(network)
    for name, value in steps.items():
        assert torch.equal(network.state_dict()[name], value), name
    assert network.state_dict()["projection.0.bias"].abs().max() == 0


def test_a_state_without_settings_is_one_of_an_older_version(tmp_path: Path) -> None:
    from training.state import changed_settings

    save_state(tmp_path / "s.pt", "mil", {"description": {}})
    state = load_state(tmp_path / "s.pt")
    assert changed_settings(state, {"settings": '{"lr": 1}'}) == []
    known = {"description": {"settings": '{"lr": 2, "epochs": 3, "gone": 1}'}}
    now = {"settings": '{"lr": 1, "epochs": 4, "new": 1}'}
    assert changed_settings(known, now) == ["lr"]
    assert changed_settings(known, now, ended=True) == ["lr", "epochs"]
    assert abmil().in_dim == DIM
