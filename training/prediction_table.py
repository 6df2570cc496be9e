"""Predictions of one or several runs, read back from their `predictions.csv`.

Columns: `slide_id, patient_id, split, label, prediction, p_<class> …` and, where folds were joined, `fold`.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from napari_msamil.errors import CohortError

from .cohort_table import read_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_PREFIX = "p_"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities and truth of N slides.

    Attributes:
        classes: Class names in the order of the columns.
        slide_ids: (N,) names.
        patients: (N,) patients; the slide's name where it is not known.
        splits: (N,) `train`, `val`, `test` or empty.
        folds: (N,) fold the slide was predicted in, 0 where there is one run only.
        labels: int64 (N,) true class; −1 where it is not known.
        probabilities: float64 (N, C).
    """

    classes: tuple[str, ...]
    slide_ids: tuple[str, ...]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    folds: tuple[int, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.slide_ids)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Class with the largest probability (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Self:
        """Some of the slides, in the given order."""
        index = np.asarray(rows, int)
        return replace(
            self,
            slide_ids=tuple(self.slide_ids[i] for i in index),
            patients=tuple(self.patients[i] for i in index),
            splits=tuple(self.splits[i] for i in index),
            folds=tuple(self.folds[i] for i in index),
            labels=self.labels[index],
            probabilities=self.probabilities[index],
        )

    def part(self, split: str) -> Self:
        """The slides of one split."""
        return self.take([i for i, s in enumerate(self.splits) if s == split])

    def fold(self, number: int) -> Self:
        """The slides predicted in one fold."""
        return self.take([i for i, f in enumerate(self.folds) if f == number])

    def labelled(self) -> Self:
        """The slides whose class is known."""
        return self.take(np.nonzero(self.labels >= 0)[0])

    def aligned_with(self, other: Predictions) -> Self:
        """The same slides in the order of another run.

        Raises:
            CohortError: The runs are of different slides or classes.
        """
        place = {name: i for i, name in enumerate(self.slide_ids)}
        missing = [name for name in other.slide_ids if name not in place]
        if missing or len(self) != len(other) or self.classes != other.classes:
            what = f", for example {missing[0]}" if missing else ""
            raise CohortError(
                f"The two runs were not made on the same slides and classes{what}. Compare runs of one cohort and split."
            )
        return self.take([place[name] for name in other.slide_ids])


def read_predictions(path: Path, fold: int = 0) -> Predictions:
    """Read one table.

    Args:
        path: `predictions.csv`.
        fold: Fold of its slides, where the table has no column `fold`.

    Raises:
        CohortError: The file is missing or no table of predictions; all problems are listed.
    """
    records = read_table(path)
    classes = tuple(
        c.removeprefix(_PREFIX) for c in records[0][1] if c.startswith(_PREFIX)
    )
    if len(classes) < 2 or "slide_id" not in records[0][1]:
        raise CohortError(
            f"{path} is no table of predictions: it needs slide_id and p_<class> for at least two classes."
        )
    problems = [
        f"line {line}: unknown label {r['label']!r}"
        for line, r in records
        if r.get("label") and r["label"] not in classes
    ]
    if problems:
        raise CohortError(
            f"The predictions {path} are wrong:\n  " + "\n  ".join(problems)
        )
    rows = [record for _, record in records]
    return Predictions(
        classes=classes,
        slide_ids=tuple(r["slide_id"] for r in rows),
        patients=tuple(r.get("patient_id") or r["slide_id"] for r in rows),
        splits=tuple(r.get("split", "") for r in rows),
        folds=tuple(int(r.get("fold") or fold) for r in rows),
        labels=np.array(
            [classes.index(r["label"]) if r.get("label") else -1 for r in rows],
            np.int64,
        ),
        probabilities=np.array(
            [[_number(path, r[_PREFIX + c]) for c in classes] for r in rows]
        ),
    )


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Several tables one behind the other.

    Raises:
        CohortError: Their classes differ.
    """
    if len({p.classes for p in parts}) != 1:
        raise CohortError("The runs have different classes. Join runs of one recipe.")
    return Predictions(
        classes=parts[0].classes,
        slide_ids=tuple(s for p in parts for s in p.slide_ids),
        patients=tuple(s for p in parts for s in p.patients),
        splits=tuple(s for p in parts for s in p.splits),
        folds=tuple(f for p in parts for f in p.folds),
        labels=np.concatenate([p.labels for p in parts]),
        probabilities=np.concatenate([p.probabilities for p in parts]),
    )


def save_predictions(path: Path, found: Predictions) -> Path:
    """Write a table that `read_predictions` reads back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ("slide_id", "patient_id", "split", "fold", "label", "prediction")
        writer.writerow((*head, *(_PREFIX + c for c in found.classes)))
        predicted = found.predicted
        for i, name in enumerate(found.slide_ids):
            label = found.classes[found.labels[i]] if found.labels[i] >= 0 else ""
            cells = (name, found.patients[i], found.splits[i], found.folds[i], label)
            values = (f"{p:.6f}" for p in found.probabilities[i])
            writer.writerow((*cells, found.classes[predicted[i]], *values))
    beside.replace(path)
    return path


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise CohortError(
            f"The predictions {path} hold {text!r} where a probability should be."
        ) from error
