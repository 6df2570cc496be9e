"""The memory model: counts what autograd keeps, and picks the fastest mode that fits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.config import EncoderSpec
from napari_msamil.errors import ConfigError
from napari_msamil.models import build_encoder
from training.step_memory import (
    StepCost,
    choose_plan,
    cost_table,
    measure_cost,
    memory_budget,
)

CPU = torch.device("cpu")
COST = StepCost(saved=100, selective=30, feature=8, fixed=1000)


@pytest.mark.parametrize(
    ("budget", "mode"),
    [(1e9, "none"), (13_500, "none"), (10_000, "selective"), (4_000, "two-pass")],
)
def test_the_fastest_mode_that_fits_is_chosen(budget: float, mode: str) -> None:
    plan = choose_plan(COST, 100, 10, budget, "bf16")
    assert (plan.mode, plan.precision) == (mode, "bf16")
    assert COST.peak(plan.mode, 100, plan.chunk) <= budget


def test_chunks_shrink_before_it_gives_up() -> None:
    assert choose_plan(COST, 100, 16, 3_400, "fp32").chunk < 16
    with pytest.raises(ConfigError, match="One patch at a time"):
        choose_plan(COST, 100, 16, 1_500, "fp32")


def test_selective_is_not_chosen_where_stages_are_unknown() -> None:
    cost = StepCost(saved=100, selective=None, feature=8, fixed=1000)
    assert choose_plan(cost, 100, 10, 10_000, "fp32").mode == "two-pass"
    assert cost_table(cost, 100, 10)["selective"] == float("inf")


@given(st.integers(1, 500), st.integers(1, 64), st.floats(3e3, 1e6))
@settings(deadline=None, max_examples=60)
def test_a_chosen_plan_always_fits(count: int, chunk: int, budget: float) -> None:
    try:
        plan = choose_plan(COST, count, chunk, budget, "fp32")
    except ConfigError:
        assert COST.peak("two-pass", count, 1) > budget
    else:
        assert COST.peak(plan.mode, count, plan.chunk) <= budget


def test_the_measured_cost_is_what_a_step_saves() -> None:
    """A network whose saved tensors are known: conv and BatchNorm inputs."""
    encoder = build_encoder(
        EncoderSpec(backbone="lcnet_035", dim=8, layers=1, heads=2, ffn=8, grid=1)
    )
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    small, large = (measure_cost(encoder, px, CPU) for px in (32, 64))
    assert 2.5 < large.saved / small.saved < 4.5
    assert small.selective is not None
    assert 0 < small.selective < small.saved
    assert small.fixed == 16 * sum(p.numel() for p in encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_the_users_bound_counts() -> None:
    assert memory_budget(CPU, 2.5) == 2.5e9
    assert memory_budget(CPU) > 0
