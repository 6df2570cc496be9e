"""Every setting of masked hard instance mining reaches the step it belongs to: values by hand, unequal bags."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.config import AggregatorSpec
from napari_msamil.models.outputs import MILOutput
from training.log import RunLog
from training.loop import Visit, fit
from training.masking import survivors

from .test_mhim import make_task
from .test_mil import DIM, abmil, iaam

if TYPE_CHECKING:
    from pathlib import Path

    from training.mhim_task import MhimTask

NO_MASK: dict[str, Any] = {"high": 0.0, "low": 0.0, "random": 0.0, "decay": False}


def scatter(network: nn.Module, seed: int) -> None:
    """Weights far from zero, so that two networks answer clearly differently."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.8 * torch.randn(parameter.shape, generator=generator))


def apart(**settings: Any) -> MhimTask:
    """A task whose student and teacher have nothing in common."""
    task: MhimTask = make_task(abmil(), **settings)
    scatter(task.aggregator, 21)
    scatter(task.teacher, 22)
    return task


def soft_cross_entropy(
    teacher: Tensor, student: Tensor, teacher_tau: float, student_tau: float
) -> Tensor:
    """−Σ softmax(t / τ_t) · (s / τ_s − log Σ exp(s / τ_s)), written out."""
    target = (teacher / teacher_tau).exp()
    target = target / target.sum()
    scaled = student / student_tau
    return -(target * (scaled - scaled.exp().sum().log())).sum()


def masked_by(task: MhimTask, seen: MILOutput, visit: Visit) -> set[int]:
    return set(task.mask(seen, visit).nonzero().flatten().tolist())


def output_of(attention: list[float], mining: list[list[float]] | None) -> MILOutput:
    return MILOutput(
        torch.zeros(1, 2),
        torch.tensor([attention]),
        torch.zeros(1, 3),
        mining_attention=None if mining is None else torch.tensor([mining]),
    )


def voted(scores: Tensor, count: int) -> set[int]:
    """Each head marks its `count` first; the most-marked win, then the larger mean: in plain Python."""
    heads = [head.tolist() for head in scores]
    n = len(heads[0])
    votes = [0] * n
    for head in heads:
        for i in sorted(range(n), key=lambda i: -head[i])[:count]:
            votes[i] += 1
    mean = [sum(head[i] for head in heads) for i in range(n)]
    return set(sorted(range(n), key=lambda i: (-votes[i], -mean[i]))[:count])


def test_consistency_pulls_towards_the_teachers_whole_bag() -> None:
    taus = {"teacher_temperature": 0.6, "student_temperature": 1.7}
    task = apart(alpha=0.7, **taus)
    visit = Visit(1, 0, 2, 1.0)
    batch = task.train.one(1)
    whole = task.teacher(batch.features).embedding[0]
    keep = survivors(task.mask(task.look(batch), visit))
    assert 0 < len(keep) < 12
    student = copy.deepcopy(task.aggregator)
    out = student(batch.features[:, keep])
    label = int(batch.labels)
    bag = out.logits[0].exp().sum().log() - out.logits[0, label]
    own = out.embedding[0]
    expected = bag + 0.7 * soft_cross_entropy(whole, own, 0.6, 1.7)
    expected.backward()
    others = (
        soft_cross_entropy(whole, own, 1.7, 0.6),
        soft_cross_entropy(own, own, 0.6, 1.7),
        soft_cross_entropy(
            task.teacher(batch.features[:, keep]).embedding[0], own, 0.6, 1.7
        ),
    )
    assert all((bag + 0.7 * o - expected).detach().abs() > 0.01 for o in others)
    assert task.backward(visit) == pytest.approx(float(expected.detach()), rel=1e-5)
    for found, wanted in zip(
        task.aggregator.parameters(), student.parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-6)


def test_the_weight_of_a_visit_scales_its_gradient_and_not_the_figure_shown() -> None:
    whole, part = apart(alpha=0.4), apart(alpha=0.4)
    visit = Visit(2, 1, 1, 1.0)
    assert part.backward(replace(visit, weight=0.3)) == whole.backward(visit)
    for one, other in zip(
        whole.aggregator.parameters(), part.aggregator.parameters(), strict=True
    ):
        assert one.grad is not None
        torch.testing.assert_close(other.grad, 0.3 * one.grad)
    assert any(p.grad.abs().max() > 0.01 for p in whole.aggregator.parameters())  # type: ignore[union-attr]


