"""MsaMIL-Net Table 1 and Figure 2: which patches are used, through the engine a user runs.

All non-background patches, a random choice as large as the lesion's (the paper's 2300 + 570 + 130 is the mean number of
its lesion patches), and lesion patches; the same checkpoint, minutes from slide to answer. Figure 2: how much of the
area that would be computed is saved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.progress import finish

from . import plots
from .engine_run import EngineSpec, predict_cohort, read_engine_run
from .intervals import Interval, bootstrap_interval
from .summary import compare, comparison_lines, figures_with_intervals
from .table_work import TableResult, TableWork, require_test_slides, say

if TYPE_CHECKING:
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
)


def table_1(work: TableWork) -> TableResult:
    """Run the three strategies and put ours beside the paper's."""
    runs = engine_runs(work)
    rows, values = [], {}
    for name in PAPER:
        found, lines = runs[name]
        figures = figures_with_intervals(found.labelled())
        seconds = mean_interval(lines, "seconds")
        patches = mean_interval(lines, "patches").value
        title, auc, acc, minutes = PAPER[name]
        ours = f"{seconds.value / 60:.3f} [{seconds.low / 60:.3f}, {seconds.high / 60:.3f}]"
        rows.append(
            (
                title,
                str(figures["auc"]),
                auc,
                str(figures["acc"]),
                acc,
                ours,
                minutes,
                f"{patches:.0f}",
            )
        )
        values[name] = {
            "auc": vars(figures["auc"]),
            "acc": vars(figures["acc"]),
            "seconds": vars(seconds),
            "patches": patches,
        }
    lesion = runs["lesion"][0]
    notes = [
        f"{len(lesion)} slides, split {work.options.split!r}, model {work.options.model!r}; one model, 95 % intervals over patients."
    ]
    for name in ("tissue", "random"):
        notes += comparison_lines(PAPER[name][0], compare(lesion, runs[name][0]))
    return TableResult(
        "MsaMIL-Net, Table 1: patch selection", COLUMNS, rows, notes, values=values
    )


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
    from napari_msamil.checkpoint import load_checkpoint
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
        failed = finish(
            predict_cohort(cohort, rows, model, runtime, path, EngineSpec(name))
        )
        for slide, reason in failed.items():
            say(f"{slide}: {reason}")
        runs[name] = read_engine_run(path)
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
