"""The training loop without files: for the many small runs of benchmarks and tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .log import RunLog
from .loop import _Run
from .state import BEST, LAST

if TYPE_CHECKING:
    from torch import Tensor

    from .config import LoopSpec
    from .loop import FitResult, Task


def fit_in_memory(task: Task, spec: LoopSpec) -> FitResult:
    """As `loop.fit`, but nothing is written; the network ends with its best weights.

    Where nothing was validated, it ends with the last ones.
    """
    run = _MemoryRun(task, spec)
    result = run.go([])
    if run.kept:
        task.network.load_state_dict(run.kept)
    task.network.eval()
    return result


class _MemoryRun(_Run):
    """A run whose saved states stay in memory."""

    def __init__(self, task: Task, spec: LoopSpec) -> None:
        super().__init__(task, spec, Path(), RunLog(Path(), enabled=False))
        self.kept: dict[str, Tensor] = {}
        self.figures: list[dict[str, float]] = []

    def save(self, name: str = LAST, figures: dict[str, float] | None = None) -> None:
        """Keep the best weights; the last need no copy."""
        if name == BEST:
            weights: dict[str, Any] = self.task.network.state_dict()
            self.kept = {k: v.detach().clone() for k, v in weights.items()}
