"""Values that change with the step: plain functions, so that resuming needs only the step number."""

from __future__ import annotations

import math
from enum import StrEnum


class MomentumSchedule(StrEnum):
    """How the teacher's momentum changes."""

    CONSTANT = "constant"
    COSINE = "cosine"


def cosine_decay(start: float, step: int, total: int) -> float:
    """`start` · ½ (1 + cos(π step / total)): `start` at step 0, 0 from `total` on.

    The high mask ratio follows it per iteration (MHIM-MIL supplementary section 2.1, "mask ratio decay"),
    the learning rate per epoch (section 4).
    """
    if total <= 0:
        return start
    return start * 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))


def momentum_at(
    schedule: MomentumSchedule, start: float, step: int, total: int
) -> float:
    """The teacher's momentum: constant, or rising from `start` to 1 along a cosine.

    The second is in two of the four published recipes though the supplementary does not mention it.
    """
    if schedule is MomentumSchedule.CONSTANT:
        return start
    return 1.0 - cosine_decay(1.0 - start, step, total)
