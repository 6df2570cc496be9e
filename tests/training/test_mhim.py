"""Masked hard instance mining: what the student sees, what moves the teacher, exact resuming."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_msamil.config import AggregatorSpec
from napari_msamil.errors import CheckpointError, ConfigError
from napari_msamil.models import build_aggregator
from training.cli import main
from training.config import model_config, read_recipe, section
from training.log import RunLog, read_log
from training.loop import Visit, fit
from training.masking import survivors
from training.mhim_task import MhimSpec, MhimTask, mining_spec, start_student
from training.mil_task import MilSpec, MilTask
from training.state import load_state

from .test_mil import abmil, iaam, toy_set, write_toy_cohort

if TYPE_CHECKING:
    from pathlib import Path


def pretrained(spec: AggregatorSpec) -> dict[str, Tensor]:
    torch.manual_seed(11)
    task = MilTask(spec, MilSpec(), toy_set([2]), None, ("a", "b"))
    return {k: v.clone() for k, v in task.aggregator.state_dict().items()}


def make_task(spec: AggregatorSpec | None = None, **settings: Any) -> MhimTask:
    spec = spec or abmil()
    torch.manual_seed(1)
    given = {"high": 0.2, "low": 0.2, "random": 0.3, "epochs": 4, **settings}
    return MhimTask(
        spec,
        MhimSpec(**given),
        toy_set([9, 12, 7, 10]),
        toy_set([8, 9, 10, 11], 4),
        ("a", "b"),
        pretrained(spec),
    )


def test_student_sees_survivors_only_and_they_are_gathered_before_the_projection() -> (
    None
):
    task = make_task()
    seen: list[Tensor] = []
    task.aggregator.projection.register_forward_pre_hook(  # type: ignore[union-attr]
        lambda _, args: seen.append(args[0].detach().clone())
    )
    visit = Visit(1, 0, 0, 1.0)
    batch = task.train.one(1)
    keep = survivors(task.mask(task.look(batch), visit))
    task.backward(visit)
    assert 0 < len(keep) < 12
    assert torch.equal(seen[0], batch.features[:, keep])


def test_gathering_before_projecting_changes_nothing_without_dropout() -> None:
    task = make_task()
    batch = task.train.one(0)
    keep = torch.tensor([0, 3, 4, 8])
    before = task.aggregator(batch.features[:, keep]).logits
    after = task.aggregator.aggregate(
        task.aggregator.project(batch.features)[:, keep]
    ).logits
    torch.testing.assert_close(before, after)


def test_teacher_has_no_gradient_and_moves_only_by_the_average() -> None:
    task = make_task(momentum=0.75)
    start = {k: v.clone() for k, v in task.teacher.named_parameters()}
    task.backward(Visit(0, 0, 0, 1.0))
    assert all(p.grad is None for p in task.teacher.parameters())
    assert all(torch.equal(v, start[k]) for k, v in task.teacher.named_parameters())
    assert all(p.grad is not None for p in task.aggregator.parameters())
    task.after_step(0)
    student = dict(task.aggregator.named_parameters())
    for name, value in task.teacher.named_parameters():
        expected = 0.75 * start[name] + 0.25 * student[name]
        torch.testing.assert_close(value, expected)


def test_loss_is_bag_loss_plus_alpha_times_consistency() -> None:
    plain, mixed = make_task(alpha=0.0), make_task(alpha=0.5)
    mixed.aggregator.load_state_dict(plain.aggregator.state_dict())
    visit = Visit(2, 0, 2, 1.0)
    difference = mixed.backward(visit) - plain.backward(visit)  # type: ignore[operator]
    # nine features near zero start near ln 9
    assert difference == pytest.approx(0.5 * math.log(9), rel=0.4)


def test_student_starts_with_the_pretrained_projection_only() -> None:
    task = make_task()
    source = pretrained(abmil())
    own = task.aggregator.state_dict()
    for name, value in own.items():
        same = torch.equal(value, source[name])
        assert same == name.startswith("projection."), name
    assert own["classifier.bias"].abs().sum() == 0
    for name, value in task.teacher.state_dict().items():
        assert torch.equal(value, source[name])


@pytest.mark.parametrize(("what", "same"), [("all", True), ("none", False)])
def test_other_starts(what: str, same: bool) -> None:
    task = make_task()
    source = pretrained(abmil())
    start_student(task.aggregator, source, what)
    found = torch.equal(
        task.aggregator.state_dict()["projection.0.weight"],
        source["projection.0.weight"],
    )
    assert found == same


def test_pretrained_weights_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match="scores"):
        MhimTask(
            abmil(gated=False),
            MhimSpec(),
            toy_set([3]),
            None,
            ("a", "b"),
            pretrained(abmil(gated=True)),
        )


def test_high_ratio_decays_per_step_and_the_others_stay() -> None:
    task = make_task(high=0.04, low=0.3, random=0.5)
    assert task.total_steps == 16
    assert task.ratios(0).high == 0.04
    assert task.ratios(8).high == pytest.approx(0.02)
    assert task.ratios(16).high == 0.0
    assert {(task.ratios(s).low, task.ratios(s).random) for s in range(16)} == {
        (0.3, 0.5)
    }
    assert make_task(high=0.04, decay=False).ratios(16).high == 0.04


def test_masks_depend_on_the_visit_and_not_on_what_was_drawn_before() -> None:
    task = make_task(low=0.0, high=0.0, random=0.5)
    seen = task.look(task.train.one(1))
    first = task.mask(seen, Visit(1, 0, 0, 1.0))
    torch.rand(5)
    assert torch.equal(first, task.mask(seen, Visit(1, 0, 0, 1.0)))
    others = [task.mask(seen, Visit(1, e, 0, 1.0)) for e in range(1, 6)]
    assert any(not torch.equal(first, other) for other in others)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_teacher_dropout_follows_the_mode(mode: str) -> None:
    task = make_task(abmil(dropout=0.5), teacher_mode=mode)
    batch = task.train.one(0)
    looks = [task.look(batch).embedding for _ in range(2)]
    assert torch.equal(*looks) == (mode == "eval")


def test_every_scale_keeps_an_instance_of_iaam() -> None:
    spec = iaam()
    task = make_task(
        spec.model_copy(update={"args": {**spec.args, "dim": 10}}),
        low=0.95,
        per_scale=True,
    )
    for item in range(4):
        batch = task.train.one(item)
        masked = task.mask(task.look(batch), Visit(item, 0, item, 1.0))
        kept = batch.scale[0][~masked]
        assert set(kept.tolist()) == {0, 1}
        assert task.backward(Visit(item, 0, item, 1.0)) is not None


def _run(folder: Path, *, resume: bool = False, cut: int | None = None) -> None:
    task = make_task(
        abmil(dropout=0.2), momentum=0.9, momentum_schedule="cosine", lr=3e-3
    )
    if cut is not None:
        original, count = task.after_step, iter(range(100))

        def stop(step: int) -> None:
            if next(count) == cut:
                raise KeyboardInterrupt
            original(step)

        task.after_step = stop  # type: ignore[method-assign]
    with RunLog(folder) as log:
        fit(task, task.settings, folder, log, resume=resume)


def test_resume_is_bit_exact_for_teacher_student_optimiser_and_rng(
    tmp_path: Path,
) -> None:
    _run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", cut=10)
    _run(tmp_path / "cut", resume=True)
    whole = load_state(tmp_path / "whole/state.pt", "mhim")
    cut = load_state(tmp_path / "cut/state.pt", "mhim")
    assert any(k.startswith("teacher.") for k in whole["model"])
    for name, value in whole["model"].items():
        assert torch.equal(value, cut["model"][name]), name
    for key, moments in whole["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, cut["optimizer"]["state"][key][name])
    assert torch.equal(whole["rng"]["torch"], cut["rng"]["torch"])
    assert whole["position"]["step"] == cut["position"]["step"] == 16


def test_student_is_monitored_and_teacher_logged(tmp_path: Path) -> None:
    _run(tmp_path)
    lines = [line for line in read_log(tmp_path) if "val_auc" in line]
    assert len(lines) == 4
    assert all("teacher_auc" in line for line in lines)


def test_batch_of_plain_modules_is_not_needed_for_publishing(tmp_path: Path) -> None:
    """The student's weights stand under their own prefix, ready for `weights_of`."""
    task = make_task()
    assert isinstance(task.network, nn.ModuleDict)
    names = {k.split(".")[0] for k in task.network.state_dict()}
    assert names == {"student", "teacher"}


