"""Predictions of one or several runs, read back from their `predictions.csv`.

Columns: `slide_id, patient_id, split, label, prediction, p_<class> …` and, where folds were joined, `fold`.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
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

    def repeated(self) -> list[str]:
        """Names of slides that occur more than once, sorted."""
        count = Counter(self.slide_ids)
        return sorted(name for name, n in count.items() if n > 1)

    def aligned_with(self, other: Predictions) -> Self:
        """The same slides in the order of another run.

        Raises:
            CohortError: The runs are of different slides, classes or folds, or hold a slide twice.
        """
        repeated = self.repeated() or other.repeated()
        if repeated:
            raise CohortError(
                f"A run that is compared holds {len(repeated)} slides twice, for example {repeated[0]}. Compare one split of "
                "one cross-validation with the same of another."
            )
        place = {name: i for i, name in enumerate(self.slide_ids)}
        missing = [name for name in other.slide_ids if name not in place]
        if missing or len(self) != len(other) or self.classes != other.classes:
            what = f", for example {missing[0]}" if missing else ""
            raise CohortError(
                f"The two runs were not made on the same slides and classes{what}. Compare runs of one cohort and split."
            )
        same = self.take([place[name] for name in other.slide_ids])
        if len(set(self.folds)) > 1 and len(set(other.folds)) > 1:
            _check_same_folds(same, other)
        return same


def read_predictions(path: Path, fold: int = 0) -> Predictions:
    """Read one table.

    Args:
        path: `predictions.csv`.
        fold: Fold of its slides, where the table has no column `fold`.

    Raises:
        CohortError: The file is missing or no table of predictions, or a fold or a probability is no number.
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
        folds=tuple(_fold(path, n, r.get("fold", ""), fold) for n, r in records),
        labels=np.array(
            [classes.index(r["label"]) if r.get("label") else -1 for r in rows],
            np.int64,
        ),
        probabilities=np.array(
            [[_number(path, n, r[_PREFIX + c]) for c in classes] for n, r in records]
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


def _check_same_folds(first: Predictions, second: Predictions) -> None:
    """Raise where a slide was predicted in another fold: its training slides were others, too."""
    pairs = zip(first.slide_ids, first.folds, second.folds, strict=True)
    other = [f"{name} (fold {b} and fold {a})" for name, a, b in pairs if a != b]
    if other:
        raise CohortError(
            f"The two runs have {len(other)} slides in different folds, for example {other[0]}. Compare cross-validations "
            "of one split file."
        )


def _fold(path: Path, line: int, text: str, fold: int) -> int:
    """A whole number; Excel's `1.0` is 1."""
    try:
        value = float(text or fold)
    except ValueError:
        value = math.nan
    if not value.is_integer() or value < 0:
        raise CohortError(
            f"The predictions {path} have the fold {text!r} in line {line}. Write a whole number from 0."
        )
    return int(value)


def _number(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CohortError(
            f"The predictions {path} have {text!r} in line {line} where a probability should be. Predict that slide anew, "
            "or take the line out."
        )
    return value
