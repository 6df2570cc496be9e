"""Figures of a checkpoint on a cohort, or of predictions that are there already.

    msamil-train evaluate --model model.safetensors --cohort cohort.csv --split test -o report/
    msamil-train evaluate --predictions runs/cv/fold_*/predictions.csv -o report/ --against runs/other/fold_*/predictions.csv

The folder gets `figures.json` and `.md` (with 95 % intervals over patients), `predictions.csv`, `worst.csv`, three
plots, and `report.html`, one page with all of it and pictures of the worst errors.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import CohortError, ConfigError
from napari_msamil.progress import finish

from .prediction_table import (
    Predictions,
    join_predictions,
    read_predictions,
    save_predictions,
)
from .summary import (
    Summary,
    compare,
    comparison_lines,
    markdown,
    summarise,
    thresholded,
    write_figures,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from .cohort_table import Cohort, CohortRow
    from .intervals import Comparison

WORST = 8
"""Errors shown with pictures."""
_FOLD = re.compile(r"fold_(\d+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train evaluate`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model",
        help="checkpoint, hf://…, or demo: every slide is classified by the engine",
    )
    source.add_argument(
        "--predictions",
        type=Path,
        nargs="+",
        metavar="CSV",
        help="tables of one or several folds",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--cohort",
        type=Path,
        help="cohort table: slides to classify, and pictures of errors",
    )
    parser.add_argument(
        "--splits", type=Path, help="split file; its fold sets the splits"
    )
    parser.add_argument("--fold", type=int, help="fold of the split file")
    _add_choices(parser)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        default="test",
        help="slides used: train, val, test or all (default: test)",
    )
    parser.add_argument(
        "--patches",
        choices=("lesion", "tissue", "random"),
        default="",
        help="default: the model's",
    )
    parser.add_argument(
        "--mask",
        choices=("model", "file"),
        default="model",
        help="lesion masks of the segmenter or the cohort",
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        metavar="CSV",
        help="predictions of another method to compare with",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")


def run(args: argparse.Namespace) -> int:
    """Evaluate as the arguments say; 1 if some slide failed."""
    failed: dict[str, str] = {}
    notes: list[str] = []
    cohort = _cohort(args)
    if args.model:
        found, failed, notes = _classify(args, cohort)
    else:
        found = read_folds(args.predictions)
    other = read_folds(args.against) if args.against else None
    if other is not None and any(other.splits):
        other = _part(other, args.split)
    summary = evaluate(
        _part(found, args.split),
        args.out,
        cohort=cohort,
        other=other,
        # other slides than validation's would be judged by a threshold that they drew themselves
        validation=found.part("val") if args.split == "test" else None,
        notes=notes,
    )
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)  # noqa: T201
    print("\n".join([markdown(summary), *notes]))  # noqa: T201
    return 1 if failed else 0


def evaluate(
    found: Predictions,
    folder: Path,
    *,
    cohort: Cohort | None = None,
    other: Predictions | None = None,
    validation: Predictions | None = None,
    notes: Sequence[str] = (),
) -> Summary:
    """Write figures, plots and the report of predictions.

    Args:
        found: The slides to report on.
        folder: Output folder.
        cohort: Where the slides are, for pictures of the worst errors.
        other: Predictions of another method on the same slides.
        validation: Validation slides of each fold, from which its threshold of a two-class problem is drawn.
        notes: Further sentences for the report.

    Raises:
        ConfigError: No slide is labelled.
        CohortError: A slide occurs twice, or the other run is of other slides.
    """
    from . import plots
    from .eval_report import write_report

    found = found.labelled()
    if not len(found):
        why = "There is no labelled slide to evaluate. Check --split and the column label."
        raise ConfigError(" ".join([why, *notes]))
    _refuse_repeated(found)
    summary = summarise(found)
    against: dict[str, Comparison] = (
        {} if other is None else compare(found, _same_part(other, found))
    )
    extra: dict[str, Any] = {"classes": list(found.classes), "notes": list(notes)}
    if len(found.classes) == 2 and validation is not None and len(validation):
        at_threshold, why = thresholded(found, validation)
        extra["notes"] += [why] if why else []
        if at_threshold:
            extra["threshold_from_validation"] = at_threshold
    if against:
        extra["against"] = comparison_lines("the other", against)
    write_figures(folder, summary, extra)
    save_predictions(folder / "predictions.csv", found)
    pictures = {
        "Confusion matrix": plots.confusion_plot(found),
        "ROC, one-versus-rest": plots.roc_plot(found),
        "Reliability": plots.reliability_plot(found),
    }
    for title, figure in pictures.items():
        plots.save_plot(folder / f"{title.split()[0].strip(',').lower()}.png", figure)
    worst = worst_errors(found)
    _write_worst(folder / "worst.csv", found, worst)
    write_report(
        folder / "report.html", found, summary, pictures, worst[:WORST], cohort, extra
    )
    return summary


def read_folds(paths: Sequence[Path]) -> Predictions:
    """Tables of several folds as one; unless a table says its fold, a folder `fold_<k>` does, else the n-th file is fold n."""
    named = [_FOLD.fullmatch(p.resolve().parent.name) for p in paths]
    numbers = [int(m[1]) for m in named if m]
    if len(set(numbers)) != len(paths):
        numbers = list(range(len(paths)))
    return join_predictions(
        [read_predictions(p, n) for p, n in zip(paths, numbers, strict=True)]
    )


def worst_errors(found: Predictions) -> list[int]:
    """Wrong slides, the most confident error first: by how far the wrong class is above the true one."""
    rows = np.arange(len(found))
    own = found.probabilities[rows, found.labels]
    gap = found.probabilities.max(axis=1) - own
    wrong = rows[found.predicted != found.labels]
    return [int(i) for i in wrong[np.argsort(-gap[wrong], kind="stable")]]


def _cohort(args: argparse.Namespace) -> Cohort | None:
    from .cohort import read_cohort

    if args.cohort is None:
        if args.model:
            raise ConfigError("--model needs --cohort: the slides to classify.")
        return None
    return read_cohort(
        args.cohort, splits=args.splits, fold=args.fold, need_labels=False
    )


def _classify(
    args: argparse.Namespace, cohort: Cohort | None
) -> tuple[Predictions, dict[str, str], list[str]]:
    """Predictions, why slides failed, and what is to be said about class sets and verdicts."""
    from tqdm import tqdm

    from napari_msamil.checkpoint import load_checkpoint
    from napari_msamil.device import choose_runtime

    from .engine_run import (
        EngineSpec,
        predict_cohort,
        read_engine_run,
        reliability_lines,
        unknown_class_lines,
    )

    assert cohort is not None
    rows: tuple[CohortRow, ...] = (
        cohort.rows if args.split == "all" else cohort.part(args.split)
    )
    if not rows:
        raise ConfigError(
            f"No slide of {cohort.path} is in the split {args.split!r}. Use --split all, or fill the column."
        )
    runtime = choose_runtime(args.device, args.precision)
    loaded = load_checkpoint(args.model, device=runtime.device)
    table = args.out / "slides.csv"
    steps = predict_cohort(
        rows, loaded, runtime, table, EngineSpec(args.patches, args.mask)
    )
    with tqdm(total=len(rows), unit="slide", file=sys.stderr) as bar:
        failed = finish(steps, lambda step: _show(bar, step.done))
    if not table.exists():
        raise ConfigError(
            f"No slide could be classified: {next(iter(failed.values()), 'no slide')}"
        )
    predictions, lines = read_engine_run(table, rows)
    notes = unknown_class_lines(rows, loaded.config.classes)
    return predictions, failed, [*notes, *reliability_lines(lines.values())]


def _show(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def _part(found: Predictions, split: str) -> Predictions:
    part = found if split == "all" else found.part(split)
    if not len(part):
        known = ", ".join(sorted(set(found.splits)))
        raise ConfigError(
            f"There is no slide of the split {split!r} (found: {known}). Use --split all."
        )
    return part


def _refuse_repeated(found: Predictions) -> None:
    """Counted twice, a slide would make every interval too narrow."""
    repeated = found.repeated()
    if repeated:
        raise CohortError(
            f"{len(repeated)} slides occur twice among the predictions, for example {repeated[0]}. A slide is validated in "
            "one fold and tested in another: join folds with --split test, and give every table once."
        )


def _same_part(other: Predictions, found: Predictions) -> Predictions:
    wanted = set(found.slide_ids)
    return other.take([i for i, name in enumerate(other.slide_ids) if name in wanted])


def _write_worst(path: Path, found: Predictions, worst: Sequence[int]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            (
                "slide_id",
                "patient_id",
                "fold",
                "label",
                "prediction",
                "p_prediction",
                "p_label",
            )
        )
        for i in worst:
            p, true, called = (
                found.probabilities[i],
                found.labels[i],
                found.predicted[i],
            )
            names = found.classes[true], found.classes[called]
            writer.writerow(
                (
                    found.slide_ids[i],
                    found.patients[i],
                    found.folds[i],
                    *names,
                    f"{p[called]:.4f}",
                    f"{p[true]:.4f}",
                )
            )