def test_validation_judges_the_student_and_names_the_teacher() -> None:
    task = apart()
    assert task.val is not None
    wanted: dict[str, float] = {}
    for prefix, network in (("val_", task.aggregator), ("teacher_", task.teacher)):
        network.eval()
        bags = [task.val.one(i) for i in range(len(task.val))]
        logits = torch.cat([network(b.features).logits for b in bags])
        labels = torch.cat([b.labels for b in bags])
        wanted[f"{prefix}loss"] = float(F.cross_entropy(logits, labels))
        wanted[f"{prefix}acc"] = float((logits.argmax(1) == labels).float().mean())
    found = task.validate()
    assert {k: found[k] for k in wanted} == pytest.approx(wanted, rel=1e-5)
    assert abs(wanted["val_loss"] - wanted["teacher_loss"]) > 0.1


@pytest.mark.parametrize(
    ("fusion", "masked"), [("voting", {0, 2, 3, 5}), ("averaging", {0, 1, 3, 4})]
)
def test_heads_agree_as_the_recipe_says(fusion: str, masked: set[int]) -> None:
    """Nine instances, four asked for: the first head marks 0 1 2 3, the second 4 3 0 5."""
    heads = [
        [9.0, 8.0, 7.0, 6.0, 0.0, 5.0, 4.0, 3.0, 2.0],
        [6.0, 0.0, 4.0, 7.0, 9.0, 5.5, 1.0, 2.0, 3.0],
    ]
    task = make_task(**{**NO_MASK, "high": 4 / 9}, fusion=fusion)
    seen = output_of([1 / 9] * 9, heads)
    assert masked_by(task, seen, Visit(0, 0, 0, 1.0)) == masked


def test_half_of_twice_as_many_candidates_is_masked_where_randomness_is_a_half() -> (
    None
):
    seen = output_of([(12 - i) / 78 for i in range(12)], None)
    strict = make_task(**{**NO_MASK, "high": 0.25}, high_randomness=1.0)
    loose = make_task(**{**NO_MASK, "high": 0.25}, high_randomness=0.5)
    visits = [Visit(1, epoch, 1, 1.0) for epoch in range(12)]
    assert all(masked_by(strict, seen, v) == {0, 1, 2} for v in visits)
    drawn = [masked_by(loose, seen, v) for v in visits]
    assert {len(masked) for masked in drawn} == {3}
    assert set.union(*drawn) == {0, 1, 2, 3, 4, 5}


def transmil(**args: Any) -> AggregatorSpec:
    small = {"hidden": 12, "heads": 3, "landmarks": 4, "dropout": 0.0}
    return AggregatorSpec(name="transmil", in_dim=DIM, args={**small, **args})


@pytest.mark.parametrize("layer", ["first", "last"])
def test_transmil_is_ranked_by_the_votes_of_its_heads(layer: str) -> None:
    task = make_task(transmil(), **{**NO_MASK, "high": 0.33}, layer=layer)
    scatter(task.teacher, 5)
    differs = 0
    for item, n in enumerate((9, 12, 7, 10)):
        batch = task.train.one(item)
        seen = task.look(batch)
        other: Any = copy.deepcopy(task.teacher)
        other.args = other.args.model_copy(update={"mining_layer": layer == "last"})
        rows = other(batch.features).mining_attention[0]
        assert rows.shape == (3, n)
        count = math.ceil(0.33 * n)
        found = masked_by(task, seen, Visit(item, 0, item, 1.0))
        assert found == voted(rows, count)
        differs += found != voted(seen.attention, count)
    assert differs


def test_dsmil_is_ranked_by_its_largest_instance_logit() -> None:
    spec = AggregatorSpec(name="dsmil", in_dim=DIM, args={"hidden": 7, "query_dim": 5})
    task = make_task(spec, **{**NO_MASK, "high": 0.4})
    scatter(task.teacher, 6)
    differs = 0
    for item, n in enumerate((9, 12, 7, 10)):
        seen = task.look(task.train.one(item))
        assert seen.instance_logits is not None
        count = math.ceil(0.4 * n)
        largest = seen.instance_logits[0].amax(1, keepdim=True).T
        found = masked_by(task, seen, Visit(item, 0, item, 1.0))
        assert found == voted(largest, count)
        differs += found != voted(seen.attention, count)
    assert differs


