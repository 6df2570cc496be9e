"""Train encoder and aggregator end to end (Algorithm 2 of MsaMIL-Net).

Each visit of a slide draws patches from all its non-background patches at three scales, encodes them with gradients,
classifies the bag, and updates encoder and aggregator. The folder gets state.pt (to go on with --resume), best.pt
(the best on the validation slides), log.jsonl, TensorBoard files and config.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from napari_msamil.device import choose_runtime
from napari_msamil.errors import ConfigError
from napari_msamil.models import build_model

from . import pixel_run
from .compiled import compile_encoder, compiled_plan
from .config import E2ESpec
from .e2e_task import E2ETask
from .gradients import StepPlan, check_batchnorm, has_batchnorm
from .log import RunLog
from .loop import FitResult, fit
from .ranks import ONE_RANK, Ranks, joined_ranks, rank_device
from .state import claim, seed_everything
from .step_memory import choose_plan, measure_cost, memory_budget

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from napari_msamil.config import ModelConfig
    from napari_msamil.device import Runtime
    from napari_msamil.models.msamil import MsamilModel

    from .cohort import Cohort


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train e2e`."""
    pixel_run.add_arguments(parser, "e2e", E2ESpec)
    parser.add_argument(
        "--check",
        action="store_true",
        help="dry run: is every slide readable, which classes, one step, memory and time; nothing is written",
    )


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say; under torchrun all ranks train one model."""
    found = pixel_run.read_run(args, "e2e", E2ESpec)
    runtime = choose_runtime(rank_device(args.device), args.precision)
    if not args.check:
        now = {
            "data_hash": found.cohort.data_hash,
            "classes": list(found.config.classes),
            "settings": found.spec.model_dump_json(),
        }
        claim(args.out, now, resume=args.resume)
    with joined_ranks(runtime.device) as ranks:
        task = make_task(found.config, found.spec, found.cohort, runtime, ranks)
        if args.check:
            return _say_check(task)
        if ranks.first:
            pixel_run.write_config(args.out, "e2e", found, args)
        result = train(task, args.out, resume=args.resume)
        faults = [part.items() for part in ranks.gather(task.faults)]
        if ranks.first:
            named = {name: why for part in faults for name, why in part}
            pixel_run.conclude(args.out, asdict(result), named)
    return 130 if result.reason == "stopped" else 0


def _say_check(task: E2ETask) -> int:
    from .e2e_check import check

    report = check(task)
    if task.ranks.first:
        print(json.dumps(report, indent=1))  # noqa: T201
    for problem in report["problems"]:
        print(problem, file=sys.stderr)  # noqa: T201
    return 1 if report["problems"] else 0


def make_task(
    config: ModelConfig,
    spec: E2ESpec,
    cohort: Cohort,
    runtime: Runtime,
    ranks: Ranks = ONE_RANK,
) -> E2ETask:
    """Build model, pools and task.

    Raises:
        CohortError: There is no training slide.
        ConfigError: Batch statistics meet a mode that works in chunks, or nothing fits into memory.
    """
    train = pixel_run.make_pool(cohort, "train", config, spec)
    val = pixel_run.make_pool(cohort, "val", config, spec)
    seed_everything(spec.seed)
    model = start_model(config, spec, runtime)
    if ranks.size > 1 and spec.batchnorm != "frozen":
        _share_statistics(model, spec, runtime)
    plan = make_plan(model, config, spec, runtime, ranks)
    if spec.compile:
        compile_encoder(model.encoder, fixed=plan.pad > 0)
    notes = {"data_hash": cohort.data_hash, "device": runtime.device}
    return E2ETask(model, config, spec, train, val, runtime, plan, notes, ranks)


def make_plan(
    model: MsamilModel,
    config: ModelConfig,
    spec: E2ESpec,
    runtime: Runtime,
    ranks: Ranks = ONE_RANK,
) -> StepPlan:
    """The memory mode: the one asked for, or the fastest that fits.

    Raises:
        ConfigError: It does not go with the batch statistics or a compiled encoder, nothing fits, or fp16 was asked for.
    """
    precision = str(runtime.precision)
    if precision == "fp16":
        raise ConfigError(
            "Training in fp16 would need loss scaling, which is not offered. Use --precision bf16 or fp32."
        )
    count = spec.instances * spec.together
    if spec.distributed == "instances":
        count = -(-count // ranks.size)
    if spec.memory != "auto":
        check_batchnorm(spec.batchnorm, spec.memory, allowed=spec.allow_batchnorm_trap)
        plan = StepPlan(spec.memory, spec.chunk, precision)
    elif spec.batchnorm != "frozen" and has_batchnorm(model.encoder):
        plan = StepPlan("none", spec.chunk, precision)
    else:
        plan = _fitting_plan(model, config, spec, runtime, count)
    return compiled_plan(plan, count, spec) if spec.compile else plan


def _fitting_plan(
    model: MsamilModel, config: ModelConfig, spec: E2ESpec, runtime: Runtime, count: int
) -> StepPlan:
    device, precision = runtime.torch_device, str(runtime.precision)
    with torch.random.fork_rng():
        size_px = config.patches.scales[0].size_px
        cost = measure_cost(model.encoder, size_px, device, precision)
    if spec.compile:
        cost = replace(cost, selective=None)
    budget = memory_budget(device, spec.memory_gb)
    return choose_plan(cost, count, spec.chunk, budget, precision)


def _share_statistics(model: MsamilModel, spec: E2ESpec, runtime: Runtime) -> None:
    """Make BatchNorm use the statistics of all ranks.

    Raises:
        ConfigError: torch can do that on CUDA only, or each rank would have statistics of its own.
    """
    if spec.batchnorm == "batch":
        raise ConfigError(
            "e2e.batchnorm = 'batch' on several ranks would give each its own statistics. Use 'sync' or 'frozen'."
        )
    if not runtime.device.startswith("cuda"):
        raise ConfigError(
            "e2e.batchnorm = 'sync' needs CUDA devices. Use 'frozen', or 'batch' in one process."
        )
    convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
    model.encoder = convert(model.encoder)


def start_model(config: ModelConfig, spec: E2ESpec, runtime: Runtime) -> MsamilModel:
    """The model with its start weights, on its device.

    Raises:
        ConfigError: Published weights were asked for and cannot be had.
    """
    model = build_model(config)
    if spec.start != "random":
        model.encoder = pixel_run.published_encoder(config.encoder, spec.start)
    layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
    model.to(runtime.torch_device)
    model.encoder.to(memory_format=layout)
    return model


def train(task: E2ETask, folder: Path, *, resume: bool = False) -> FitResult:
    """Run the loop with a log in the folder."""
    steps = task.spec.epochs * -(-len(task.train) // task.spec.accumulate)
    with RunLog(folder, steps, title="e2e", enabled=task.ranks.first) as log:
        log.event(
            "start",
            slides=len(task.train),
            validation=len(task.val),
            memory=task.plan.mode,
            precision=task.plan.precision,
            ranks=task.ranks.size,
        )
        return fit(task, task.spec, folder, log, resume=resume, ranks=task.ranks)