PUBLISHED = {
    # recipe: α, β_r, β_l, β_h, randomness, cosine momentum, parameters (two heads have 396 fewer than eight)
    "mhim-abmil-camelyon16": (0.1, 0.5, 0.0, 0.01, 0.5, False, 591_490),
    "mhim-transmil-camelyon16": (0.1, 0.0, 0.8, 0.03, 0.5, True, 2_672_146),
    "mhim-abmil-tcga": (0.5, 0.7, 0.2, 0.02, 1.0, True, 657_026),
    "mhim-transmil-tcga": (0.5, 0.6, 0.2, 0.02, 1.0, False, 2_671_750),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_hold_the_published_values(name: str) -> None:
    raw = read_recipe(name)
    spec = section(raw, "mhim", MhimSpec)
    model = model_config(raw, ("normal", "tumour"))
    alpha, random, low, high, randomness, cosine, parameters = PUBLISHED[name]
    assert (spec.alpha, spec.random, spec.low, spec.high) == (alpha, random, low, high)
    assert spec.high_randomness == randomness
    assert (spec.momentum_schedule == "cosine") == cosine
    assert (spec.optimizer, spec.lr, spec.weight_decay) == ("adam", 2e-4, 1e-5)
    assert (spec.accumulate, spec.clip_norm, spec.epochs) == (1, 0.0, 200)
    assert spec.patience == (30 if "camelyon" in name else 20)
    network = build_aggregator(model.aggregator, 2)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert section(raw, "mil", MilSpec).patience == spec.patience


def test_last_layer_is_refused_where_there_is_one_ranking() -> None:
    with pytest.raises(ConfigError, match=r"mhim\.layer"):
        mining_spec(abmil(), "last")
    spec = AggregatorSpec(name="transmil", in_dim=4)
    assert mining_spec(spec, "last").args == {"mining_layer": 1}


def test_a_resumed_training_shows_the_stages_before_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_toy_cohort(tmp_path)
    words = ["mhim", "--config", f"{tmp_path}/toy.toml", "--device", "cpu"]
    words += ["--cohort", f"{tmp_path}/cohort.csv", "--bags", f"{tmp_path}/bags"]
    words += ["--set", "mhim.epochs=4", "--visualise", "s1", "-o"]
    shown: dict[str, list[Any]] = {}

    def remember(places: Any, views: Any, path: Path, title: str) -> None:
        shown[path.parent.parent.name] = list(views)

    monkeypatch.setattr("training.mhim_pictures.draw_progress", remember)
    assert main([*words, f"{tmp_path}/whole"]) == 0
    validate = MhimTask.validate
    counts = iter(range(9))

    def stop(task: MhimTask) -> Any:
        if next(counts) == 2:
            raise KeyboardInterrupt
        return validate(task)

    with monkeypatch.context() as broken:
        broken.setattr(MhimTask, "validate", stop)
        assert main([*words, f"{tmp_path}/cut"]) == 130
    assert main([*words, f"{tmp_path}/cut", "--resume"]) == 0
    assert [name for name, _ in shown["whole"]] == ["epoch 0", "epoch 1", "end"]
    for (name, whole), (other, cut) in zip(shown["whole"], shown["cut"], strict=True):
        assert name == other
        assert whole.bag_probability == cut.bag_probability
        np.testing.assert_array_equal(whole.attention, cut.attention)


def test_pictures_are_drawn_for_chosen_slides(tmp_path: Path) -> None:
    write_toy_cohort(tmp_path)
    out = tmp_path / "run"
    words = ["mhim", "--config", f"{tmp_path}/toy.toml", "--device", "cpu"]
    words += ["--cohort", f"{tmp_path}/cohort.csv", "--bags", f"{tmp_path}/bags"]
    assert main([*words, "-o", str(out), "--visualise", "s1", "s13"]) == 0
    found = sorted(p.name for p in (out / "pictures").iterdir())
    expected = ["s1.csv", "s13.csv", "s13_masked.png", "s13_progress.png"]
    assert found == [*expected, "s1_masked.png", "s1_progress.png", "stages.pt"]
    table = (out / "pictures/s1.csv").read_text().splitlines()
    assert table[0].startswith("scale,x,y,width,height,attention_plain")
    attention = [float(line.split(",")[8]) for line in table[1:]]
    assert sum(attention) == pytest.approx(1, abs=1e-4)
    other = str(tmp_path / "other")
    assert main([*words, "-o", other, "--visualise", "s99"]) == 1
