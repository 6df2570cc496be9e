"""Time and memory of one training step with masked hard instance mining beside the plain step (supplementary, Table 2).

    python benchmarks/mhim.py --instances 9000 --steps 5 -o results/mhim.json

Bags of random features of the paper's width (1024). Per strategy: median seconds per step (forward, backward, Adam, and
the teacher), its ratio to the plain step of the same run, and the memory: on CUDA the peak that was allocated, on a CPU
the bytes that the student keeps for the backward pass. Plain and masked steps alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from napari_msamil.config import AggregatorSpec
from training.bag_dataset import BagDataset
from training.bags import StoredBag
from training.loop import Visit
from training.mhim_task import MhimSpec, MhimTask
from training.mil_task import MilSpec, MilTask

WIDTH = 1024
MODELS: dict[str, dict[str, Any]] = {
    "abmil": {"gated": True, "activation": "relu", "bias": False, "dropout": 0.25},
    "transmil": {"heads": 8, "square": "ppeg", "projection_dropout": 0.25},
}
STRATEGIES: dict[str, dict[str, float]] = {
    "HAM": {"high": 0.01},
    "R-HAM": {"high": 0.01, "random": 0.5},
    "L-HAM": {"high": 0.01, "low": 0.5},
    "LR-HAM": {"high": 0.01, "low": 0.2, "random": 0.5},
}
"""AB-MIL's ratios; TransMIL masks more, see `ratios`."""
PAPER = {
    "abmil": {
        "plain": (4.0, 2.4),
        "HAM": (4.0, 2.7),
        "R-HAM": (4.3, 2.3),
        "L-HAM": (4.2, 2.3),
        "LR-HAM": (4.4, 2.2),
    },
    "transmil": {
        "plain": (13.1, 10.6),
        "HAM": (15.9, 10.3),
        "R-HAM": (10.3, 5.5),
        "L-HAM": (10.1, 5.5),
        "LR-HAM": (10.1, 5.4),
    },
}
"""Seconds per epoch and GB on an RTX 3090."""


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--instances", type=int, default=9000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("mhim.json"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [row for model in args.models for row in measure(model, args)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1))
    print(table(rows))
    return 0


def measure(model: str, args: argparse.Namespace) -> list[dict]:
    """All strategies of one model, in turn within every round."""
    tasks = make_tasks(model, args)
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for round_number in range(args.steps + 1):
        for name, task in tasks.items():
            seconds = one_step(*task, round_number, args.device)
            if round_number:  # the first warms up
                times[name].append(seconds)
    plain = times["plain"]
    rows = []
    for name, (task, _) in tasks.items():
        ratio = statistics.median(
            a / b for a, b in zip(times[name], plain, strict=True)
        )
        rows.append(
            {
                "model": model,
                "strategy": name,
                "instances": args.instances,
                "seconds": statistics.median(times[name]),
                "ratio": ratio,
                "megabytes": memory(task, args.device) / 1e6,
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def make_tasks(
    model: str, args: argparse.Namespace
) -> dict[str, tuple[MilTask, torch.optim.Optimizer]]:
    """The plain task and one per strategy, with their optimisers."""
    spec = AggregatorSpec(name=model, in_dim=WIDTH, args=MODELS[model])
    data = random_bags(args.instances, args.device)
    torch.manual_seed(0)
    plain = MilTask(spec, MilSpec(), data, None, ("0", "1"))
    weights = plain.aggregator.state_dict()
    tasks: dict[str, MilTask] = {"plain": plain}
    for name, shares in STRATEGIES.items():
        settings = MhimSpec(**ratios(model, shares))
        tasks[name] = MhimTask(spec, settings, data, None, ("0", "1"), weights)
    return {
        name: (
            task,
            torch.optim.Adam(task.aggregator.parameters(), 2e-4, weight_decay=1e-5),
        )
        for name, task in tasks.items()
    }


def ratios(model: str, shares: dict[str, float]) -> dict[str, float]:
    """TransMIL's recipe masks 80 % where AB-MIL's masks 50 %."""
    if model != "transmil":
        return dict(shares)
    scale = {"high": 3.0, "low": 1.6, "random": 1.0}
    return {k: min(v * scale[k], 0.8) for k, v in shares.items()}


def random_bags(instances: int, device: str) -> BagDataset:
    """Two bags of random features."""
    generator = torch.Generator().manual_seed(0)
    bags = [
        StoredBag(
            features=torch.randn(instances, WIDTH, generator=generator),
            coords_xy0=torch.zeros(instances, 2, dtype=torch.int64),
            scale=torch.zeros(instances, dtype=torch.int8),
            valid=torch.ones(instances, dtype=torch.bool),
            size_px0=(256,),
            size_wh0=(0, 0),
            mpp=0.5,
            scale_names=("20x",),
            encoder_id="random",
            slide=f"bag-{i}",
        )
        for i in range(2)
    ]
    return BagDataset(bags, [0, 1], device)


def one_step(
    task: MilTask, optimizer: torch.optim.Optimizer, number: int, device: str
) -> float:
    """Seconds of one whole step."""
    task.aggregator.train()
    synchronise(device)
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    task.backward(Visit(number % 2, 0, number, 1.0))
    optimizer.step()
    if isinstance(task, MhimTask):
        task.after_step(number)
    synchronise(device)
    return time.perf_counter() - start


def memory(task: MilTask, device: str) -> float:
    """Peak bytes on CUDA; on a CPU the bytes kept for backward."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        task.backward(Visit(0, 0, 0, 1.0))
        return float(torch.cuda.max_memory_allocated())
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        task.backward(Visit(0, 0, 0, 1.0))
    return float(sum(kept.values()))


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def table(rows: list[dict]) -> str:
    """Markdown, with the paper's ratios beside ours."""
    lines = [
        "| model | strategy | s / step | ratio | paper's ratio | MB | paper's GB |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        paper = PAPER[row["model"]]
        seconds, gigabytes = paper[row["strategy"]]
        lines.append(
            f"| {row['model']} | {row['strategy']} | {row['seconds']:.3f} | {row['ratio']:.2f} | "
            f"{seconds / paper['plain'][0]:.2f} | {row['megabytes']:.0f} | {gigabytes} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
