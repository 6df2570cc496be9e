"""MsaMIL-Net Table 3 and Figure 3: how the encoder is trained, and the segmenter's curve.

Every way of training ends alike: its encoder extracts lesion features of the whole cohort, the aggregator is trained on
them, and the test slides of the fold are predicted. Only the encoder differs: end to end with a number of patches in
the graph, or self-supervised. Each fold's encoder sees that fold's training slides only.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import ConfigError

from . import plots
from .log import read_log
from .prediction_table import Predictions, join_predictions, read_predictions
from .splits import read_splits
from .summary import compare, comparison_lines, summarise
from .table_work import TableResult, TableWork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PAPER_3 = {
    "dino": ("Self-supervised (DINO)", "0.950", "0.928", "71 h"),
    "e2e": ("End-to-end", "0.960", "0.942", "25 h"),
}
"""Paper, Table 3: AUC, ACC and time, averaged over the data sets."""
IN_GRAPH = (1, 8, 32, 120, 200)
"""Patches in the graph in Figure 3(b)."""


def table_3(work: TableWork) -> TableResult:
    """End-to-end against self-supervised: accuracy and hours."""
    rows, values, found = [], {}, {}
    for verb, (title, auc, acc, hours) in PAPER_3.items():
        found[verb], seconds = run_training(work, verb, verb, [])
        summary = summarise(found[verb])
        ours = summary.pooled
        rows.append(
            (
                title,
                str(ours["auc"]),
                auc,
                str(ours["acc"]),
                acc,
                f"{seconds / 3600:.2f} h",
                hours,
            )
        )
        values[verb] = {
            "auc": vars(ours["auc"]),
            "acc": vars(ours["acc"]),
            "seconds": seconds,
        }
    notes = [
        f"{len(found['e2e'])} slides; time is that of training the encoder, mean over folds.",
        *comparison_lines(PAPER_3["dino"][0], compare(found["e2e"], found["dino"])),
    ]
    columns = (
        "training",
        "AUC (ours)",
        "AUC (paper)",
        "ACC (ours)",
        "ACC (paper)",
        "time (ours)",
        "time (paper)",
    )
    return TableResult(
        "MsaMIL-Net, Table 3: training strategy", columns, rows, notes, values=values
    )


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
    """ACC over the number of patches in the graph, beside self-supervision."""
    shared = TableWork(work.options, "msamil-3")
    dino = summarise(run_training(shared, "dino", "dino", [])[0]).pooled["acc"]
    rows, accs = [], []
    for count in IN_GRAPH:
        found, seconds = run_training(
            work, f"e2e-{count}", "e2e", ["--set", f"e2e.instances={count}"]
        )
        acc = summarise(found).pooled["acc"]
        accs.append(acc)
        rows.append((str(count), str(acc), f"{seconds / 60:.1f} min"))
    rows.append(("DINO", str(dino), ""))
    curve = {"end-to-end": (IN_GRAPH, [a.value for a in accs])}
    picture = plots.curve_plot(
        curve, "patches in the graph", "ACC", {"DINO": dino.value}
    )
    beaten = next(
        (n for n, a in zip(IN_GRAPH, accs, strict=True) if a.value >= dino.value), None
    )
    notes = [
        f"ours reaches DINO at {beaten or 'none of these'} patches, the paper's at about 120."
    ]
    values = {str(n): vars(a) for n, a in zip(IN_GRAPH, accs, strict=True)}
    return TableResult(
        "MsaMIL-Net, Figure 3(b): patches in the graph", ("patches", "ACC (ours)", "time"), rows, notes,
        {"figure-3b": picture}, {**values, "dino": vars(dino)},
    )  # fmt: skip


def run_training(
    work: TableWork, name: str, verb: str, changes: Sequence[str]
) -> tuple[Predictions, float]:
    """Train an encoder in every fold, then extract, train the aggregator and predict.

    Returns:
        Test predictions of all folds, and the mean seconds of training the encoder.
    """
    folder = work.folder / name
    recipe = work.folder / f"{name}.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(stages_toml(work, verb, changes), encoding="utf-8")
    words: list[str | Path] = [
        "--recipe",
        recipe,
        "--cohort",
        work.options.cohort,
        "--splits",
        work.splits(),
    ]
    words += ["-o", folder, "--jobs", str(work.options.jobs)]
    folds = range(len(read_splits(work.splits()).folds))
    work.stage("crossval", words, folder / "predictions.csv")
    parts = [
        read_predictions(folder / f"fold_{k}" / "predictions.csv", k).part("test")
        for k in folds
    ]
    seconds = [
        json.loads((folder / f"fold_{k}" / "seconds.json").read_text(encoding="utf-8"))[
            verb
        ]
        for k in folds
    ]
    return join_predictions(parts), float(np.mean(seconds))


def stages_toml(work: TableWork, verb: str, changes: Sequence[str]) -> str:
    """The stages of one fold as a recipe for `crossval --recipe`."""
    options = work.options
    device = " ".join(work.device_words())
    changed = " ".join([*changes, *(f"--set {o}" for o in options.overrides)])
    data = "--cohort {cohort} --splits {splits} --fold {fold}"
    config = f"--config {recipe_of(work)} {changed}"
    stages = (
        (
            verb,
            f"{config} {data} -o {{out}}/encoder {device}",
            "{out}/encoder/result.json",
        ),
        (
            "publish",
            f"{{out}}/encoder -o {{out}}/encoder.safetensors --base {options.model} --data table",
            "{out}/encoder.safetensors",
        ),
        (
            "extract",
            f"--model {{out}}/encoder.safetensors --cohort {{cohort}} -o {{out}}/bags {device}",
            "{out}/bags/extracted.json",
        ),
        (
            "mil",
            f"{config} {data} --bags {{out}}/bags -o {{out}} {device}",
            "{out}/predictions.csv",
        ),
    )
    lines = []
    for name, args, makes in stages:
        lines += [
            "[[stages]]",
            f"verb = {json.dumps(name)}",
            f"args = {json.dumps(args)}",
            f"makes = {json.dumps(makes)}",
            "",
        ]
    return "\n".join(lines)


def recipe_of(work: TableWork) -> Any:
    """The recipe that says how encoders and aggregators are trained."""
    return work.options.recipe or "demo"