def test_low_and_high_shares_mask_opposite_ends() -> None:
    seen = output_of([(12 - i) / 78 for i in range(12)], None)
    visit = Visit(1, 3, 0, 1.0)
    low = make_task(**{**NO_MASK, "low": 0.3})
    assert masked_by(low, seen, visit) == {8, 9, 10, 11}
    both = make_task(**{**NO_MASK, "low": 0.3, "high": 0.1})
    assert masked_by(both, seen, visit) == {0, 1, 8, 9, 10, 11}


def test_shares_count_in_each_scale_where_asked() -> None:
    """Even instances of the toy bags have scale 0, odd ones scale 1."""
    spec = iaam()
    spec = spec.model_copy(update={"args": {**spec.args, "dim": 10}})
    seen = output_of([(12 - i) / 78 for i in range(12)], None)
    visit = Visit(1, 0, 0, 1.0)
    each = make_task(spec, **{**NO_MASK, "high": 1 / 3}, per_scale=True)
    assert masked_by(each, seen, visit) == {0, 1, 2, 3}
    skewed = output_of([0.1, 0.01] * 6, None)
    assert masked_by(each, skewed, visit) == {0, 1, 2, 3}
    whole = make_task(spec, **{**NO_MASK, "high": 1 / 3})
    assert masked_by(whole, skewed, visit) == {0, 2, 4, 6}


@pytest.mark.parametrize(
    ("epoch", "position", "step"),
    [(0, 2, 0), (0, 3, 1), (1, 0, 2), (2, 2, 4), (2, 3, 5), (3, 3, 7)],
)
def test_high_share_decays_with_the_optimiser_step_and_not_with_the_visit(
    epoch: int, position: int, step: int
) -> None:
    """Four bags in windows of three are two steps an epoch, eight in all."""
    task = make_task(**{**NO_MASK, "high": 0.75, "decay": True}, accumulate=3)
    visit = Visit(1, epoch, position, 1 / 3)
    assert task.step_of(visit) == step
    share = 0.375 * (1 + math.cos(math.pi * step / 8))
    seen = output_of([(12 - i) / 78 for i in range(12)], None)
    found = masked_by(task, seen, visit)
    assert found == set(range(math.ceil(12 * share)))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("step", [0, 5, 11, 16])
def test_momentum_of_a_step_follows_its_schedule(schedule: str, step: int) -> None:
    task = apart(momentum=0.6, momentum_schedule=schedule)
    before = [p.clone() for p in task.teacher.parameters()]
    task.after_step(step)
    m = 0.6 if schedule == "constant" else 0.8 - 0.2 * math.cos(math.pi * step / 16)
    moved = zip(
        task.teacher.parameters(), before, task.aggregator.parameters(), strict=True
    )
    for now, old, student in moved:
        torch.testing.assert_close(now, m * old + (1 - m) * student)


def test_teacher_after_a_training_is_the_average_of_all_students(
    tmp_path: Path,
) -> None:
    given: dict[str, Any] = {
        "momentum": 0.5,
        "momentum_schedule": "cosine",
        "accumulate": 3,
    }
    task: MhimTask = make_task(**given, lr=0.05, patience=0, tie_resets=False)
    expected = [p.clone() for p in task.teacher.parameters()]
    original, steps = task.after_step, 0

    def remember(step: int) -> None:
        nonlocal steps, expected
        m = 0.75 - 0.25 * math.cos(math.pi * steps / 8)
        students = [p.detach() for p in task.aggregator.parameters()]
        expected = [
            m * t + (1 - m) * s for t, s in zip(expected, students, strict=True)
        ]
        steps += 1
        original(step)

    task.after_step = remember  # type: ignore[method-assign]
    with RunLog(tmp_path) as log:
        fit(task, task.settings, tmp_path, log)
    assert steps == 8
    for found, wanted in zip(task.teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
