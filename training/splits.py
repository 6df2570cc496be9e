"""Patient-grouped, label-stratified folds, written to a file that carries its own hash.

Each fold has train, val and test; the test parts of all folds together are the cohort. A broken split (a patient in
two parts, a slide that is missing, an edited file, another cohort) is refused before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import CohortError, ConfigError

from .cohort_table import SPLITS, patients_in_several, raise_problems

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from .cohort_table import Cohort

FORMAT = "msamil-splits/1"


@dataclass(frozen=True)
class Splits:
    """Folds of one cohort.

    Attributes:
        folds: For each fold the slide names of `train`, `val` and `test`.
        cohort: Identity of the cohort they were made for.
        seed: Seed they were drawn with.
    """

    folds: tuple[dict[str, tuple[str, ...]], ...]
    cohort: str
    seed: int

    @property
    def sha256(self) -> str:
        """Hash of the content, independent of the file's layout."""
        return hashlib.sha256(
            json.dumps(self._content(), sort_keys=True).encode()
        ).hexdigest()

    def split_of(self, fold: int) -> dict[str, str]:
        """Which part each slide lies in, by slide name."""
        return {
            name: part for part, names in self.folds[fold].items() for name in names
        }

    def _content(self) -> dict[str, Any]:
        folds = [
            {part: list(names) for part, names in fold.items()} for fold in self.folds
        ]
        return {
            "format": FORMAT,
            "cohort": self.cohort,
            "seed": self.seed,
            "folds": folds,
        }


def make_splits(
    cohort: Cohort, n_folds: int = 5, *, val_share: float = 0.15, seed: int = 0
) -> Splits:
    """Draw folds: all slides of a patient in one part, classes in equal shares as far as patients allow.

    Args:
        cohort: A labelled cohort.
        n_folds: Number of folds, at least 2.
        val_share: Share of each fold's remaining slides that becomes its validation part, at most a half.
        seed: Seed of the draw.

    Raises:
        CohortError: A class has fewer patients than there are folds, or a validation part cannot be drawn.
        ConfigError: The validation part would be empty, or larger than the training part.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    _check_enough_patients(cohort, n_folds)
    outer = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    drawn = outer.split(*_arrays(cohort))
    return _with_validation(cohort, (test for _, test in drawn), val_share, seed)


def splits_of_column(
    cohort: Cohort, *, val_share: float = 0.15, seed: int = 0
) -> Splits:
    """The folds of the column `fold`, each number a test part in ascending order; validation parts are drawn.

    Args:
        cohort: A labelled cohort whose rows all have a fold.
        val_share: As in `make_splits`.
        seed: Seed of the draw of the validation parts.

    Raises:
        CohortError: A row has no fold, a patient lies in several, or outside of a fold a class has too few patients.
        ConfigError: The validation part would be empty, or larger than the training part.
    """
    import numpy as np

    problems = [f"line {r.line}: no fold" for r in cohort.rows if r.fold is None]
    raise_problems(cohort.path, problems)
    numbers = folds_of_column(cohort)
    if len(numbers) < 2:
        problems.append("the column fold has one number only: at least 2 are needed")
    problems += [
        f"patient {patient} lies in several folds"
        for patient in patients_in_several(cohort.rows, "fold")
    ]
    for number in numbers:
        rest = [r for r in cohort.rows if r.fold != number]
        for label in cohort.classes:
            count = len({r.patient_id for r in rest if r.label == label})
            if count < 2:
                problems.append(
                    f"class {label} has {count} patients outside of fold {number}; training and validation need at least 2"
                )
    raise_problems(cohort.path, problems)
    column = np.array([r.fold for r in cohort.rows])
    tests = (np.flatnonzero(column == number) for number in numbers)
    return _with_validation(cohort, tests, val_share, seed)


def folds_of_column(cohort: Cohort) -> list[int]:
    """The numbers in the column `fold`, ascending."""
    return sorted({r.fold for r in cohort.rows if r.fold is not None})


def _arrays(
    cohort: Cohort,
) -> tuple[NDArray[np.str_], NDArray[np.int64], NDArray[np.str_]]:
    """Name, class and patient of each slide."""
    import numpy as np

    names = np.array([r.slide_id for r in cohort.rows])
    patients = np.array([r.patient_id for r in cohort.rows])
    return names, np.array(cohort.labels(cohort.rows), np.int64), patients


def _with_validation(
    cohort: Cohort, tests: Iterable[NDArray[np.int64]], val_share: float, seed: int
) -> Splits:
    """Folds with these test parts; of the other slides a validation part is drawn."""
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    if not 0 < val_share <= 0.5:
        raise ConfigError(
            f"The share of validation slides is {val_share:g}, not above 0 and at most 0.5. Thresholds, early stopping and "
            "calibration need some, and most are to be trained on; 0.15 is usual."
        )
    names, labels, patients = _arrays(cohort)
    folds = []
    for number, test in enumerate(tests):
        rest = np.setdiff1d(np.arange(len(names)), test)
        # no more parts than the rarest class has patients left, so that each part can have it
        fewest = min(len(set(patients[rest][labels[rest] == c])) for c in set(labels))
        parts = max(min(round(1 / val_share), fewest), 2)
        inner = StratifiedGroupKFold(parts, shuffle=True, random_state=seed + number)
        train, val = next(iter(inner.split(names[rest], labels[rest], patients[rest])))
        picked = {"train": rest[train], "val": rest[val], "test": test}
        folds.append(
            {part: tuple(sorted(names[rows].tolist())) for part, rows in picked.items()}
        )
    splits = Splits(tuple(folds), cohort.identity, seed)
    check_splits(cohort, splits)
    return splits


def check_splits(cohort: Cohort, splits: Splits, path: Path | None = None) -> None:
    """Refuse a split that leaks, is incomplete, or belongs to another cohort; all problems at once.

    Raises:
        CohortError: Anything is wrong.
    """
    problems = []
    if splits.cohort != cohort.identity:
        problems.append(
            "the splits were made for another cohort, or slides, patients or labels have changed: draw them anew"
        )
    known = {row.slide_id for row in cohort.rows}
    tested: Counter[str] = Counter()
    for number, fold in enumerate(splits.folds):
        problems += _check_fold(cohort, number, fold, known)
        tested.update(fold.get("test", ()))
    problems += [
        f"slide {name} is tested in more than one fold" for name in _repeated(tested)
    ]
    problems += [
        f"slide {name} is tested in no fold" for name in sorted(known - set(tested))
    ]
    raise_problems(path or cohort.path, problems)


def write_splits(path: Path, splits: Splits) -> Path:
    """Write the file with its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    content = {**splits._content(), "sha256": splits.sha256}
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)
    return path


