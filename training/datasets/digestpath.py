"""DigestPath 2019, colonoscopy tissue segmentation and classification.

Layout: `tissue-train-pos-v1/<name>.jpg` with `<name>_mask.jpg` (lesion, 0 … 255 with JPEG noise: threshold at 128), and
`tissue-train-neg/<name>.jpg` without masks. A name is `<case>_<date> <time>-lv1-<x>-<y>-<width>-<height>`; cases are written as
18-09926A (letter: block), D20180043301 or 2018_64982_1-1 (last part: block). 20x, JPEG without resolution.
(digestpath2019.grand-challenge.org; Da et al., Medical Image Analysis 80, 2022, 102485.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..cohort_table import CohortRow
from .imported import Imported, ImportOptions, first_file

if TYPE_CHECKING:
    from pathlib import Path

BENIGN, MALIGNANT = "benign", "malignant"
ASSUMED_MPP = 0.5
_DATE = re.compile(r"_\d{4}-\d{2}-\d{2}([ _]|$)")
_BLOCK = re.compile(r"(?<=\d)[A-Z]\d?$|_\d+-\d+$")


def read(folder: Path, options: ImportOptions | None = None) -> Imported:
    """Rows of the data set in a folder: positive images are malignant, negative ones benign."""
    options = options or ImportOptions()
    found = Imported()
    for path in _images(folder, "tissue-train-pos*"):
        mask = first_file(
            options.masks or path.parent, f"{path.stem}_mask", (".jpg", ".png")
        )
        if mask is None:
            found.problems.append(f"no mask {path.stem}_mask.jpg beside {path.name}")
        found.rows.append(_row(path, MALIGNANT, mask, options))
    found.rows += [
        _row(path, BENIGN, None, options)
        for path in _images(folder, "tissue-train-neg*")
    ]
    for label in (BENIGN, MALIGNANT):
        if not any(row.label == label for row in found.rows):
            found.problems.append(
                f"no {label} image: is {folder} the folder that holds tissue-train-pos-v1 and tissue-train-neg?"
            )
    if options.mpp is None:
        found.notes.append(
            f"the JPEG files name no resolution: {ASSUMED_MPP} µm per pixel (20x) is assumed; --mpp changes it"
        )
    found.notes.append(
        "patients are read from file names: blocks of one case stay together"
    )
    return found.check()


def case_of(stem: str) -> str:
    """The case in a file name, without date, region and block."""
    case = _DATE.split(stem, maxsplit=1)[0]
    return _BLOCK.sub("", case)


def _images(folder: Path, pattern: str) -> list[Path]:
    return sorted(
        path
        for place in sorted(folder.glob(pattern))
        for path in place.rglob("*.jpg")
        if not path.stem.endswith("_mask")
    )


def _row(
    path: Path, label: str, mask: Path | None, options: ImportOptions
) -> CohortRow:
    mpp = options.mpp or ASSUMED_MPP
    return CohortRow(path.stem, path, case_of(path.stem), label, mask, mpp=mpp)
