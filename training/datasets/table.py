"""Any lab's table: one row per slide with a name, a patient and a label; slides are found by name in a folder.

Columns are found under their usual names in any case (`slide_id`, `slide`, `image_id`, `filename`, …; `patient_id`, `case_id`,
`patient`; `label`, `class`, `diagnosis`); `split`, `fold` and `mpp` are kept where the table has them. A spreadsheet may have turned identifiers into numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_msamil.errors import CohortError

from ..cohort_table import CohortRow, parse_fold, parse_mpp
from .imported import (
    SLIDE_SUFFIXES,
    Imported,
    ImportOptions,
    clean_id,
    first_file,
    table_of,
)

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {
    "slide": (
        "slide_id",
        "path",
        "slide",
        "slide_path",
        "image_id",
        "image",
        "filename",
        "file",
        "name",
        "id",
    ),
    "patient": (
        "patient_id",
        "case_id",
        "patient",
        "case",
        "subject",
        "subject_id",
        "patient id",
        "case id",
    ),
    "label": ("label", "class", "diagnosis", "target", "subtype", "status"),
    "mask": ("mask", "mask_path", "annotation"),
    "mpp": ("mpp", "microns_per_pixel"),
    "split": ("split",),
    "fold": ("fold",),
}
MASK_SUFFIXES = (".png", ".geojson", ".xml", ".json", ".tif", ".tiff")


def read(folder: Path, options: ImportOptions | None = None) -> Imported:
    """Rows of a table whose slides lie in a folder (or below it)."""
    options = options or ImportOptions()
    found = Imported()
    records = table_of(folder, options, ("labels.csv", "slides.csv", "table.csv"))
    column = {use: _column(records[0][1], names) for use, names in NAMES.items()}
    missing = [use for use in ("slide", "label") if column[use] is None]
    if missing:
        raise CohortError(
            f"The table has no column for {' and '.join(missing)} (found: {', '.join(records[0][1])})."
        )
    slides = _slides(folder)
    for line, record in records:
        cells = {
            use: record.get(name, "") if name else "" for use, name in column.items()
        }
        stem = _stem(cells["slide"])
        paths = slides.get(stem, [])
        if len(paths) != 1:
            what = "no slide" if not paths else f"{len(paths)} slides"
            found.problems.append(f"line {line}: {what} named {stem!r} in {folder}")
            continue
        mask = _mask(cells["mask"], stem, folder, options)
        if cells["mask"] and mask is None:
            found.problems.append(f"line {line}: no mask {cells['mask']}")
        row = CohortRow(
            slide_id=stem,
            path=paths[0],
            patient_id=clean_id(cells["patient"]) or stem,
            label=cells["label"],
            mask=mask,
            split=cells["split"].lower(),
            fold=parse_fold(cells["fold"], line, found.problems),
            mpp=parse_mpp(cells["mpp"], line, found.problems) or options.mpp,
            line=line,
        )
        found.rows.append(row)
    if column["patient"] is None:
        found.notes.append(
            "the table has no column for patients: each slide counts as one"
        )
    return found.check()


def _column(record: dict[str, str], names: tuple[str, ...]) -> str | None:
    lower = {name.strip().lower(): name for name in record}
    return next((lower[name] for name in names if name in lower), None)


def _slides(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SLIDE_SUFFIXES and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found


def _stem(text: str) -> str:
    name = clean_id(text.replace("\\", "/").rpartition("/")[2])
    suffix = next((s for s in SLIDE_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)] if suffix else name


def _mask(text: str, stem: str, folder: Path, options: ImportOptions) -> Path | None:
    if text:
        path = folder / text
        return path if path.is_file() else None
    return first_file(options.masks, stem, MASK_SUFFIXES) if options.masks else None
