"""Progress on a terminal: a bar with the time left, on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from napari_msamil.progress import finish

if TYPE_CHECKING:
    from napari_msamil.batch import BatchSummary
    from napari_msamil.progress import Progress, ProgressGen

Result = TypeVar("Result")


class _Bar:
    """One tqdm bar per stage; a new stage closes the old one."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: tqdm[Any] | None = None
        self._stage = ""

    def __call__(self, step: Progress) -> None:
        bar = self._bar_of(step)
        if step.total:
            bar.total = step.total
        bar.update(max(0, step.done - bar.n))
        if step.message:
            bar.set_postfix_str(step.message, refresh=False)

    def _bar_of(self, step: Progress) -> tqdm[Any]:
        if self._bar is None or self._stage != step.stage:
            self.close()
            self._stage = step.stage
            bar: tqdm[Any] = tqdm(
                desc=f"{self._label} {step.stage}",
                total=step.total or None,
                file=sys.stderr,
                leave=False,
                mininterval=0.5,
            )
            self._bar = bar
        return self._bar

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def finish_with_bar(work: ProgressGen[Result], label: str) -> Result:
    """Run long work to its end with a bar per stage."""
    bar = _Bar(label)
    try:
        return finish(work, bar)
    finally:
        bar.close()


def finish_batch(work: ProgressGen[BatchSummary]) -> BatchSummary:
    """Classify many slides with one bar, and say at the end what was done and which slides failed, with the reason."""
    summary = finish_with_bar(work, "slides")
    for row in summary.rows:
        if row.error:
            sys.stderr.write(f"{row.slide}: {row.error}\n")
        elif row.prediction:
            sys.stderr.write(f"{row.slide}: {row.prediction} ({row.probability:.3f})\n")
    sys.stderr.write(summary.sentence + "\n")
    return summary
