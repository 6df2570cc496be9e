"""What every adapter takes and returns, and the small things they share."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from napari_msamil.errors import CohortError

from ..cohort_table import CohortRow, read_table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".scn", ".mrxs", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".png", ".jpg", ".jpeg"
)  # fmt: skip


@dataclass(frozen=True)
class ImportOptions:
    """How a data set is imported.

    Attributes:
        table: Its table, where it is not at its usual place.
        masks: Folder of masks or annotations, where it is not at its usual place.
        labels: A further table of labels, for data sets whose own table has none.
        mpp: µm per pixel of files that do not say it; None takes the adapter's documented value.
        keep_all: Keep what is usually left out (TMA cores, known duplicates, frozen sections).
    """

    table: Path | None = None
    masks: Path | None = None
    labels: Path | None = None
    mpp: float | None = None
    keep_all: bool = False


@dataclass
class Imported:
    """What an adapter found.

    Attributes:
        rows: Slides of the cohort.
        problems: What is wrong, with line numbers or file names; the cohort is not written while there are any.
        notes: What was left out on purpose or assumed.
    """

    rows: list[CohortRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self) -> Imported:
        """Add what is wrong with any data set: names that occur twice, a patient in two classes (only a note)."""
        seen: dict[str, CohortRow] = {}
        labels: dict[str, set[str]] = defaultdict(set)
        for row in self.rows:
            if row.slide_id in seen:
                self.problems.append(
                    f"slide {row.slide_id} occurs twice ({seen[row.slide_id].path} and {row.path})"
                )
            seen[row.slide_id] = row
            labels[row.patient_id].add(row.label)
        mixed = sorted(p for p, found in labels.items() if len(found) > 1)
        if mixed:
            self.notes.append(
                f"{len(mixed)} patients have slides of several classes ({', '.join(mixed[:5])}): they stay together in every split"
            )
        if not self.rows and not self.problems:
            self.problems.append("no slide was found")
        return self


def table_of(
    folder: Path, options: ImportOptions, names: Iterable[str]
) -> list[tuple[int, dict[str, str]]]:
    """The data set's table: the one given, or the first of its usual names.

    Raises:
        CohortError: There is none, or it is an Excel file.
    """
    found = (
        [options.table]
        if options.table
        else [folder / name for name in names if (folder / name).exists()]
    )
    if not found or found[0] is None:
        raise CohortError(
            f"{folder} has no table {' or '.join(names)}. Give it with --table."
        )
    if found[0].suffix.lower() in (".xlsx", ".xls"):
        raise CohortError(
            f"{found[0]} is an Excel file. Save it as CSV (UTF-8) and give that with --table."
        )
    return read_table(found[0])


def clean_id(text: str) -> str:
    """An identifier that a spreadsheet may have turned into a number: `12.0` is 12."""
    text = text.strip()
    head, dot, tail = text.partition(".")
    return head if dot and head.isdigit() and not tail.strip("0") else text


def truth(text: str) -> bool:
    """A yes/no cell: `True`, `TRUE`, `1`, `1.0`, `yes`."""
    return clean_id(text).lower() in ("true", "1", "yes", "y", "t")


def first_file(folder: Path, stem: str, suffixes: Iterable[str]) -> Path | None:
    """The file of a name in a folder, with any of the suffixes; None where there is none."""
    for suffix in suffixes:
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return path
    return None


def first_folder(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of several folders that is there."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)