def read_splits(path: Path) -> Splits:
    """Read a split file.

    Raises:
        CohortError: The file is missing, of another format, or was changed after it was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise CohortError(
                f"{path} is no split file of this version. Draw it with msamil-train cohort --folds."
            )
        folds = tuple(
            {part: tuple(fold[part]) for part in SPLITS} for fold in content["folds"]
        )
        splits = Splits(folds, content["cohort"], int(content["seed"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CohortError(
            f"The splits {path} cannot be read ({error}). Draw them with msamil-train cohort --folds."
        ) from error
    if content.get("sha256") != splits.sha256:
        raise CohortError(
            f"The splits {path} were changed after they were drawn. Draw them anew, or restore the file."
        )
    return splits


def apply_splits(cohort: Cohort, path: Path, fold: int | None) -> Cohort:
    """The cohort with the parts of one fold in place of its column `split`.

    Raises:
        CohortError: The split is broken, or has no such fold.
    """
    splits = read_splits(path)
    check_splits(cohort, splits, path)
    if fold is None or not 0 <= fold < len(splits.folds):
        raise CohortError(
            f"{path} has the folds 0 … {len(splits.folds) - 1}, not {fold}. Choose one with --fold."
        )
    return cohort.with_splits(splits.split_of(fold))


def _check_fold(
    cohort: Cohort, number: int, fold: dict[str, tuple[str, ...]], known: set[str]
) -> list[str]:
    everywhere = Counter(name for part in SPLITS for name in fold.get(part, ()))
    where = f"fold {number}:"
    problems = [f"{where} slide {n} lies in two parts" for n in _repeated(everywhere)]
    problems += [
        f"{where} slide {n} is not in the cohort"
        for n in sorted(set(everywhere) - known)
    ]
    problems += [f"{where} the part {p} is empty" for p in SPLITS if not fold.get(p)]
    placed = cohort.with_splits(
        {n: part for part in SPLITS for n in fold.get(part, ())}
    )
    for patient, parts in patients_in_several(placed.rows, "split").items():
        problems.append(
            f"{where} patient {patient} lies in {' and '.join(sorted(parts))}"
        )
    return problems


def _repeated(names: Counter[str]) -> list[str]:
    return sorted(name for name, count in names.items() if count > 1)


def _check_enough_patients(cohort: Cohort, n_folds: int) -> None:
    problems = []
    if n_folds < 2:
        problems.append(f"{n_folds} folds: at least 2 are needed")
    for label in cohort.classes:
        count = len({r.patient_id for r in cohort.rows if r.label == label})
        if count < n_folds + 1:
            problems.append(
                f"class {label} has {count} patients; {n_folds} folds with validation need at least {n_folds + 1}"
            )
    raise_problems(cohort.path, problems)


def count_parts(
    cohort: Cohort, splits: Splits
) -> list[tuple[int, str, int, list[int]]]:
    """For each fold and part: slides in all, and per class."""
    label_of = {r.slide_id: cohort.label_index(r) for r in cohort.rows}
    table = []
    for number, fold in enumerate(splits.folds):
        for part in SPLITS:
            found = [label_of[name] for name in fold[part]]
            table.append(
                (
                    number,
                    part,
                    len(found),
                    [found.count(c) for c in range(len(cohort.classes))],
                )
            )
    return table
