"""UBC-OCEAN (ovarian cancer histotypes), as distributed on Kaggle.

Layout: `train.csv` with `image_id, label, image_width, image_height, is_tma`; `train_images/<image_id>.png`; small
copies `train_thumbnails/<image_id>_thumbnail.png` of whole slides only. Labels are CC, EC, HGSC, LGSC, MC (`Other` in
the hidden test). Whole slides are 20x, tissue microarray cores (`is_tma`) 40x. Masks of some training slides came
later as a data set of their own, `<image_id>.png`, red tumour, green stroma, blue necrosis; slides without a mask are
usual. (kaggle.com/competitions/UBC-OCEAN, data page and discussion 455890.) No patient is given: each image stands
for one.
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
    truth,
)

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("CC", "EC", "HGSC", "LGSC", "MC", "Other")
SLIDE_MPP, TMA_MPP = 0.5, 0.25


def read(folder: Path, options: ImportOptions | None = None) -> Imported:
    """Rows of the data set in a folder; TMA cores are left out unless `keep_all`."""
    options = options or ImportOptions()
    found = Imported()
    images = first_folder(folder, ("train_images", "images")) or folder
    masks = options.masks or first_folder(
        folder, ("train_masks", "masks", "UBC-OCEAN-masks")
    )
    cores = 0
    for line, record in table_of(folder, options, ("train.csv",)):
        name, label = clean_id(record.get("image_id", "")), record.get("label", "")
        is_tma = truth(record.get("is_tma", ""))
        if is_tma and not options.keep_all:
            cores += 1
            continue
        if label not in LABELS:
            found.problems.append(
                f"line {line}: unknown label {label!r} (known: {', '.join(LABELS)})"
            )
        path = first_file(images, name, (".png", ".tiff", ".tif"))
        if path is None:
            found.problems.append(f"line {line}: no image {images / name}.png")
            continue
        mask = first_file(masks, name, (".png",)) if masks else None
        mpp = options.mpp or (TMA_MPP if is_tma else SLIDE_MPP)
        found.rows.append(CohortRow(name, path, name, label, mask, mpp=mpp, line=line))
    _notes(found, cores)
    return found.check()


def _notes(found: Imported, cores: int) -> None:
    if cores:
        found.notes.append(
            f"{cores} tissue microarray cores were left out (--keep-all keeps them)"
        )
    bare = sum(row.mask is None for row in found.rows)
    if bare:
        found.notes.append(f"{bare} of {len(found.rows)} slides have no mask")
    found.notes.append("the data set names no patients: each image counts as one")
