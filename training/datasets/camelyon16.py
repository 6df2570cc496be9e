"""CAMELYON16 (breast cancer metastases in lymph nodes).

Layout: `training/normal/normal_001.tif` …, `training/tumor/tumor_001.tif` …, ASAP outlines `…/tumor_001.xml` (in
`training/lesion_annotations` or `annotations`), `testing/images/test_001.tif` …, and `testing/reference.csv` without header:
`test_001,Tumor,IDC,Macro`. Newer copies put all images into one folder `images`. The read-me names two slides that
were taken out of the original set: normal_086 (misclassified, renamed tumor_111) and test_049 (duplicate); older copies
still hold them, and they are left out here. test_114 and some training slides are not outlined exhaustively.
(camelyon16.grand-challenge.org; Bejnordi et al., JAMA 318, 2017, 2199.) 399 slides of as many patients.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from ..cohort_table import CohortRow
from .imported import Imported, ImportOptions

if TYPE_CHECKING:
    from pathlib import Path

LEFT_OUT = {
    ("normal", 86): "originally misclassified, renamed to tumor_111",
    ("test", 49): "duplicate",
}
NOT_EXHAUSTIVE = ("test_114",)
_NAME = re.compile(r"(normal|tumor|test)_0*(\d+)", re.IGNORECASE)


def read(folder: Path, options: ImportOptions | None = None) -> Imported:
    """Rows of the data set in a folder, with the official train and test parts."""
    options = options or ImportOptions()
    found = Imported()
    outlines = {
        key: p
        for p in sorted((options.masks or folder).rglob("*.xml"))
        if (key := _key(p.stem))
    }
    reference = _reference(folder, options, found)
    for path in sorted([*folder.rglob("*.tif"), *folder.rglob("*.tiff")]):
        key = _key(path.stem)
        if key is None or "mask" in path.stem.lower():
            continue
        if key in LEFT_OUT and not options.keep_all:
            found.notes.append(f"{path.stem} was left out: {LEFT_OUT[key]}")
            continue
        label = reference.get(key, "") if key[0] == "test" else key[0]
        if not label:
            found.problems.append(f"{path.name} has no line in reference.csv")
        outline = outlines.get(key) if label == "tumor" else None
        if label == "tumor" and outline is None:
            found.problems.append(f"no outline {path.stem}.xml for {path.name}")
        split = "test" if key[0] == "test" else "train"
        found.rows.append(CohortRow(path.stem, path, path.stem, label, outline, split))
        if path.stem in NOT_EXHAUSTIVE:
            found.notes.append(f"{path.stem} is not outlined exhaustively")
    return found.check()


def _key(stem: str) -> tuple[str, int] | None:
    """`("tumor", 7)` of `tumor_007`, `Tumor_007` or `tumor_7`."""
    match = _NAME.match(stem)
    return (match[1].lower(), int(match[2])) if match else None


def _reference(
    folder: Path, options: ImportOptions, found: Imported
) -> dict[tuple[str, int], str]:
    """Labels of the test slides; the file has no header, so it is not read as a table."""
    paths = [options.table] if options.table else sorted(folder.rglob("reference.csv"))
    labels = {}
    for path in paths[:1]:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, cells in enumerate(csv.reader(file), 1):
                key = _key(cells[0].strip()) if cells else None
                if key is None:
                    continue
                label = cells[1].strip().lower() if len(cells) > 1 else ""
                if label not in ("tumor", "normal"):
                    found.problems.append(
                        f"reference.csv line {line}: unknown label {label!r}"
                    )
                labels[key] = label
    return labels
