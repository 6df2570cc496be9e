"""Long work is a generator of `Progress` that returns its result.

The command line loops over it, napari's `create_worker` runs it in a thread, and cancelling is
closing the generator between two yields. A generator never owns the slide it reads from.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

Result = TypeVar("Result")


class Stage(StrEnum):
    """The stages of the flow, in the words a user reads."""

    OPEN = "open"
    CONVERT = "convert"
    MASK = "mask"
    PATCHES = "patches"
    READ = "read"
    ENCODE = "encode"
    AGGREGATE = "aggregate"
    EXPORT = "export"
    TRAIN = "train"
    VALIDATE = "validate"


@dataclass(frozen=True)
class Progress:
    """One step of long work.

    Attributes:
        stage: What is being done.
        done: Units finished, 0 … `total`.
        total: Units in all; 0 where it is not known.
        message: One short sentence, or empty.
        partial: An intermediate result for viewers (for example a running `SlideResult`), or None.
    """

    stage: Stage
    done: int = 0
    total: int = 0
    message: str = ""
    partial: Any = None

    @property
    def fraction(self) -> float:
        """Share finished, 0 … 1; 0 where the total is not known."""
        return min(self.done / self.total, 1.0) if self.total else 0.0


ProgressGen = Generator[Progress, None, Result]


def finish(
    work: ProgressGen[Result], on_progress: Callable[[Progress], None] | None = None
) -> Result:
    """Run long work to its end and return its result.

    Args:
        work: The generator.
        on_progress: Called with every step.
    """
    while True:
        try:
            step = next(work)
        except StopIteration as end:
            result: Result = end.value
            return result
        if on_progress is not None:
            on_progress(step)
