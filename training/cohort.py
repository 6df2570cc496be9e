"""Check a cohort table, import a data set as it is distributed, and write the splits.

    msamil-train cohort cohort.csv --folds 5
    msamil-train cohort cohort.csv --folds             (the folds of the column `fold`)
    msamil-train cohort table.csv --folder slides/ -o cohort.csv
    msamil-train cohort --from ubc-ocean --folder UBC-OCEAN -o cohort.csv --folds 5
    msamil-train cohort cohort.csv --splits splits.json --to-clam clam/

All problems are listed at once with line numbers. `--open` also opens every slide: a slide without a plausible pixel
size, or one that cannot be read, is a problem.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.errors import ConfigError, MsamilError

from .cohort_table import (
    Cohort,
    CohortRow,
    check_rows,
    raise_problems,
    read_cohort,
    write_cohort,
)
from .datasets.imported import ImportOptions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from .splits import Splits

__all__ = ["Cohort", "CohortRow", "read_cohort", "write_cohort"]

ADAPTERS = {
    "table": "any table with slide_id or path, patient_id and label, slides found in --folder",
    "ubc-ocean": "UBC-OCEAN (Kaggle): train.csv, train_images/, masks",
    "bcnb": "BCNB: WSIs/*.jpg with *.json, clinical table as CSV",
    "digestpath": "DigestPath 2019: tissue-train-pos*/, tissue-train-neg/",
    "camelyon16": "CAMELYON16: training/, testing/ with reference.csv, ASAP outlines",
    "tcga": "TCGA from the GDC: manifest or sample sheet",
    "clam": "CLAM's dataset.csv (case_id, slide_id, label) with slides in --folder",
}
_OF_COLUMN = -1
"""`--folds` without a number."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train cohort`."""
    parser.add_argument(
        "table",
        type=Path,
        nargs="?",
        help="cohort table (CSV), or the table of the data set",
    )
    parser.add_argument(
        "--from",
        dest="source",
        choices=ADAPTERS,
        help="; ".join(f"{k}: {v}" for k, v in ADAPTERS.items()),
    )
    parser.add_argument(
        "--folder", type=Path, help="folder of the data set or of the slides"
    )
    parser.add_argument("-o", "--out", type=Path, help="cohort table to write")
    parser.add_argument(
        "--masks",
        type=Path,
        help="folder of masks or outlines, where not at its usual place",
    )
    parser.add_argument(
        "--labels", type=Path, help="further table of labels (tcga: case_id, label)"
    )
    parser.add_argument(
        "--mpp", type=float, help="µm per pixel of files that do not say it"
    )
    _add_checks(parser)


def _add_checks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep-all",
        action="store_true",
        help="keep TMA cores, known duplicates, frozen sections",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=[],
        help="class names in the order of the logits",
    )
    parser.add_argument(
        "--open", action="store_true", help="open every slide and check its pixel size"
    )
    _add_splits(parser)


def _add_splits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folds",
        type=int,
        nargs="?",
        const=_OF_COLUMN,
        help="draw so many patient-grouped, stratified folds, or take those of the column fold, if it is filled",
    )
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.15,
        help="share of validation slides inside each fold, at most 0.5",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument(
        "--splits", type=Path, help="split file to write (with --folds) or to check"
    )
    parser.add_argument(
        "--from-clam-splits",
        type=Path,
        metavar="DIR",
        help="take the folds of CLAM's splits_<k>.csv",
    )
    parser.add_argument(
        "--to-clam",
        type=Path,
        metavar="DIR",
        help="write CLAM's label and split tables",
    )


def run(args: argparse.Namespace) -> int:
    """Import, check, split, export, as the arguments say."""
    cohort = _cohort(args)
    _say_counts(cohort)
    if args.open:
        check_slides(cohort)
        print(f"all {len(cohort)} slides open and have a pixel size")  # noqa: T201
    splits = _splits(args, cohort)
    if args.to_clam:
        from .datasets import clam

        written = clam.write(args.to_clam, cohort, splits)
        print(f"wrote {len(written)} files for CLAM to {args.to_clam}")  # noqa: T201
    return 0


