"""The loop of all trainings, with a task of one weight: stopping, weights, logs, and a sudden death."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from training.config import LoopSpec
from training.log import RunLog, read_log
from training.loop import fit
from training.state import load_state
from training.visits import Visit, epoch_visits, schedule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from training.loop import FitResult


class Toy:
    """Each item pulls one weight towards its number; validation figures are given."""

    kind = "toy"

    def __init__(self, figures: Sequence[float] = (), count: int = 5) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.3))
        self.figures, self.count, self.weights = list(figures), count, [0.0] * count
        self.pairs: list[tuple[float, float]] = []
        self.dies_at = -1

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "lr": 0.1, "name": "all"}]

    def names(self) -> list[str]:
        return [f"item{i}" for i in range(self.count)]

    def labels(self) -> list[int]:
        return [int(i == 0) for i in range(self.count)]

    def start_epoch(self, epoch: int, visits: Sequence[Visit]) -> None:
        pass

    def backward(self, visit: Visit) -> float:
        self.dies_at -= 1
        if self.dies_at == 0:
            raise KeyboardInterrupt
        self.weights[visit.item] = visit.weight
        noise = float(visit.rng(0).normal())
        out = self.network(torch.tensor([[float(visit.item) + noise]]))
        loss = (out - visit.item).square().mean()
        torch.autograd.backward(loss * visit.weight)
        return float(loss.detach())

    def validate(self) -> dict[str, float]:
        return {"val_loss": self.figures.pop(0)} if self.figures else {}

    def description(self) -> dict[str, Any]:
        return {}


def _fit(task: Toy, folder: Path, resume: bool = False, **settings: Any) -> FitResult:
    spec = LoopSpec(**{"warmup": 0.0, "accumulate": 2, **settings})
    with RunLog(folder, spec.epochs * 3) as log:
        return fit(task, spec, folder, log, resume=resume)


@pytest.mark.parametrize(
    ("figures", "settings", "epochs"),
    [
        ([3, 1, 2, 2, 2, 2, 2, 2], {}, 8),
        ([3, 1, 2, 2, 2, 2, 2, 2], {"patience": 2}, 4),
        ([3, 1, 2, 2, 2, 2, 2, 2], {"patience": 2, "min_epochs": 6}, 6),
        ([1, 2, 2, 2], {"patience": 2, "validate_every": 2}, 6),
        ([3, 1, 2, 1, 2, 2, 2, 2], {"patience": 2}, 4),
        ([3, 1, 2, 1, 2, 2, 2, 2], {"patience": 2, "tie_resets": True}, 6),
    ],
)
def test_training_stops_when_nothing_gets_better_but_not_too_early(
    tmp_path: Path, figures: list[float], settings: dict[str, Any], epochs: int
) -> None:
    result = _fit(Toy(figures), tmp_path, epochs=8, **settings)
    assert result.epochs == epochs
    assert result.reason == ("finished" if epochs == 8 else "early")
    assert result.best == 1
    assert (tmp_path / "best.pt").exists()


@pytest.mark.parametrize(("tie_break", "kept"), [(False, 2), (True, 4)])
def test_of_equal_states_the_first_or_the_surest_is_kept(
    tmp_path: Path, tie_break: bool, kept: int
) -> None:
    class Judged(Toy):
        def validate(self) -> dict[str, float]:
            auc, loss = self.pairs.pop(0)
            return {"val_auc": auc, "val_loss": loss}

    task = Judged()
    task.pairs = [(0.5, 0.1), (1.0, 0.6), (0.9, 0.2), (1.0, 0.4), (1.0, 0.5)]
    result = _fit(task, tmp_path, epochs=5, monitor="val_auc", tie_break=tie_break)
    assert (result.best, result.best_epoch) == (1.0, kept)


def test_class_weights_give_each_class_the_same_pull(tmp_path: Path) -> None:
    task = Toy()
    _fit(task, tmp_path, epochs=1, balance="weights", accumulate=1)
    assert task.weights == pytest.approx([2.5, 0.625, 0.625, 0.625, 0.625])


def test_the_sampler_visits_rare_classes_as_often() -> None:
    labels = [0] * 90 + [1] * 10
    spec = LoopSpec(balance="sampler")
    rare = [sum(v.item >= 90 for v in epoch_visits(labels, spec, e)) for e in range(40)]
    assert np.mean(rare) == pytest.approx(50, abs=4)
    plain = epoch_visits(labels, LoopSpec(), 3)
    assert sorted(v.item for v in plain) == list(range(100))


def test_the_rate_rises_and_falls_along_half_a_cosine() -> None:
    spec = LoopSpec(warmup=0.1, final_lr=0.02)
    shares = [schedule(step, 50, spec) for step in range(51)]
    assert shares[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert shares[5] == pytest.approx(1)
    assert shares[50] == pytest.approx(0.02)
    middle = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * 20 / 45))
    assert shares[25] == pytest.approx(middle)


def test_a_run_that_died_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    """No signal is caught and nothing is saved: the epoch is repeated from the last state."""
    _fit(Toy(), tmp_path / "whole", epochs=4)
    task = Toy()
    task.dies_at = 14  # in the third epoch
    with pytest.raises(KeyboardInterrupt):
        _fit(task, tmp_path / "parts", epochs=4)
    assert load_state(tmp_path / "parts" / "state.pt")["position"]["epoch"] == 2
    torch.manual_seed(99)
    _fit(Toy(), tmp_path / "parts", resume=True, epochs=4)
    whole, parts = (
        load_state(tmp_path / n / "state.pt")["model"] for n in ("whole", "parts")
    )
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_the_log_is_plain_json_with_tensorboard_beside_it(tmp_path: Path) -> None:
    with RunLog(tmp_path, 10) as log:
        log.scalars(1, loss=math.nan)
        log.resumed(7)
        log.advance(loss=1.0)
        assert log._bar.n == 8
        assert log._bar.initial == 7  # the time left is that of the steps done here
    text = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["loss"] is None
    assert read_log(tmp_path)[0]["step"] == 1
    pytest.importorskip("tensorboard")
    assert list((tmp_path / "tensorboard").glob("events*"))
