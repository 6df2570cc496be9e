"""The cohort table: what it must hold, how it is read, checked and written.

A cohort is one CSV: `slide_id, path, patient_id, label, mask, split, mpp` (or `fold` instead of `split`). Paths are
relative to the table. `mask`, `split`, `fold` and `mpp` may be empty or missing. All problems are listed at once, with
the number of the line in the file.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from napari_msamil.errors import CohortError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COLUMNS = ("slide_id", "path", "patient_id", "label", "mask", "split", "fold", "mpp")
SPLITS = ("train", "val", "test")
PLAUSIBLE_MPP = (0.05, 50.0)
MAX_SHOWN = 40
"""Problems written out in one message; the rest is counted."""


@dataclass(frozen=True)
class CohortRow:
    """One slide of a cohort.

    Attributes:
        slide_id: Unique name; result folders and bags are named by it.
        path: The slide, absolute.
        patient_id: Slides of one patient stay together in every split.
        label: Class name, or empty where it is not known.
        mask: Lesion mask or annotation file, absolute, or None.
        split: `train`, `val`, `test` or empty.
        fold: Test fold 0, 1, …, or None.
        mpp: µm per level-0 pixel given by the user, or None: the slide knows.
        line: Line in the table, counted from 1 with the header.
    """

    slide_id: str
    path: Path
    patient_id: str
    label: str
    mask: Path | None = None
    split: str = ""
    fold: int | None = None
    mpp: float | None = None
    line: int = 0


@dataclass(frozen=True)
class Cohort:
    """A checked cohort.

    Attributes:
        path: The table.
        rows: All slides in the order of the table.
        classes: Class names in the order of the logits.
    """

    path: Path
    rows: tuple[CohortRow, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, split: str) -> tuple[CohortRow, ...]:
        """The slides of one split, `train`, `val` or `test`."""
        return tuple(row for row in self.rows if row.split == split)

    def label_index(self, row: CohortRow) -> int:
        """Index of a row's class among the logits."""
        return self.classes.index(row.label)

    def labels(self, rows: Iterable[CohortRow]) -> list[int]:
        """Class index of each row."""
        return [self.label_index(row) for row in rows]

    @property
    def data_hash(self) -> str:
        """Hash of what was learnt from: slide, patient, label and split of every row, whatever the folder."""
        return _hash_of(
            f"{r.slide_id}\t{r.patient_id}\t{r.label}\t{r.split}" for r in self.rows
        )

    @property
    def identity(self) -> str:
        """Hash of slides, patients and labels alone: what a split file belongs to."""
        return _hash_of(f"{r.slide_id}\t{r.patient_id}\t{r.label}" for r in self.rows)

    def with_splits(self, split_of: dict[str, str]) -> Self:
        """The same cohort with other splits, by slide name; slides not named are left out of all."""
        rows = tuple(replace(r, split=split_of.get(r.slide_id, "")) for r in self.rows)
        return replace(self, rows=rows)


def read_cohort(
    path: Path | str,
    *,
    classes: Sequence[str] = (),
    splits: Path | str | None = None,
    fold: int | None = None,
    need_labels: bool = True,
    need_files: bool = True,
) -> Cohort:
    """Read and check a cohort table.

    Args:
        path: The CSV; comma, semicolon or tab, with or without a byte-order mark, any line ends.
        classes: Class names in the order of the logits; empty takes the sorted labels of the table.
        splits: A split file of `msamil-train cohort --folds`; its fold replaces the column `split`.
        fold: Which fold of it.
        need_labels: Whether every row must have a label.
        need_files: Whether slides and masks must exist.

    Raises:
        CohortError: Anything is wrong; all problems are listed with their lines.
    """
    path = Path(path)
    records = read_table(path)
    problems = _missing_columns(records, need_labels)
    if problems:
        raise_problems(path, problems)
    rows = [_row(path.parent, line, record, problems) for line, record in records]
    problems += check_rows(rows, classes, need_labels, need_files)
    raise_problems(path, problems)
    cohort = Cohort(path, tuple(rows), _classes_of(rows, classes))
    if splits is None:
        return cohort
    from .splits import apply_splits

    return apply_splits(cohort, Path(splits), fold)


def check_rows(
    rows: Sequence[CohortRow],
    classes: Sequence[str] = (),
    need_labels: bool = True,
    need_files: bool = True,
) -> list[str]:
    """What is wrong with the rows of a cohort, with the lines they come from; arguments as in `read_cohort`."""
    problems = _check_values(rows, _classes_of(rows, classes), need_labels)
    problems += _check_patients(rows)
    return problems + (_check_files(rows) if need_files else [])


def _classes_of(rows: Iterable[CohortRow], classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(classes) or tuple(sorted({r.label for r in rows if r.label}))


def read_table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The records of a CSV with their line numbers; empty lines are skipped, cells and names are stripped.

    Raises:
        CohortError: The file cannot be read or has no rows.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(
            f"The table {path} cannot be read: {error}. Save it as CSV (UTF-8)."
        ) from error
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter)
    header = [cell.strip() for cell in next(reader, [])]
    found = []
    for cells in reader:
        if any(cell.strip() for cell in cells):
            padded = [c.strip() for c in cells] + [""] * (len(header) - len(cells))
            record = dict(zip(header, padded, strict=False))
            found.append((reader.line_num, record))
    if not found:
        raise CohortError(f"The table {path} has no rows. Check the file.")
    return found


