"""The worklist without its window: slides, their answers, and what a person says to them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.progress import Progress, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from napari_msamil.batch import BatchOptions, SlideJob, SlideRow
    from napari_msamil.progress import ProgressGen

LABEL_COLUMNS = (
    "slide_id",
    "path",
    "patient_id",
    "label",
    "mask",
    "mpp",
    "prediction",
    "probability",
    "verdict",
    "comment",
)
"""The first are those of a cohort table; msamil-train ignores the rest."""


@dataclass(frozen=True)
class Entry:
    """One row of the worklist.

    Attributes:
        job: The slide.
        row: How it went, or None: not yet.
        verdict: `agree`, `disagree` or empty.
        label: The class a person gives; for `agree` the prediction.
        comment: Free text.
        patient: Patient the slide belongs to; slides of one patient stay together in training.
    """

    job: SlideJob
    row: SlideRow | None = None
    verdict: str = ""
    label: str = ""
    comment: str = ""
    patient: str = ""

    @property
    def done(self) -> bool:
        """Whether there is an answer."""
        return self.row is not None and self.row.status in ("done", "skipped")

    @property
    def final_label(self) -> str:
        """The class to learn from, or empty."""
        if self.verdict == "agree" and self.row is not None:
            return self.row.prediction
        return self.label if self.verdict == "disagree" else ""


@dataclass(frozen=True)
class QueueState:
    """How far a queue is: rows by slide name, the slide under way and how far it is."""

    rows: dict[str, SlideRow]
    current: str = ""
    fraction: float = 0.0


def uncertainty(probabilities: dict[str, float]) -> float:
    """Entropy of the class probabilities, 0 (sure) … 1 (any class)."""
    values = np.array([p for p in probabilities.values() if p > 0])
    if len(probabilities) < 2:
        return 0.0
    return float(-(values * np.log(values)).sum() / np.log(len(probabilities)))


def read_entries(words: Sequence[str | Path]) -> list[Entry]:
    """Slides of files, folders and cohort tables; the patients of tables are kept.

    Raises:
        ConfigError: Nothing is found.
    """
    from napari_msamil.batch_inputs import find_slides

    patients = dict[str, str]()
    for word in words:
        if str(word).lower().endswith(".csv"):
            patients |= _patients(word)
    return [
        Entry(job, patient=patients.get(job.path.stem, ""))
        for job in find_slides(words)
    ]


def _patients(table: str | Path) -> dict[str, str]:
    from pathlib import Path

    with Path(table).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = ("path", "slide_path", "file", "slide")
    found = {}
    for line in rows:
        slide = next((line[n] for n in names if line.get(n)), "")
        if slide and line.get("patient_id"):
            found[Path(slide).stem] = line["patient_id"]
    return found


def queue_steps(
    jobs: Sequence[SlideJob], options: BatchOptions
) -> ProgressGen[QueueState]:
    """Classify slides one after the other; finished ones are taken from disk, a bad one stops nothing.

    Args:
        jobs: The slides.
        options: Model, output folder, device.

    Yields:
        Progress in slides with a `QueueState` as `partial`.
    """
    from napari_msamil.batch_job import finished_row, job_steps
    from napari_msamil.checkpoint import resolve_model, sha256_of

    model = resolve_model(options.model)
    options = replace(options, model=str(model), model_sha256=sha256_of(model))
    rows = dict[str, "SlideRow"]()
    for position, job in enumerate(jobs):
        row = finished_row(job, options)
        steps = job_steps(job, options)
        while row is None:
            try:
                step = next(steps)
            except StopIteration as end:
                row = end.value
            else:
                state = QueueState(dict(rows), job.name, step.fraction)
                yield Progress(Stage.ENCODE, position, len(jobs), partial=state)
        rows[job.name] = row
        yield Progress(
            Stage.ENCODE, position + 1, len(jobs), partial=QueueState(dict(rows))
        )
    return QueueState(rows)


def write_labels(entries: Sequence[Entry], path: Path) -> int:
    """Write the slides a person has judged as a cohort table that msamil-train reads.

    Returns:
        How many slides were written.
    """
    judged = [entry for entry in entries if entry.final_label]
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LABEL_COLUMNS)
        writer.writeheader()
        for entry in judged:
            writer.writerow(_label_row(entry))
    part.replace(path)
    return len(judged)


def _label_row(entry: Entry) -> dict[str, object]:
    row, job = entry.row, entry.job
    return {
        "slide_id": job.name,
        "path": str(job.path.resolve()),
        "patient_id": entry.patient or job.name,
        "label": entry.final_label,
        "mask": str(job.mask.resolve()) if job.mask else "",
        "mpp": "" if job.mpp is None else f"{job.mpp:.6g}",
        "prediction": row.prediction if row else "",
        "probability": f"{row.probability:.6g}" if row else "",
        "verdict": entry.verdict,
        "comment": entry.comment,
    }


def thumbnail_steps(
    jobs: Sequence[SlideJob], side_px: int = 64
) -> ProgressGen[dict[str, np.ndarray]]:
    """Small pictures of slides by name; a slide that cannot be opened has none."""
    from napari_msamil.errors import MsamilError
    from napari_msamil.slide import open_slide

    found = dict[str, np.ndarray]()
    for position, job in enumerate(jobs):
        try:
            with open_slide(job.path, mpp=job.mpp) as slide:
                width, height = slide.info.size_wh0
                factor = side_px / max(width, height)
                size = max(1, round(width * factor)), max(1, round(height * factor))
                found[job.name] = slide.thumbnail(size)
        except MsamilError:
            continue
        yield Progress(Stage.READ, position + 1, len(jobs), partial=dict(found))
    return found
