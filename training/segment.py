"""Train the lesion segmenter: UNet++ on squeezed thumbnails (section 3.1 of MsaMIL-Net).

The cohort table names slides, or plain pictures, and their masks or annotation files. The folder gets best.pt (which
`publish` takes), state.pt (to go on with --resume), log.jsonl, config.json, figures.json with IoU and Dice beside the
best global threshold, slides.csv with the figures of every slide, iou.png (the curve of Figure 3a) and examples.png.
"""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from napari_msamil.config import SegmenterSpec
from napari_msamil.device import choose_runtime
from napari_msamil.errors import CohortError, ConfigError
from napari_msamil.models.segmenter import Segmenter

from .cohort import read_cohort
from .config import (
    add_recipe_arguments,
    checked,
    describe,
    model_config,
    read_recipe,
    section,
)
from .log import RunLog
from .loop import FitResult, fit
from .segment_data import SegmentItem, read_items
from .segment_figures import (
    best_global_threshold,
    best_threshold,
    level_of,
    mean_interval,
)
from .segment_plots import example_picture, iou_curve
from .segment_task import SegmentSpec, SegmentTask
from .state import BEST, LAST, claim, load_state, save_state, seed_everything

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from napari_msamil.device import Runtime

    from .cohort import Cohort

FIGURES, SLIDES, CURVE, EXAMPLES = (
    "figures.json",
    "slides.csv",
    "iou.png",
    "examples.png",
)


