"""The training loop without files: for the many small runs of benchmarks and tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .log import RunLog
from .loop import FitResult, Task, TrainingRun
from .state import BEST, LAST

if TYPE_CHECKING:
    from torch import Tensor

    from .config import LoopSpec


@dataclass(frozen=True)
class MemoryFit:
    """How a run without files ended.

    Attributes:
        result: As of `loop.fit`.
        curve: Validation figures, one entry per validation.
    """

    result: FitResult
    curve: tuple[dict[str, float], ...]


def fit_in_memory(task: Task, spec: LoopSpec) -> MemoryFit:
    """As `loop.fit`, but nothing is written; the network ends with its best weights.

    Where nothing was validated, it ends with the last ones.
    """
    run = _MemoryRun(task, spec)
    result = run.go([])
    if run.kept:
        task.network.load_state_dict(run.kept)
    task.network.eval()
    return MemoryFit(result, tuple(run.log.curve))


class _CurveLog(RunLog):
    """A log that writes nothing and keeps the validation figures."""

    def __init__(self) -> None:
        super().__init__(Path(), enabled=False)
        self.curve: list[dict[str, float]] = []

    def scalars(self, step: int, **values: float) -> None:
        """Keep figures of validations; those of single steps are dropped."""
        if "loss" not in values:
            self.curve.append({"step": step, **values})


class _MemoryRun(TrainingRun):
    """A run whose saved states stay in memory."""

    log: _CurveLog

    def __init__(self, task: Task, spec: LoopSpec) -> None:
        super().__init__(task, spec, Path(), _CurveLog())
        self.kept: dict[str, Tensor] = {}

    def save(self, name: str = LAST, figures: dict[str, float] | None = None) -> None:
        """Keep the best weights; the last need no copy."""
        if name == BEST:
            weights: dict[str, Tensor] = self.task.network.state_dict()
            self.kept = {k: v.detach().clone() for k, v in weights.items()}
