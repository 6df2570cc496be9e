"""MsaMIL-Net Table 1 and Figure 2: which patches are used, through the engine a user runs.

All non-background patches, a random choice as large as the lesion's (the paper's 2300 + 570 + 130 is the mean number of
its lesion patches), and lesion patches. The engine classifies every slide with the checkpoint, which gives the minutes
from slide to answer, and keeps the features; on those an aggregator of the same kind is cross-validated for each of the
three selections, so that none is judged by an aggregator that was made for another. Figure 2: how much of the area that
would be computed is saved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.checkpoint import load_checkpoint, read_header, resolve_model
from napari_msamil.progress import finish

from . import plots
from .engine_run import EngineSpec, predict_cohort, read_engine_run
from .intervals import Interval, bootstrap_interval
from .summary import compare, comparison_lines, figures_with_intervals
from .table_methods import cross_validate
from .table_work import TableResult, TableWork, require_test_slides, say

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from napari_msamil.checkpoint import LoadedModel

    from .prediction_table import Predictions

PAPER = {
    "tissue": (
        "1. All patches",
        "0.945 / 0.953 / 0.959",
        "0.929 / 0.941 / 0.942",
        "57",
    ),
    "random": (
        "2. Random patches",
        "0.931 / 0.937 / 0.942",
        "0.920 / 0.929 / 0.937",
        "21",
    ),
    "lesion": (
        "3. Lesion area patches",
        "0.955 / 0.961 / 0.963",
        "0.932 / 0.945 / 0.949",
        "25",
    ),
}
"""Paper, Table 1: AUC and ACC on UBC-OCEAN / BCNB / DigestPath2019, minutes per slide."""
PAPER_SAVING = "50-70 %"

Run = tuple["Predictions", dict[str, dict[str, str]]]


COLUMNS = (
    "patches",
    "AUC (ours)",
    "AUC (paper)",
    "ACC (ours)",
    "ACC (paper)",
    "minutes per slide (ours)",
    "minutes (paper)",
    "patches per slide",
    "ACC of the checkpoint as it is",
)


def table_1(work: TableWork) -> TableResult:
    """Run the three strategies and put ours beside the paper's."""
    runs = engine_runs(work)
    trained = {name: predictions_of(work, name, runs[name]) for name in PAPER}
    rows, values = [], {}
    for name, (title, auc, acc, minutes) in PAPER.items():
        found, lines = trained[name], runs[name][1]
        ours = figures_with_intervals(found.labelled())
        given = figures_with_intervals(runs[name][0].labelled())["acc"]
        seconds = mean_interval(lines, "seconds")
        patches = mean_interval(lines, "patches").value
        figures = (str(ours["auc"]), auc, str(ours["acc"]), acc)
        costs = (_minutes(seconds), minutes, f"{patches:.0f}")
        rows.append((title, *figures, *costs, str(given)))
        values[name] = {
            "auc": vars(ours["auc"]),
            "acc": vars(ours["acc"]),
            "acc_checkpoint": vars(given),
            "seconds": vars(seconds),
            "patches": patches,
        }
    return TableResult(
        "MsaMIL-Net, Table 1: patch selection",
        COLUMNS,
        rows,
        _notes(work, trained),
        values=values,
    )


def _minutes(seconds: Interval) -> str:
    value, low, high = (s / 60 for s in (seconds.value, seconds.low, seconds.high))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _notes(work: TableWork, trained: Mapping[str, Predictions]) -> list[str]:
    """On what, and lesion patches against the two others."""
    lesion, options = trained["lesion"], work.options
    folds = len(set(lesion.folds))
    how = (
        f"aggregator cross-validated in {folds} folds by patient for each selection"
        if folds > 1
        else "the checkpoint as it is"
    )
    data = f"{len(lesion)} slides of {len(set(lesion.patients))} patients (split {options.split!r})"
    notes = [
        f"{data}, encoder of {options.model!r}, {how}; 95 % intervals over patients."
    ]
    for name in ("tissue", "random"):
        notes += comparison_lines(PAPER[name][0], compare(lesion, trained[name]))
    return notes


def predictions_of(work: TableWork, name: str, run: Run) -> Predictions:
    """Predictions with an aggregator trained on these patches; the checkpoint's own where only a part of the cohort is run."""
    if work.options.split != "all":
        return run[0]
    config = read_header(resolve_model(work.options.model)).config
    bags = _bags(work, name)
    return cross_validate(work, config, config.aggregator.name, bags, name)


def _bags(work: TableWork, name: str) -> Path:
    """Where the engine leaves the features of a strategy; those of lesion patches serve other tables too."""
    return work.bags_folder(work.options.model, name)


def figure_2(work: TableWork) -> TableResult:
    """How much less is computed with lesion patches than with all, per slide."""
    runs = engine_runs(work)
    everything, lesion = (
        {name: float(line["pixels0"]) for name, line in runs[key][1].items()}
        for key in ("tissue", "lesion")
    )
    both = sorted(set(everything) & set(lesion))
    saved = np.array([1 - lesion[n] / everything[n] for n in both])
    middle = _interval(saved)
    rows = [
        (
            "area computed less",
            f"{100 * middle.value:.0f} % [{100 * middle.low:.0f}, {100 * middle.high:.0f}]",
            PAPER_SAVING,
        )
    ]
    figure = plots.histogram_plot(100 * saved, "area computed less (%)", "slides")
    notes = [
        f"{len(both)} slides; patches of all scales, lesion against all non-background patches."
    ]
    return TableResult(
        "MsaMIL-Net, Figure 2: area saved by the lesion filter",
        ("", "ours", "paper"),
        rows,
        notes,
        {"figure-2": figure},
        {"saved": saved.tolist()},
    )


def engine_runs(work: TableWork) -> dict[str, Run]:
    """Predictions and timings of the three strategies; random draws as many patches as the lesions had."""
    from napari_msamil.device import choose_runtime

    options = work.options
    cohort = work.cohort()
    rows = require_test_slides(cohort, options.split)
    runtime = choose_runtime(options.device, options.precision)
    loaded = load_checkpoint(options.model, device=runtime.device)
    runs: dict[str, Run] = {}
    for name in ("lesion", "random", "tissue"):
        path = work.shared / "engine" / f"{name}.csv"
        model = (
            with_random_counts(loaded, runs["lesion"]) if name == "random" else loaded
        )
        say(f"engine, {name} patches → {path}")
        spec = EngineSpec(name, bags=_bags(work, name))
        failed = finish(predict_cohort(rows, model, runtime, path, spec))
        for slide, reason in failed.items():
            say(f"{slide}: {reason}")
        runs[name] = read_engine_run(path, rows)
    return runs


def with_random_counts(loaded: LoadedModel, lesion: Run) -> LoadedModel:
    """The model with `random_counts` that add up to the mean number of lesion patches, in the paper's shares."""
    total = mean_interval(lesion[1], "patches").value
    spec = loaded.config.patches
    shares = np.array(
        [4.0 ** (len(spec.scales) - 1 - i) for i in range(len(spec.scales))]
    )
    counts = np.maximum(np.round(total * shares / shares.sum()), 1).astype(int)
    patches = spec.model_copy(update={"random_counts": tuple(int(c) for c in counts)})
    return replace(loaded, config=loaded.config.model_copy(update={"patches": patches}))


def mean_interval(lines: dict[str, dict[str, Any]], column: str) -> Interval:
    """Mean of a column over slides, with its bootstrap interval."""
    return _interval(np.array([float(line[column]) for line in lines.values()]))


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> Interval:
    return bootstrap_interval(
        lambda v, _: float(v.mean()), values, np.arange(len(values))
    )
