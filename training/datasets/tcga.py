"""TCGA slides from the GDC, for example lung cancer (LUAD and LUSC).

`gdc-client` downloads a manifest (`id, filename, md5, size, state`, tab-separated) into `<id>/<filename>`. A file name
begins with the barcode: `TCGA-05-4244-01Z-00-DX1.<uuid>.svs`: patient TCGA-05-4244, sample type 01 (11 is normal
tissue), slide DX1 (diagnostic; TS, MS, BS are frozen sections). Labels come from the GDC sample sheet (`File ID, File
Name, …, Project ID, Case ID, …`), or all from a table `case_id, label` given with --labels. Unfinished downloads end in
`.partial`. (docs.gdc.cancer.gov, Data Transfer Tool; barcode: TCGA wiki.)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from napari_msamil.errors import CohortError

from ..cohort_table import CohortRow, raise_problems, read_table
from .imported import Imported, ImportOptions, first_file

if TYPE_CHECKING:
    from pathlib import Path

_BARCODE = re.compile(
    r"(TCGA-\w{2}-\w{4})-(\d{2})\w-\d{2}-([A-Z]{2})\w*", re.IGNORECASE
)
DIAGNOSTIC, NORMAL_SAMPLES = "DX", range(10, 20)


def read(folder: Path, options: ImportOptions | None = None) -> Imported:
    """Rows of the slides of a manifest or sample sheet; frozen sections and normal tissue are left out."""
    options = options or ImportOptions()
    found = Imported()
    labels = _labels(options)
    left_out = {"frozen sections": 0, "slides of normal tissue": 0}
    for line, record in _table(folder, options):
        name = record.get("filename") or record.get("File Name", "")
        barcode = _BARCODE.match(name)
        if barcode is None:
            found.problems.append(f"line {line}: {name!r} has no TCGA barcode")
            continue
        patient, sample, kind = barcode[1].upper(), int(barcode[2]), barcode[3].upper()
        if not options.keep_all and (kind != DIAGNOSTIC or sample in NORMAL_SAMPLES):
            left_out[
                "frozen sections" if kind != DIAGNOSTIC else "slides of normal tissue"
            ] += 1
            continue
        project = record.get("Project ID", "").removeprefix("TCGA-")
        label = project if labels is None else labels.get(patient, "")
        if not label:
            found.problems.append(f"line {line}: {_unlabelled(patient, options)}")
        path = _downloaded(folder, record.get("id") or record.get("File ID", ""), name)
        if path is None:
            found.problems.append(
                f"line {line}: {name} is not downloaded{_partial(folder, name)}"
            )
            continue
        found.rows.append(
            CohortRow(
                name.rsplit(".", 1)[0], path, patient, label, line=line, mpp=options.mpp
            )
        )
    found.notes += [
        f"{n} {what} were left out (--keep-all keeps them)"
        for what, n in left_out.items()
        if n
    ]
    return found.check()


def _table(folder: Path, options: ImportOptions) -> list[tuple[int, dict[str, str]]]:
    usual = sorted(
        [
            *folder.glob("gdc_sample_sheet*"),
            *folder.glob("gdc_manifest*"),
            *folder.glob("MANIFEST.txt"),
        ]
    )
    path = options.table or next(
        iter(sorted(usual, key=lambda p: "sheet" not in p.name)), None
    )
    if path is None:
        raise CohortError(
            f"{folder} has no gdc_sample_sheet or gdc_manifest. Give it with --table."
        )
    return read_table(path)


def _labels(options: ImportOptions) -> dict[str, str] | None:
    """Label of each patient; None where no table of labels was given and the project is the label.

    Raises:
        CohortError: The table lacks a column, or labels a patient twice.
    """
    if options.labels is None:
        return None
    records = read_table(options.labels)
    missing = sorted({"case_id", "label"} - records[0][1].keys())
    if missing:
        raise CohortError(
            f"The table {options.labels} has no column {', '.join(missing)} (found: {', '.join(records[0][1])})."
        )
    labels: dict[str, str] = {}
    problems = []
    for line, record in records:
        patient, label = record["case_id"].upper()[:12], record["label"]
        if labels.setdefault(patient, label) != label:
            problems.append(
                f"line {line}: {patient} is {label!r} here and {labels[patient]!r} before"
            )
    raise_problems(options.labels, problems)
    return labels


def _unlabelled(patient: str, options: ImportOptions) -> str:
    if options.labels is None:
        return f"no label for {patient}; use the sample sheet, or give --labels"
    return f"no label for {patient} in {options.labels}; add it, or leave the slide out of the table"


def _downloaded(folder: Path, identity: str, name: str) -> Path | None:
    """The slide under its id, or beside the manifest."""
    stem, _, suffix = name.rpartition(".")
    return first_file(folder / identity, stem, (f".{suffix}",)) or first_file(
        folder, stem, (f".{suffix}",)
    )


def _partial(folder: Path, name: str) -> str:
    return (
        " completely (a .partial file is there)"
        if any(folder.rglob(f"{name}.partial"))
        else ""
    )
