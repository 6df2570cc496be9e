"""BCNB (early breast cancer core-needle biopsy; axillary lymph node status).

Layout: `WSIs/<id>.jpg` with `WSIs/<id>.json` (`{"positive": [{"name", "vertices": [[x, y], …]}], "negative": […]}`, level-0
pixels; tumour outlines, not on every slide), `patient-clinical-data.xlsx` (columns `Patient ID`, `Age(years)`, …, `ALN
status` with N0, N+(1-2), N+(>2)), and `dataset-splitting/{train,val,test}_id.txt` with one number a line. One slide
per patient, JPEG without resolution, scanned at 200x. (bupt-ai-cz.github.io/BCNB, arXiv 2112.02222.) The data may not be
passed on and not be used commercially. MsaMIL-Net uses two classes: no metastasis (N0) and metastasis (N+).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cohort_table import CohortRow
from .imported import (
    Imported,
    ImportOptions,
    clean_id,
    first_file,
    first_folder,
    table_of,
)

if TYPE_CHECKING:
    from pathlib import Path

NEGATIVE, POSITIVE = "N0", "N+"
ASSUMED_MPP = 0.5
_TABLES = ("patient-clinical-data.csv", "patient-clinical-data.xlsx")


def read(folder: Path, options: ImportOptions | None = None) -> Imported:
    """Rows of the data set in a folder, labelled N0 or N+."""
    options = options or ImportOptions()
    found = Imported()
    images = first_folder(folder, ("WSIs", "wsi")) or folder
    outlines = options.masks or images
    splits = _official_splits(folder)
    for line, record in table_of(folder, options, _TABLES):
        name, label = clean_id(record.get("Patient ID", "")), _label(record)
        if not name:
            found.problems.append(f"line {line}: no Patient ID")
            continue
        if not label:
            status = record.get("ALN status", "")
            found.problems.append(
                f"line {line}: unknown ALN status {status!r} (known: N0, N+(1-2), N+(>2))"
            )
        path = first_file(images, name, (".jpg", ".jpeg", ".tiff"))
        if path is None:
            found.problems.append(f"line {line}: no slide {images / name}.jpg")
            continue
        outline = first_file(outlines, name, (".json",))
        mpp, split = options.mpp or ASSUMED_MPP, splits.get(name, "")
        row = CohortRow(name, path, name, label, outline, split, mpp=mpp, line=line)
        found.rows.append(row)
    if options.mpp is None and found.rows:
        found.notes.append(
            f"the JPEG files name no resolution: {ASSUMED_MPP} µm per pixel (20x) is assumed; --mpp changes it"
        )
    bare = sum(row.mask is None for row in found.rows)
    if bare:
        found.notes.append(f"{bare} of {len(found.rows)} slides have no outline")
    return found.check()


def _label(record: dict[str, str]) -> str:
    status = "".join(record.get("ALN status", "").upper().split())
    if status == "N0":
        return NEGATIVE
    return POSITIVE if status.startswith("N+") else ""


def _official_splits(folder: Path) -> dict[str, str]:
    places = {}
    for split in ("train", "val", "test"):
        path = folder / "dataset-splitting" / f"{split}_id.txt"
        if path.exists():
            words = path.read_text(encoding="utf-8-sig").split()
            places.update({clean_id(word): split for word in words})
    return places