def write_cohort(path: Path, rows: Sequence[CohortRow]) -> Path:
    """Write a cohort table, with paths relative to it where they lie below it, and absolute where they do not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            fold = "" if row.fold is None else row.fold
            mpp = "" if row.mpp is None else f"{row.mpp:g}"
            mask = "" if row.mask is None else _relative(row.mask, path.parent)
            slide = _relative(row.path, path.parent)
            cells = (row.slide_id, slide, row.patient_id, row.label)
            writer.writerow((*cells, mask, row.split, fold, mpp))
    beside.replace(path)
    return path


def raise_problems(path: Path, problems: Sequence[str]) -> None:
    """Raise one `CohortError` that lists all problems; nothing where there are none."""
    if not problems:
        return
    shown = [f"  {text}" for text in problems[:MAX_SHOWN]]
    if len(problems) > MAX_SHOWN:
        shown.append(f"  … and {len(problems) - MAX_SHOWN} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise CohortError(f"The cohort {path} has {count}:\n" + "\n".join(shown))


def patients_in_several(
    rows: Iterable[CohortRow], place: str
) -> dict[str, dict[str, list[CohortRow]]]:
    """Patients whose slides lie in more than one `split` or `fold` (the attribute `place`)."""
    found: dict[str, dict[str, list[CohortRow]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        value = getattr(row, place)
        if value not in ("", None):
            found[row.patient_id][str(value)].append(row)
    return {patient: dict(where) for patient, where in found.items() if len(where) > 1}


def _hash_of(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _missing_columns(
    records: list[tuple[int, dict[str, str]]], need_labels: bool
) -> list[str]:
    have = set(records[0][1])
    needed = {"slide_id", "path", "patient_id"} | ({"label"} if need_labels else set())
    missing = sorted(needed - have)
    if not missing:
        return []
    return [
        f"line 1: no column {', '.join(missing)} (found: {', '.join(sorted(have))})"
    ]


def _row(
    folder: Path, line: int, record: dict[str, str], problems: list[str]
) -> CohortRow:
    mask = record.get("mask", "")
    return CohortRow(
        slide_id=record["slide_id"],
        path=_absolute(folder, record["path"]),
        patient_id=record["patient_id"],
        label=record.get("label", ""),
        mask=_absolute(folder, mask) if mask else None,
        split=record.get("split", "").lower(),
        fold=parse_fold(record.get("fold", ""), line, problems),
        mpp=parse_mpp(record.get("mpp", ""), line, problems),
        line=line,
    )


def _absolute(folder: Path, text: str) -> Path:
    """A path of the table; Windows separators are understood everywhere."""
    path = Path(text)
    if not path.exists() and "\\" in text:
        path = Path(text.replace("\\", "/"))
    return path if path.is_absolute() else (folder / path).resolve()


def parse_fold(text: str, line: int, problems: list[str]) -> int | None:
    """A cell with a whole number, also Excel's `2.0`; None where it is empty, or where a problem was added."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -0.5
    if not math.isfinite(value) or value < 0 or value != int(value):
        problems.append(f"line {line}: fold {text!r} is no whole number from 0")
        return None
    return int(value)


def parse_mpp(text: str, line: int, problems: list[str]) -> float | None:
    """A cell with µm per pixel, also with a decimal comma; None where it is empty, or where a problem was added."""
    if not text:
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = 0.0
    if not _plausible(value):
        problems.append(_implausible(line, text))
        return None
    return value


def _plausible(mpp: float) -> bool:
    low, high = PLAUSIBLE_MPP
    return low <= mpp <= high


def _implausible(line: int, mpp: str | float) -> str:
    low, high = PLAUSIBLE_MPP
    return f"line {line}: mpp {mpp!r} is no plausible number of µm per pixel ({low} … {high})"


def _check_values(
    rows: Sequence[CohortRow], classes: tuple[str, ...], need_labels: bool
) -> list[str]:
    problems = []
    count = Counter(row.slide_id for row in rows)
    for row in rows:
        if not row.slide_id:
            problems.append(f"line {row.line}: no slide_id")
        elif count[row.slide_id] > 1:
            problems.append(f"line {row.line}: slide_id {row.slide_id} occurs twice")
        if not row.patient_id:
            problems.append(f"line {row.line}: no patient_id")
        if need_labels and not row.label:
            problems.append(f"line {row.line}: no label")
        if row.label and row.label not in classes:
            known = ", ".join(classes)
            problems.append(
                f"line {row.line}: unknown label {row.label!r} (known: {known})"
            )
        if row.split and row.split not in SPLITS:
            problems.append(
                f"line {row.line}: split {row.split!r} is not train, val or test"
            )
        if row.mpp is not None and not _plausible(row.mpp):
            problems.append(_implausible(row.line, row.mpp))
    return problems


def _check_patients(rows: Sequence[CohortRow]) -> list[str]:
    problems = []
    for place in ("split", "fold"):
        for patient, where in patients_in_several(rows, place).items():
            parts = "; ".join(
                f"{name}: line {', '.join(str(r.line) for r in found)}"
                for name, found in sorted(where.items())
            )
            problems.append(f"patient {patient} lies in several {place}s ({parts})")
    known = {row.patient_id for row in rows}
    problems += [
        f"line {row.line}: patient {row.patient_id} and patient {row.patient_id[:-2]} look like one, read as number and as "
        "text. Write both alike"
        for row in rows
        if row.patient_id.endswith(".0") and row.patient_id[:-2] in known
    ]
    return problems


def _check_files(rows: Sequence[CohortRow]) -> list[str]:
    problems = []
    for row in rows:
        if not row.path.exists():
            problems.append(f"line {row.line}: no slide at {row.path}")
        if row.mask is not None and not row.mask.exists():
            problems.append(f"line {row.line}: no mask at {row.mask}")
    return problems


def _relative(path: Path, folder: Path) -> str:
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        # not resolved: a link may have the suffix that its target lacks
        return str(path.absolute())
