"""Train the encoder without labels (DINO), one scale at a time or all together: the alternative to end to end.

    msamil-train dino --config laptop-e2e --cohort cohort.csv --scale 20x -o runs/dino-20x

Then the same way as after end-to-end training: `publish` with an aggregator of that recipe, `extract`, `mil`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from napari_msamil.device import choose_runtime
from napari_msamil.errors import ConfigError
from napari_msamil.models import build_encoder

from . import pixel_run
from .dino_task import DinoSpec, DinoTask
from .log import RunLog
from .loop import fit
from .state import claim, seed_everything

if TYPE_CHECKING:
    import argparse

    from napari_msamil.config import ModelConfig
    from napari_msamil.device import Runtime

    from .cohort import Cohort


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train dino`."""
    pixel_run.add_arguments(parser, "dino", DinoSpec)
    parser.add_argument(
        "--scale", default="all", help="name of the scale, for example 20x, or all"
    )


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say."""
    found = pixel_run.read_run(args, "dino", DinoSpec)
    now = {
        "data_hash": found.cohort.data_hash,
        "settings": found.spec.model_dump_json(),
    }
    claim(args.out, now, resume=args.resume)
    runtime = choose_runtime(args.device, args.precision)
    task = make_task(found.config, found.spec, found.cohort, args.scale, runtime)
    pixel_run.write_config(args.out, "dino", found, args)
    with RunLog(args.out, task.total_steps, title="dino") as log:
        log.event("start", slides=len(task.pool), scale=args.scale)
        result = fit(task, found.spec, args.out, log, resume=args.resume)
    said = asdict(result)
    kept = {k: said[k] for k in ("epochs", "seconds", "reason", "skipped")}
    pixel_run.conclude(args.out, kept, task.faults)
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
    pool = pixel_run.make_pool(cohort, "train", config, spec)
    seed_everything(spec.seed)
    if spec.start == "random":
        encoder = build_encoder(config.encoder)
    else:
        encoder = pixel_run.published_encoder(config.encoder, spec.start)
    steps = spec.epochs * -(-len(pool) // spec.accumulate)
    index = None if scale == "all" else names.index(scale)
    data = cohort.data_hash
    return DinoTask(encoder, config, spec, pool, index, runtime, steps, data)
