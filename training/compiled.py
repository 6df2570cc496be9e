"""The compiled encoder: one graph for one shape, checked before hours are spent."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from napari_msamil.device import require_compiler
from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from .config import E2ESpec
    from .gradients import StepPlan


def compiled_plan(plan: StepPlan, count: int, spec: E2ESpec) -> StepPlan:
    """The plan for a compiled encoder: every call has the same number of patches.

    Short calls are filled up, but not under batch statistics, which the filling would change.

    Args:
        plan: Mode and chunk.
        count: Patches of a step on this rank.
        spec: The run's settings.

    Raises:
        ConfigError: The mode takes the encoder apart.
    """
    if plan.mode == "selective":
        raise ConfigError(
            "e2e.compile = true does not go with e2e.memory = 'selective', which replaces stages of the encoder. "
            "Use 'none', 'chunked' or 'two-pass'."
        )
    if spec.batchnorm != "frozen":
        return plan
    return replace(plan, pad=count if plan.mode == "none" else plan.chunk)


def compile_encoder(encoder: nn.Module, *, fixed: bool) -> None:
    """Compile an encoder in place; its weights keep their names. The first steps then take minutes.

    Args:
        encoder: Pixels → features.
        fixed: Whether all calls have one shape.

    Raises:
        ConfigError: torch cannot compile on this machine.
    """
    parameter = next(encoder.parameters())
    require_compiler(str(parameter.device), "set e2e.compile = false")
    encoder.compile(dynamic=False if fixed else None)
