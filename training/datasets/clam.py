"""CLAM's label and split tables, read and written.

Labels: `case_id, slide_id, label`, slides named without suffix as a rule. Splits: `splits_<k>.csv`, first column an index,
then `train`, `val`, `test` with slide names, shorter columns empty at the end; `splits_<k>_bool.csv` has one row per
slide and True/False in the three columns; `splits_<k>_descriptor.csv` counts slides per class. (github.com/mahmoodlab/CLAM,
README "Datasets" and "Training Splits".) A spreadsheet may have turned slide names into numbers.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from typing import TYPE_CHECKING

from napari_msamil.errors import CohortError

from ..cohort_table import SPLITS, Cohort, CohortRow, read_table
from ..splits import Splits
from .imported import (
    SLIDE_SUFFIXES,
    Imported,
    ImportOptions,
    clean_id,
    first_file,
    table_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_FILE = re.compile(r"splits_(\d+)\.csv$")


def read(folder: Path, options: ImportOptions | None = None) -> Imported:
    """Rows of a CLAM label table; slides lie in the folder."""
    options = options or ImportOptions()
    found = Imported()
    for line, record in table_of(folder, options, ("dataset.csv", "labels.csv")):
        name = slide_name(record.get("slide_id", ""))
        path = first_file(folder, name, SLIDE_SUFFIXES)
        if path is None:
            found.problems.append(f"line {line}: no slide {name} in {folder}")
            continue
        patient = clean_id(record.get("case_id", "")) or name
        found.rows.append(
            CohortRow(
                name, path, patient, record.get("label", ""), line=line, mpp=options.mpp
            )
        )
    return found.check()


def slide_name(text: str) -> str:
    """A slide's name without a slide suffix."""
    name = clean_id(text)
    suffix = next((s for s in SLIDE_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)] if suffix else name


def read_splits(folder: Path, cohort: Cohort) -> Splits:
    """The folds of a folder of `splits_<k>.csv`.

    Raises:
        CohortError: There are none, they name slides that the cohort does not have, or they do not test each slide once.
    """
    paths = sorted(
        (int(m[1]), p)
        for p in folder.glob("splits_*.csv")
        if (m := _FILE.search(p.name))
    )
    if not paths:
        raise CohortError(
            f"{folder} has no splits_0.csv. Give the folder that holds CLAM's split files."
        )
    folds = []
    for _, path in paths:
        records = [record for _, record in read_table(path)]
        folds.append(
            {
                part: tuple(sorted(_names(r.get(part, "") for r in records)))
                for part in SPLITS
            }
        )
    known = {row.slide_id for row in cohort.rows}
    unknown = sorted(
        {n for fold in folds for names in fold.values() for n in names} - known
    )
    if unknown:
        raise CohortError(
            f"The splits in {folder} name {len(unknown)} slides that {cohort.path} does not have, for example {unknown[0]}."
        )
    _require_tested_once(folder, [fold["test"] for fold in folds], known)
    return Splits(tuple(folds), cohort.identity, 0)


def _require_tested_once(
    folder: Path, parts: Sequence[Sequence[str]], known: set[str]
) -> None:
    """Refuse Monte-Carlo splits: pooled figures count each slide once."""
    tested = Counter(name for names in parts for name in names)
    several = sum(count > 1 for count in tested.values())
    never = len(known - tested.keys())
    if several or never:
        raise CohortError(
            f"The {len(parts)} splits in {folder} test {several} slides several times and {never} never, as CLAM's "
            "create_splits_seq.py draws them (each split anew, Monte-Carlo). Figures are pooled over folds that test each slide "
            "once: draw such folds with --folds, or put one of the splits into the column split of the cohort table."
        )


def write(folder: Path, cohort: Cohort, splits: Splits | None = None) -> list[Path]:
    """Write `dataset.csv` and, for each fold, the three split files of CLAM."""
    folder.mkdir(parents=True, exist_ok=True)
    head = ("case_id", "slide_id", "label")
    rows = [(r.patient_id, r.slide_id, r.label) for r in cohort.rows]
    written = [_write(folder / "dataset.csv", [head, *rows])]
    for number, fold in enumerate(splits.folds if splits else ()):
        written += _write_fold(folder, number, fold, cohort)
    return written


def _write_fold(
    folder: Path, number: int, fold: dict[str, tuple[str, ...]], cohort: Cohort
) -> list[Path]:
    longest = max(len(fold[part]) for part in SPLITS)
    columns = [[*fold[part], *[""] * (longest - len(fold[part]))] for part in SPLITS]
    table = [
        ("", *SPLITS),
        *((i, *cells) for i, cells in enumerate(zip(*columns, strict=True))),
    ]
    place = {name: part for part in SPLITS for name in fold[part]}
    boolean = [
        ("", *SPLITS),
        *((n, *(str(p == part) for part in SPLITS)) for n, p in place.items()),
    ]
    label = {r.slide_id: r.label for r in cohort.rows}
    counts = [
        (c, *(sum(label[n] == c for n in fold[part]) for part in SPLITS))
        for c in cohort.classes
    ]
    return [
        _write(folder / f"splits_{number}.csv", table),
        _write(folder / f"splits_{number}_bool.csv", boolean),
        _write(folder / f"splits_{number}_descriptor.csv", [("", *SPLITS), *counts]),
    ]


def _names(cells: Iterable[str]) -> list[str]:
    return [
        slide_name(cell)
        for cell in cells
        if cell.strip() and cell.strip().lower() != "nan"
    ]


def _write(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    beside = path.with_suffix(".part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    beside.replace(path)
    return path
