"""Train the encoder without labels (DINO), one scale at a time or all together: the alternative to end to end.

    msamil-train dino --config laptop-e2e --cohort cohort.csv --scale 20x -o runs/dino-20x

Then the same way as after end-to-end training: `publish` with an aggregator of that recipe, `extract`, `mil`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.device import choose_runtime
from napari_msamil.errors import CohortError, ConfigError
from napari_msamil.models import build_encoder

from .cohort import read_cohort
from .config import add_recipe_arguments, describe, model_config, read_recipe, section
from .dino_task import DinoSpec, DinoTask
from .log import RunLog
from .loop import fit
from .patch_dataset import PatchPool
from .state import LAST, seed_everything

if TYPE_CHECKING:
    import argparse

    from napari_msamil.config import ModelConfig
    from napari_msamil.device import Runtime

    from .cohort import Cohort

RESULT = "result.json"
"""Written when the training has ended: other stages wait for it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train dino`."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--cohort", type=Path, required=True, help="cohort table (.csv)"
    )
    parser.add_argument("--splits", type=Path, help="split file of `cohort --folds`")
    parser.add_argument("--fold", type=int, help="which fold of the split file")
    parser.add_argument(
        "--scale", default="all", help="name of the scale, for example 20x, or all"
    )
    parser.add_argument("--resume", action="store_true", help="go on where it stopped")
    parser.epilog = "settings ([dino] in the recipe):\n" + describe(DinoSpec, "dino")


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say."""
    raw = read_recipe(args.config, args.overrides)
    spec = section(raw, "dino", DinoSpec)
    classes = tuple(raw.get("model", {}).get("classes", ()))
    cohort = read_cohort(
        args.cohort, classes=classes, splits=args.splits, fold=args.fold
    )
    config = model_config(raw, cohort.classes).model_copy(update={"segmenter": None})
    if (args.out / LAST).exists() and not args.resume:
        raise ConfigError(
            f"{args.out} holds a training already. Go on with --resume, or choose another folder."
        )
    runtime = choose_runtime(args.device, args.precision)
    task = make_task(config, spec, cohort, args.scale, runtime)
    with RunLog(args.out, task.total_steps, title="dino") as log:
        log.event("start", slides=len(task.pool), scale=args.scale)
        result = fit(task, spec, args.out, log, resume=args.resume)
    for name, reason in task.faults.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)  # noqa: T201
    said = asdict(result)
    text = json.dumps({k: said[k] for k in ("epochs", "seconds", "reason", "skipped")})
    print(text)  # noqa: T201
    if result.reason != "stopped":
        (args.out / RESULT).write_text(text + "\n", encoding="utf-8")
    return 130 if result.reason == "stopped" else 0


def make_task(
    config: ModelConfig, spec: DinoSpec, cohort: Cohort, scale: str, runtime: Runtime
) -> DinoTask:
    """Build encoder, pool and task.

    Raises:
        ConfigError: The model has no such scale.
        CohortError: There is no training slide.
    """
    names = [s.name for s in config.patches.scales]
    if scale != "all" and scale not in names:
        raise ConfigError(f"There is no scale {scale!r}. Use all, {', '.join(names)}.")
    rows = cohort.part("train")
    if not rows:
        raise CohortError(
            f"{cohort.path} has no row with split 'train'. Fill the column, or make splits: msamil-train cohort."
        )
    pool = PatchPool(rows, config, spec.cache_gb)
    seed_everything(spec.seed)
    encoder = build_encoder(config.encoder, pretrained=spec.start == "imagenet")
    steps = spec.epochs * -(-len(rows) // spec.accumulate)
    index = None if scale == "all" else names.index(scale)
    return DinoTask(encoder, config, spec, pool, index, runtime, steps)