def import_cohort(
    source: str,
    folder: Path,
    options: ImportOptions,
    out: Path,
    classes: Sequence[str] = (),
) -> Sequence[str]:
    """Import a data set and write its cohort table.

    Args:
        source: Name of the adapter.
        folder: Folder of the data set.
        options: How.
        out: The table to write.
        classes: Class names; empty takes the labels that are found.

    Returns:
        Notes for the user: what was left out or assumed.

    Raises:
        CohortError: Anything is wrong; nothing is written.
    """
    adapter = import_module(f".datasets.{source.replace('-', '_')}", __package__)
    found = adapter.read(folder, options)
    more = check_rows(found.rows, classes)
    told = [p for p in more if not any(q.startswith(p) for q in found.problems)]
    raise_problems(options.table or folder, [*found.problems, *told])
    write_cohort(out, found.rows)
    return list(found.notes)


def check_slides(cohort: Cohort) -> None:
    """Open every slide.

    Raises:
        CohortError: Slides cannot be opened, or have no plausible pixel size.
    """
    from napari_msamil.slide import open_slide, require_mpp

    problems = []
    for row in cohort.rows:
        try:
            with open_slide(row.path, mpp=row.mpp) as slide:
                require_mpp(slide.info)
        except MsamilError as error:
            problems.append(f"line {row.line}: {error}")
    raise_problems(cohort.path, problems)


def _cohort(args: argparse.Namespace) -> Cohort:
    source = args.source or ("table" if args.folder else None)
    path = args.table
    if source:
        if args.folder is None or args.out is None:
            raise ConfigError(
                "--from needs --folder (the data set) and -o (the cohort table to write)."
            )
        options = ImportOptions(
            args.table, args.masks, args.labels, args.mpp, args.keep_all
        )
        notes = import_cohort(source, args.folder, options, args.out, args.classes)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)  # noqa: T201
        print(args.out)  # noqa: T201
        path = args.out
    if path is None:
        raise ConfigError("Give a cohort table, or --from with --folder and -o.")
    return read_cohort(path, classes=args.classes)


def _splits(args: argparse.Namespace, cohort: Cohort) -> Splits | None:
    from .splits import check_splits, read_splits, write_splits

    path = args.splits or cohort.path.with_name("splits.json")
    if args.folds is not None:
        splits = _draw(args, cohort)
    elif args.from_clam_splits:
        from .datasets import clam

        splits = clam.read_splits(args.from_clam_splits, cohort)
    elif args.splits:
        splits = read_splits(path)
    else:
        return None
    check_splits(cohort, splits, path)
    if not path.exists() or args.folds is not None or args.from_clam_splits:
        write_splits(path, splits)
    _say_splits(cohort, splits, path)
    return splits


def _draw(args: argparse.Namespace, cohort: Cohort) -> Splits:
    """The folds of the column `fold` where every row has one, else new ones."""
    from .splits import folds_of_column, make_splits, splits_of_column

    count, found = args.folds, len(folds_of_column(cohort))
    empty = sum(row.fold is None for row in cohort.rows)
    if count != _OF_COLUMN and empty:
        if found:
            print(  # noqa: T201
                f"note: {empty} rows have no fold, so the column fold is not used and folds are drawn",
                file=sys.stderr,
            )
        return make_splits(cohort, count, val_share=args.val_share, seed=args.seed)
    if not found:
        raise ConfigError(
            f"--folds needs a number: {cohort.path} has no column fold with test folds."
        )
    if count not in (_OF_COLUMN, found):
        raise ConfigError(
            f"The column fold of {cohort.path} has {found} folds, not {count}. Give --folds without a number to take them, "
            "or empty the column to draw others."
        )
    splits = splits_of_column(cohort, val_share=args.val_share, seed=args.seed)
    print("note: the test folds are those of the column fold", file=sys.stderr)  # noqa: T201
    return splits


def _say_counts(cohort: Cohort) -> None:
    patients = len({row.patient_id for row in cohort.rows})
    counts = ", ".join(
        f"{c} {sum(r.label == c for r in cohort.rows)}" for c in cohort.classes
    )
    masks = sum(row.mask is not None for row in cohort.rows)
    text = (
        f"{len(cohort)} slides of {patients} patients ({counts}); {masks} with a mask"
    )
    print(text)  # noqa: T201


def _say_splits(cohort: Cohort, splits: Splits, path: Path) -> None:
    from .splits import count_parts

    print(f"{path}: {len(splits.folds)} folds, sha256 {splits.sha256[:12]}")  # noqa: T201
    for number, part, total, counts in count_parts(cohort, splits):
        classes = ", ".join(
            f"{c} {n}" for c, n in zip(cohort.classes, counts, strict=True)
        )
        print(f"  fold {number} {part:5} {total:4} slides ({classes})")  # noqa: T201
