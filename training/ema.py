"""The teacher: an exponential moving average of the student, over parameters only.

θ_t ← m θ_t + (1 − m) θ_s (MHIM-MIL supplementary, Algorithm 1). Buffers are never touched, as released.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """A copy of a network that no gradient reaches, in evaluation mode."""
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(requires_grad=False)
    return teacher.eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's by `1 - momentum`.

    Args:
        teacher: Changed in place; same architecture as `student`.
        student: Not changed.
        momentum: m in 0 … 1; 1 leaves the teacher as it is.

    Raises:
        ValueError: The two have different parameters.
    """
    own = dict(teacher.named_parameters())
    new = dict(student.named_parameters())
    if own.keys() != new.keys():
        raise ValueError("teacher and student have different parameters")
    targets: list[torch.Tensor] = [own[name] for name in own]
    sources: list[torch.Tensor] = [new[name].detach() for name in own]
    if targets:
        torch._foreach_lerp_(targets, sources, 1.0 - momentum)
