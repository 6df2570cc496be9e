"""Train encoder and aggregator end to end (Algorithm 2 of MsaMIL-Net).

Each visit of a slide draws patches from all its non-background patches at three scales, encodes them with gradients,
classifies the bag, and updates encoder and aggregator. The folder gets state.pt (to go on with --resume), best.pt
(the best on the validation slides), log.jsonl, TensorBoard files and config.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from napari_msamil.device import choose_runtime
from napari_msamil.errors import CohortError, ConfigError
from napari_msamil.models import build_encoder, build_model

from .cohort import read_cohort
from .config import (
    E2ESpec,
    add_recipe_arguments,
    describe,
    model_config,
    read_recipe,
    section,
)
from .e2e_task import E2ETask
from .gradients import StepPlan, check_batchnorm
from .log import RunLog
from .loop import FitResult, fit
from .patch_dataset import PatchPool
from .state import LAST, seed_everything

if TYPE_CHECKING:
    import argparse

    from napari_msamil.config import ModelConfig
    from napari_msamil.device import Runtime
    from napari_msamil.models.msamil import MsamilModel

    from .cohort import Cohort


RESULT = "result.json"
"""Written when a training has come to its end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train e2e`."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--cohort", type=Path, required=True, help="cohort table (.csv)"
    )
    parser.add_argument("--splits", type=Path, help="split file of `cohort --folds`")
    parser.add_argument("--fold", type=int, help="which fold of the split file")
    parser.add_argument(
        "--resume", action="store_true", help="go on from state.pt in the output folder"
    )
    parser.epilog = "settings ([e2e] in the recipe):\n" + describe(E2ESpec, "e2e")


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say."""
    raw = read_recipe(args.config, args.overrides)
    spec = section(raw, "e2e", E2ESpec)
    classes = tuple(raw.get("model", {}).get("classes", ()))
    cohort = read_cohort(
        args.cohort, classes=classes, splits=args.splits, fold=args.fold
    )
    config = model_config(raw, cohort.classes).model_copy(update={"segmenter": None})
    runtime = choose_runtime(args.device, args.precision)
    task = make_task(config, spec, cohort, runtime)
    _claim(args.out, resume=args.resume)
    _write_config(args.out, config, spec, args)
    result = train(task, args.out, resume=args.resume)
    for name, reason in task.faults.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)  # noqa: T201
    text = json.dumps(asdict(result))
    print(text)  # noqa: T201
    if result.reason == "stopped":
        return 130
    (args.out / RESULT).write_text(text + "\n", encoding="utf-8")
    return 0


def make_task(
    config: ModelConfig, spec: E2ESpec, cohort: Cohort, runtime: Runtime
) -> E2ETask:
    """Build model, pools and task.

    Raises:
        CohortError: There is no training slide.
        ConfigError: Batch statistics meet a mode that works in chunks.
    """
    rows = cohort.part("train")
    if not rows:
        raise CohortError(
            f"{cohort.path} has no row with split 'train'. Fill the column, or make splits: msamil-train cohort."
        )
    train = PatchPool(rows, config, spec.cache_gb)
    val = PatchPool(cohort.part("val"), config, spec.cache_gb / 4)
    seed_everything(spec.seed)
    model = start_model(config, spec, runtime)
    mode = "none" if spec.memory == "auto" else spec.memory
    check_batchnorm(spec.batchnorm, mode, allowed=spec.allow_batchnorm_trap)
    plan = StepPlan(mode, spec.chunk, str(runtime.precision))
    notes = {"data_hash": cohort.data_hash, "device": runtime.device}
    return E2ETask(model, config, spec, train, val, runtime, plan, notes)


def start_model(config: ModelConfig, spec: E2ESpec, runtime: Runtime) -> MsamilModel:
    """The model with its start weights, on its device.

    Raises:
        ConfigError: Published weights were asked for and cannot be had.
    """
    model = build_model(config)
    if spec.start != "random":
        model.encoder = _published(config, spec)
    layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
    model.to(runtime.torch_device)
    model.encoder.to(memory_format=layout)
    return model


def _published(config: ModelConfig, spec: E2ESpec) -> Any:
    encoder = config.encoder
    if spec.start != "imagenet":
        encoder = encoder.model_copy(update={"backbone": spec.start})
    try:
        return build_encoder(encoder, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"The start weights {spec.start!r} for {encoder.backbone} cannot be fetched ({type(error).__name__}: "
            f"{str(error)[:200]}). Connect to the internet once, set HF_HOME to a folder that holds them, or use "
            "e2e.start = 'random'."
        ) from error


def train(task: E2ETask, folder: Path, *, resume: bool = False) -> FitResult:
    """Run the loop with a log in the folder."""
    steps = task.spec.epochs * -(-len(task.train) // task.spec.accumulate)
    with RunLog(folder, steps, title="e2e") as log:
        log.event("start", slides=len(task.train), validation=len(task.val))
        return fit(task, task.spec, folder, log, resume=resume)


def _claim(folder: Path, *, resume: bool) -> None:
    """Refuse to overwrite an older run.

    Raises:
        ConfigError: There is one.
    """
    if (folder / LAST).exists() and not resume:
        raise ConfigError(
            f"{folder} holds a training already. Go on with --resume, or choose another folder."
        )


def _write_config(
    folder: Path, config: ModelConfig, spec: E2ESpec, args: argparse.Namespace
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    resolved = {
        "model": config.model_dump(mode="json"),
        "e2e": spec.model_dump(mode="json"),
        "command": " ".join(sys.argv),
        "cohort": str(args.cohort),
    }
    text = json.dumps(resolved, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
