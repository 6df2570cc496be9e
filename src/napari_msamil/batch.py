"""Many slides: what is finished is skipped, a bad one stops nothing, and a summary says how each one went."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from napari_msamil.batch_inputs import SlideJob, find_slides
from napari_msamil.batch_job import BatchOptions, SlideRow, finished_row, job_steps
from napari_msamil.folders import beside, sweep
from napari_msamil.progress import Progress, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from napari_msamil.progress import ProgressGen

__all__ = ["BatchOptions", "BatchSummary", "SlideJob", "SlideRow", "classify_many"]

SUMMARY = "summary.csv"


@dataclass
class BatchSummary:
    """How a run went.

    Attributes:
        rows: One per slide, in the order they were finished.
        seconds: Wall time of the run.
    """

    rows: list[SlideRow] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        """Slides without an answer."""
        return self._count("failed")

    @property
    def done(self) -> int:
        """Slides classified in this run."""
        return self._count("done")

    @property
    def skipped(self) -> int:
        """Slides that were finished before."""
        return self._count("skipped")

    @property
    def sentence(self) -> str:
        """One line for people."""
        parts = [f"{self.done} classified"]
        if self.skipped:
            parts.append(f"{self.skipped} finished before")
        if self.failed:
            parts.append(f"{self.failed} FAILED")
        return f"{', '.join(parts)}, in {self.seconds:.1f} s"

    def _count(self, status: str) -> int:
        return sum(row.status == status for row in self.rows)


def classify_many(
    paths: Sequence[str | Path], options: BatchOptions
) -> ProgressGen[BatchSummary]:
    """Classify slides, each into a folder of its own.

    Args:
        paths: Files, DICOM folders, folders, globs or cohort tables.
        options: How.

    Yields:
        Progress in slides, with rates and the time left as message.

    Returns:
        The summary, also written to `summary.csv`.

    Raises:
        ConfigError: The call is wrong: nothing matches, or an option does not fit.
        CheckpointError: The model cannot be used.
    """
    from napari_msamil.checkpoint import resolve_model, sha256_of

    start = time.perf_counter()
    jobs = find_slides(paths, options.mask, options.mpp)
    model = resolve_model(options.model)
    options = replace(options, model=str(model), model_sha256=sha256_of(model))
    options.output.mkdir(parents=True, exist_ok=True)
    sweep(options.output / SUMMARY)
    summary, todo = BatchSummary(), list[SlideJob]()
    for job in jobs:
        row = finished_row(job, options)
        if row is None:
            todo.append(job)
        else:
            summary.rows.append(row)
    meter = _Meter(len(todo))
    for event in _run(todo, options):
        if isinstance(event, SlideRow):
            summary.rows.append(event)
            meter.count(event)
            _write_summary(summary.rows, options.output / SUMMARY)
        elif event is not None:
            meter.step(*event)
        yield Progress(Stage.ENCODE, len(summary.rows), len(jobs), meter.message)
    _write_summary(summary.rows, options.output / SUMMARY)
    summary.seconds = time.perf_counter() - start
    return summary


def _run(
    jobs: list[SlideJob], options: BatchOptions
) -> Iterator[SlideRow | tuple[str, Progress] | None]:
    """Rows as slides finish; in between, steps of slides under way (name, step), or None where they are not known."""
    if options.cluster:
        from napari_msamil.batch_cluster import run_on_cluster

        yield from run_on_cluster(jobs, options)
    elif options.workers > 1 and len(jobs) > 1:
        from napari_msamil.batch_pool import run_in_pool

        yield from run_in_pool(jobs, options)
    else:
        for job in jobs:
            yield from _run_here(job, options)


def _run_here(
    job: SlideJob, options: BatchOptions
) -> Iterator[SlideRow | tuple[str, Progress]]:
    steps = job_steps(job, options)
    while True:
        try:
            yield job.name, next(steps)
        except StopIteration as end:
            row: SlideRow = end.value
            yield row
            return


class _Meter:
    """Rates and time left; slides under way count by the share of their patches that is done."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = time.perf_counter()
        self._now = ""
        self._finished = self._encoded = 0
        self._read_s = self._encode_s = 0.0
        self._under_way: dict[str, tuple[Progress, Progress]] = {}

    def count(self, row: SlideRow) -> None:
        """A slide is finished; what its first step found in the cache was not encoded."""
        first, _ = self._under_way.pop(row.slide, (None, None))
        self._finished += 1
        if row.status != "failed":
            self._encoded += row.patches - (first.done if first else 0)
        self._read_s += row.read_s
        self._encode_s += row.encode_s

    def step(self, name: str, step: Progress) -> None:
        """A slide went on."""
        self._now = f"{name}: {step.stage} {step.done}/{step.total}"
        if step.stage is Stage.ENCODE:
            first, _ = self._under_way.get(name, (step, step))
            self._under_way[name] = first, step

    @property
    def message(self) -> str:
        """For example `a: encode 7/90 · 120 slides/h · 41 patches/s (read 300, encode 45) · 3 min left`."""
        parts = [self._now] if self._now else []
        seconds = max(time.perf_counter() - self._start, 1e-9)
        live = self._under_way.values()
        slides = self._finished + sum(now.fraction for _, now in live)
        encoded = self._encoded + sum(now.done - first.done for first, now in live)
        if slides:
            left = (self._total - slides) * seconds / slides
            parts += [
                f"{3600 * slides / seconds:.0f} slides/h",
                f"{encoded / seconds:.0f} patches/s{self._split}",
                f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left",
            ]
        return " · ".join(parts)

    @property
    def _split(self) -> str:
        """The pace of reading and of encoding, each for itself, on the slides that are finished."""
        if not self._finished:
            return ""
        read = _rate(self._encoded, self._read_s)
        return f" (read {read}, encode {_rate(self._encoded, self._encode_s)})"


def _rate(count: int, seconds: float) -> str:
    return f"{count / seconds:.0f}" if seconds > 0 else "cached"


def _write_summary(rows: Iterable[SlideRow], path: Path) -> None:
    """Rewrite the table beside, then rename; rows of slides of earlier runs stay."""
    table = {**_old_rows(path), **{row.slide: _cells(row) for row in rows}}
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    part = beside(path, "part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(table.values())
        part.replace(path)
    finally:  # also where Ctrl-C came in between
        part.unlink(missing_ok=True)


def _old_rows(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["slide"]: dict(row) for row in csv.DictReader(file)}


def _cells(row: SlideRow) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "slide": row.slide,
        "status": "failed" if row.status == "failed" else "done",
        "prediction": row.prediction,
        "probability": f"{row.probability:.6f}" if row.prediction else "",
        "patches": row.patches,
        "seconds": f"{row.seconds:.2f}",
        "error": row.error,
        "warnings": " | ".join(row.warnings),
        "path": row.path,
    }
    for name, value in row.probabilities.items():
        cells[f"probability_{name}"] = f"{value:.6f}"
    return cells
