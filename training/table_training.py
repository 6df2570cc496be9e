"""MsaMIL-Net Table 3 and Figure 3: how the encoder is trained, and the segmenter's curve.

Every way of training ends alike: its encoder extracts lesion features of the whole cohort, the aggregator is trained on
them, and the test slides of the fold are predicted. Only the encoder differs: end to end with a number of patches in
the graph, self-supervised with one encoder per scale (section 4.4), or left at its start weights. Each fold's encoder
sees that fold's training slides only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from napari_msamil.config import Spec
from napari_msamil.errors import ConfigError

from . import plots
from .config import E2ESpec, read_recipe, section
from .cv_fold import STATE
from .log import read_log
from .splits import read_splits
from .summary import compare, comparison_lines, summarise
from .table_work import TableResult, TableWork
from .training_runs import recipe_of, run_training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .prediction_table import Predictions


class TrainingTablesSpec(Spec):
    """What Table 3 and Figure 3(b) run; table `[tables]` of the recipe.

    Attributes:
        in_graph: Patches in the graph in Figure 3(b).
        table_folds: Folds of Table 3, the first ones; 0 takes all.
        sweep_folds: Folds of Figure 3(b), likewise.
    """

    in_graph: tuple[int, ...] = (1, 8, 32, 120, 200)
    table_folds: int = Field(default=0, ge=0)
    sweep_folds: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Way:
    """One row of Table 3; AUC, ACC and time are the paper's, averaged over its data sets."""

    title: str
    auc: str
    acc: str
    hours: str


WAYS = {
    "frozen": Way("Frozen start weights", "–", "–", "–"),
    "dino": Way("Self-supervised (DINO), one encoder per scale", "0.950", "0.928", "71 h"),
    "e2e": Way("End-to-end", "0.960", "0.942", "25 h"),
}  # fmt: skip


def table_3(work: TableWork) -> TableResult:
    """End-to-end against self-supervised and untrained encoders: accuracy and time."""
    spec = section(_recipe(work), "tables", TrainingTablesSpec)
    folds = _first(work, spec.table_folds)
    rows, values, found = [], {}, {}
    for name, way in WAYS.items():
        found[name], cost = run_training(work, name, name, folds=folds)
        ours = summarise(found[name]).pooled
        auc, acc = ours["auc"], ours["acc"]
        times = (f"{cost.wall_s / 60:.1f} min", f"{cost.cpu_s / 60:.1f} min")
        rows.append((way.title, str(auc), way.auc, str(acc), way.acc, *times, way.hours))  # fmt: skip
        values[name] = {"auc": vars(auc), "acc": vars(acc), **vars(cost)}
    notes = [
        f"{len(found['e2e'])} test slides of {len(set(found['e2e'].patients))} patients, {len(folds)} folds.",
        "Time is that of training the encoder or encoders, mean over folds.",
        *_against(found, "dino"),
        *_against(found, "frozen"),
    ]
    columns = ("training", "AUC (ours)", "AUC (paper)", "ACC (ours)", "ACC (paper)", "wall time (ours)",
               "processor time (ours)", "time (paper)")  # fmt: skip
    return TableResult(
        "MsaMIL-Net, Table 3: training strategy", columns, rows, notes, values=values
    )


def _recipe(work: TableWork) -> dict[str, Any]:
    return read_recipe(recipe_of(work), work.options.overrides)


def _first(work: TableWork, count: int) -> range:
    """The first folds; all where the count is 0."""
    return range(len(read_splits(work.splits()).folds))[: count or None]


def _against(found: dict[str, Predictions], other: str) -> Sequence[str]:
    return comparison_lines(WAYS[other].title, compare(found["e2e"], found[other]))


def figure_3a(work: TableWork) -> TableResult:
    """IoU of the segmenter on validation slides over training."""
    folder = work.folder / "segment"
    words = [
        "--config",
        recipe_of(work),
        "--cohort",
        work.options.cohort,
        "-o",
        folder,
        *work.device_words(),
        *(["--resume"] if (folder / STATE).exists() else []),
    ]
    for change in work.options.overrides:
        words += ["--set", change]
    work.stage("segment", words, folder / "figures.json")
    lines = [line for line in read_log(folder) if "val_iou" in line]
    epochs, iou = (
        [int(line["epoch"]) for line in lines],
        [float(line["val_iou"]) for line in lines],
    )
    if not iou:
        raise ConfigError(
            f"{folder} validated no epoch. Does the cohort have validation slides with masks?"
        )
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    picture = plots.curve_plot(
        {"validation": (epochs, iou)}, "epoch", "IoU", {"paper: 0.62": 0.62}
    )
    rows = [("best IoU on validation slides", f"{max(iou):.3f}", "0.62")]
    return TableResult(
        "MsaMIL-Net, Figure 3(a): IoU of UNet++", ("", "ours", "paper"), rows, [f"{len(iou)} epochs."],
        {"figure-3a": picture}, {"iou": iou, "epochs": epochs, "segment": figures},
    )  # fmt: skip


def figure_3b(work: TableWork) -> TableResult:
    """ACC over the number of patches in the graph, beside self-supervision on the same folds."""
    raw = _recipe(work)
    spec = section(raw, "tables", TrainingTablesSpec)
    usual = section(raw, "e2e", E2ESpec).instances
    folds = _first(work, spec.sweep_folds)
    shared = TableWork(work.options, "msamil-3")
    dino = summarise(run_training(shared, "dino", "dino", folds=folds)[0]).pooled["acc"]
    rows, accs, slides = [], [], 0
    for count in spec.in_graph:
        if count == usual:  # Table 3 has it
            found, cost = run_training(shared, "e2e", "e2e", folds=folds)
        else:
            change = ["--set", f"e2e.instances={count}"]
            found, cost = run_training(work, f"e2e-{count}", "e2e", change, folds)
        pooled, slides = summarise(found).pooled, len(found)
        accs.append(pooled["acc"])
        rows.append((str(count), str(pooled["acc"]), str(pooled["auc"]), f"{cost.cpu_s / 60:.1f} min"))  # fmt: skip
    rows.append(("DINO", str(dino), "", ""))
    curve = {"end-to-end": (spec.in_graph, [a.value for a in accs])}
    picture = plots.curve_plot(
        curve, "patches in the graph", "ACC", {"DINO": dino.value}
    )
    beaten = next((n for n, a in zip(spec.in_graph, accs, strict=True) if a.value >= dino.value), None)  # fmt: skip
    notes = [
        f"{slides} test slides of {len(folds)} folds; every row visits each slide equally often.",
        f"ours reaches DINO at {beaten or 'none of these'} patches, the paper's at about 120.",
    ]
    values = {str(n): vars(a) for n, a in zip(spec.in_graph, accs, strict=True)}
    return TableResult(
        "MsaMIL-Net, Figure 3(b): patches in the graph",
        ("patches", "ACC (ours)", "AUC (ours)", "processor time"), rows, notes,
        {"figure-3b": picture}, {**values, "dino": vars(dino)},
    )  # fmt: skip
