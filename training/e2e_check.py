"""The dry run of end-to-end training: is the data readable, what is in it, does one step work, does it fit."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import MsamilError

from .step_memory import cost_table, measure_cost, memory_budget
from .visits import Visit

if TYPE_CHECKING:
    from .e2e_task import E2ETask
    from .patch_dataset import PatchPool


def check(task: E2ETask) -> dict[str, Any]:
    """Look at every slide, do one step without changing a weight, and estimate memory and time.

    Returns:
        Plain data: `slides` with patches per scale or the reason why not, `classes`, `step`, `memory_gb`, `problems`.
    """
    spec, config = task.spec, task.config
    slides = {
        "train": _slides(task.train),
        "val": _slides(task.val),
    }
    problems = [
        f"{name}: {found}"
        for part in slides.values()
        for name, found in part.items()
        if isinstance(found, str)
    ]
    counts = np.bincount(task.labels(), minlength=len(config.classes)).tolist()
    classes = dict(zip(config.classes, counts, strict=True))
    problems += [
        f"class {name!r} has no training slide" for name, n in classes.items() if not n
    ]
    report: dict[str, Any] = {
        "slides": slides,
        "classes": classes,
        "problems": problems,
    }
    readable = [
        i
        for i, name in enumerate(task.names())
        if not isinstance(slides["train"][name], str)
    ]
    if readable:
        report["step"] = _one_step(task, readable[0])
        report["memory_gb"] = _memory(task)
        hours = report["step"]["seconds"] * len(readable) * spec.epochs / 3600
        report["estimated_hours"] = round(hours / task.ranks.size, 3)
    return report


def _slides(pool: PatchPool) -> dict[str, dict[str, int] | str]:
    """Patches per scale of each slide, or the reason why it cannot be used."""
    found: dict[str, dict[str, int] | str] = {}
    for item, name in enumerate(pool.names):
        try:
            found[name] = pool.grid(item).counts
        except MsamilError as error:
            found[name] = str(error)
    return found


def _one_step(task: E2ETask, item: int) -> dict[str, float]:
    """Forward and backward of one visit; weights and statistics stay as they were."""
    before = {k: v.clone() for k, v in task.network.state_dict().items()}
    visits = [Visit(item, 0, 0, 1.0)]
    task.network.train()
    task.start_epoch(0, visits)
    start = time.perf_counter()
    loss = task.backward_window(visits)[0]
    seconds = time.perf_counter() - start
    task.network.zero_grad(set_to_none=True)
    task.network.load_state_dict(before)
    return {
        "loss": math.nan if loss is None else loss,
        "ln_classes": math.log(len(task.config.classes)),
        "seconds": seconds,
    }


def _memory(task: E2ETask) -> dict[str, Any]:
    spec = task.spec
    cost = measure_cost(
        task.model.encoder,
        task.config.patches.scales[0].size_px,
        task.device,
        task.plan.precision,
    )
    count = spec.instances * spec.together
    return {
        "allowed": memory_budget(task.device, spec.memory_gb) / 1e9,
        "chosen": task.plan.mode,
        "chunk": task.plan.chunk,
        **cost_table(cost, count, task.plan.chunk),
    }