@dataclass(frozen=True)
class SegmentResult:
    """What a training gave.

    Attributes:
        fit: How the loop ended.
        state: File with the best weights and the chosen threshold: what `publish` takes.
        threshold: Probability above which a pixel is lesion.
        figures: Per split: slides, mean IoU and Dice with intervals, and the best global threshold's.
    """

    fit: FitResult
    state: Path
    threshold: float
    figures: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train segment`."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--cohort", type=Path, required=True, help="cohort table (.csv) with masks"
    )
    parser.add_argument("--splits", type=Path, help="split file of `cohort --folds`")
    parser.add_argument("--fold", type=int, help="which fold of the split file")
    parser.add_argument(
        "--resume", action="store_true", help="go on from state.pt in the output folder"
    )
    parser.epilog = (
        "settings ([segment] in the recipe; the network itself is [model.segmenter]):\n"
        + describe(SegmentSpec, "segment")
    )


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say."""
    raw = read_recipe(args.config, args.overrides)
    spec = section(raw, "segment", SegmentSpec)
    cohort = read_cohort(
        args.cohort, splits=args.splits, fold=args.fold, need_labels=False
    )
    network = segmenter_spec(raw)
    now = {"data_hash": cohort.data_hash, "settings": spec.model_dump_json()}
    claim(args.out, now, resume=args.resume)
    runtime = choose_runtime(args.device, args.precision)
    result = train_segment(network, spec, cohort, args.out, runtime, resume=args.resume)
    print(json.dumps(_summary(result)))  # noqa: T201
    return 130 if result.fit.reason == "stopped" else 0


def _summary(result: SegmentResult) -> dict[str, Any]:
    """What the command prints, as plain JSON."""
    return {
        "state": str(result.state),
        "threshold": result.threshold,
        "epochs": result.fit.epochs,
        "best_epoch": result.fit.best_epoch,
        "reason": result.fit.reason,
        **result.figures,
    }


def segmenter_spec(raw: Mapping[str, Any]) -> SegmenterSpec:
    """The network of a recipe: `[model.segmenter]` over that of the preset.

    Raises:
        ConfigError: The table is wrong, or the recipe's model has no segmenter.
    """
    found = model_config(raw, raw.get("model", {}).get("classes", ("a", "b"))).segmenter
    if found is None:
        raise ConfigError(
            "The recipe's model has no segmenter: fill [model.segmenter]."
        )
    return checked(SegmenterSpec, found.model_dump(), "model.segmenter")


def train_segment(
    network: SegmenterSpec,
    spec: SegmentSpec,
    cohort: Cohort,
    folder: Path,
    runtime: Runtime,
    *,
    resume: bool = False,
) -> SegmentResult:
    """Train a segmenter on a cohort and measure it.

    Args:
        network: The network; its threshold is replaced where `spec` says so.
        spec: How to train it.
        cohort: Slides with masks and splits.
        folder: Gets states, log, figures and pictures.
        runtime: Device and precision.
        resume: Go on from the folder's last state.

    Raises:
        CohortError: No training slide has a mask, or one cannot be read.
        ConfigError: The network cannot be built or its start weights cannot be had.
    """
    parts = {
        name: _items(cohort, name, network, spec) for name in ("train", "val", "test")
    }
    if not parts["train"]:
        raise CohortError(
            f"{cohort.path} has no training slide with a mask. Fill the columns split and mask."
        )
    seed_everything(spec.seed)
    model = start_segmenter(network, spec, runtime)
    notes = {"data_hash": cohort.data_hash, "device": runtime.device}
    task = SegmentTask(model, spec, parts["train"], parts["val"], runtime, notes)
    _write_config(folder, network, spec, cohort.path)
    steps = spec.epochs * -(-len(parts["train"]) // spec.accumulate)
    with RunLog(folder, steps, title="segment") as log:
        log.event("start", **{name: len(items) for name, items in parts.items()})
        ended = fit(task, spec, folder, log, resume=resume)
    return measure(task, parts, folder, ended)


def _items(
    cohort: Cohort, split: str, network: SegmenterSpec, spec: SegmentSpec
) -> list[SegmentItem]:
    return list(
        read_items(
            cohort.part(split),
            network.size_px,
            network.channels,
            unlabelled=spec.unlabelled,
            negative_labels=spec.negative_labels,
        )
    )


def start_segmenter(
    network: SegmenterSpec, spec: SegmentSpec, runtime: Runtime
) -> Segmenter:
    """The network with its start weights, on its device.

    Raises:
        ConfigError: Published weights were asked for and cannot be had.
    """
    try:
        model = Segmenter(network, pretrained=spec.start == "imagenet")
    except OSError as error:
        raise ConfigError(
            f"The start weights for {network.encoder} cannot be fetched ({str(error)[:200]}). Connect to the internet "
            "once, or use segment.start = 'random'."
        ) from error
    layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
    return model.to(runtime.torch_device).to(memory_format=layout)


def measure(
    task: SegmentTask,
    parts: Mapping[str, Sequence[SegmentItem]],
    folder: Path,
    ended: FitResult,
) -> SegmentResult:
    """Take the best weights, choose the threshold, measure every split, write figures and pictures."""
    best = folder / (BEST if (folder / BEST).is_file() else LAST)
    state = load_state(best, task.kind)
    task.network.load_state_dict(state["model"])
    threshold = task.segmenter.spec.threshold
    if task.spec.tune_threshold and parts["val"]:
        threshold = best_threshold(task.counts(parts["val"])[0])
    chosen = task.segmenter.spec.model_copy(update={"threshold": threshold})
    figures, rows = {}, []
    for name in ("val", "test"):
        if parts[name]:
            figures[name], more = _figures(task, parts[name], name, threshold)
            rows += more
    state["description"]["segmenter"] = chosen.model_dump_json()
    flat = {
        f"{name}_{key}": found[key]["value"]
        for name, found in figures.items()
        for key in ("iou", "dice")
    }
    state["metrics"] = {**state["metrics"], **flat, "threshold": threshold}
    save_state(
        best, task.kind, {k: v for k, v in state.items() if k not in ("format", "kind")}
    )
    _write(folder, figures, rows, threshold)
    iou_curve(folder, folder / CURVE)
    shown = parts["test"] or parts["val"]
    if shown:
        example_picture(task, shown, threshold, folder / EXAMPLES)
    return SegmentResult(ended, best, threshold, figures)


def _figures(
    task: SegmentTask, items: Sequence[SegmentItem], split: str, threshold: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures of one split, and one row per slide."""
    counts, _ = task.counts(items)
    level = level_of(threshold)
    groups = [item.group for item in items]
    iou = [float(c.iou()[level]) for c in counts]
    dice = [float(c.dice()[level]) for c in counts]
    rule = best_global_threshold(items)
    found = {
        "slides": len(items),
        "patients": len(set(groups)),
        "iou": asdict(mean_interval(iou, groups)),
        "dice": asdict(mean_interval(dice, groups)),
        "best_global_threshold": asdict(rule),
    }
    rows = [
        {
            "slide_id": item.name,
            "patient_id": item.group,
            "split": split,
            "iou": f"{i:.4f}",
            "dice": f"{d:.4f}",
        }
        for item, i, d in zip(items, iou, dice, strict=True)
    ]
    return found, rows


def _write(
    folder: Path, figures: dict[str, Any], rows: list[dict[str, Any]], threshold: float
) -> None:
    text = json.dumps({"threshold": threshold, **figures}, indent=2) + "\n"
    (folder / FIGURES).write_text(text, encoding="utf-8")
    with (folder / SLIDES).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file,
            ("slide_id", "patient_id", "split", "iou", "dice"),
            lineterminator="\n",
        )
        writer.writeheader()
        writer.writerows(rows)


def _write_config(
    folder: Path, network: SegmenterSpec, spec: SegmentSpec, cohort: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    resolved = {
        "model": {"segmenter": network.model_dump(mode="json")},
        "segment": spec.model_dump(mode="json"),
        "command": " ".join(sys.argv),
        "cohort": str(cohort),
    }
    text = json.dumps(resolved, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
