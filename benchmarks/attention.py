"""Low-rank attention and IAAM: padded and fused against the N × N path, time and extra memory.

The N × N path is what `scaled_dot_product_attention` does by itself with queries narrower than values. Times come
from one process per size in which both paths take turns, so that a busy machine slows both; the ratio is the
median of the ratios of the turns. CPU seconds on one thread say how much work there is whatever else the machine does. Memory comes from one process per case, so that each has a peak of its own.
Run it on Linux or macOS:

    python -m benchmarks.attention --out attention.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

PAIRS = (("attention", 3000), ("attention", 8000), ("iaam", 3000), ("iaam", 8000))
MEMORY = (
    ("iaam", 8000, "fused"),
    ("iaam", 8000, "n x n"),
    ("iaam", 20_000, "fused"),
)


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def build(what: str, n: int) -> Callable[[str], Any]:
    """A call that runs one forward pass by the path named."""
    import torch
    from torch.nn import functional as F

    from napari_msamil.models import iaam
    from napari_msamil.models.attention import low_rank_attention

    torch.manual_seed(0)
    paths = {"fused": low_rank_attention, "n x n": F.scaled_dot_product_attention}
    if what == "attention":
        q, k = (torch.randn(1, 8, n, 32) for _ in range(2))
        v = torch.randn(1, 8, n, 64)
        return lambda path: paths[path](q, k, v)
    model = iaam.IAAM(512, 3).eval()
    bag = torch.randn(1, n, 512), torch.rand(1, n, 2), torch.randint(0, 3, (1, n))

    def forward(path: str) -> Any:
        iaam.low_rank_attention = paths[path]
        return model(*bag).logits

    return forward


def time_pair(what: str, n: int, repeats: int) -> dict[str, Any]:
    """Both paths in turns: median wall seconds on all threads, CPU seconds on one, ratios, largest difference."""
    import torch

    call = build(what, n)
    threads = torch.get_num_threads()
    row: dict[str, Any] = {"what": what, "n": n, "threads": threads}
    with torch.inference_mode():
        row["max_abs_diff"] = float((call("fused") - call("n x n")).abs().max())
        row["wall"] = take_turns(call, repeats, time.perf_counter)
        torch.set_num_threads(1)
        row["cpu"] = take_turns(call, repeats, time.process_time)
    return row


def take_turns(
    call: Callable[[str], Any], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of each path and median of the ratios of neighbouring turns."""
    turns: dict[str, list[float]] = {"fused": [], "n x n": []}
    for _ in range(repeats):
        for path, found in turns.items():
            start = clock()
            call(path)
            found.append(clock() - start)
    ratios = [b / a for a, b in zip(turns["fused"], turns["n x n"], strict=True)]
    medians = {path: statistics.median(found) for path, found in turns.items()}
    return {**medians, "ratio": statistics.median(ratios)}


def measure_memory(what: str, n: int, path: str) -> dict[str, Any]:
    """Extra resident memory of one forward pass."""
    import torch

    with torch.inference_mode():
        build(what, 64)(path)
        call = build(what, n)
        before = peak_mb()
        call(path)
    return {"what": what, "n": n, "path": path, "extra_mb": peak_mb() - before}


def run_alone(*case: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.attention", "--case", *case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(times: list[dict[str, Any]], memory: list[dict[str, Any]]) -> str:
    """Both results as Markdown."""
    lines = [
        "| what | N | clock | fused s | N × N s | times faster | largest difference |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for r in times:
        for clock, label in (
            ("wall", f"wall, {r['threads']} threads"),
            ("cpu", "CPU, 1 thread"),
        ):
            lines.append(
                f"| {r['what']} | {r['n']} | {label} | {r[clock]['fused']:.2f} | {r[clock]['n x n']:.2f} "
                f"| {r[clock]['ratio']:.1f} | {r['max_abs_diff']:.1e} |"
            )
    lines += ["", "| what | N | path | extra MB |", "|---|---|---|---|"]
    lines += [
        f"| {r['what']} | {r['n']} | {r['path']} | {r['extra_mb']:.0f} |"
        for r in memory
    ]
    return "\n".join(lines)


def main() -> None:
    """Run everything, or the one case a parent process names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("attention.json"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        kind, what, n, rest = options.case
        one = (
            time_pair(what, int(n), int(rest))
            if kind == "time"
            else measure_memory(what, int(n), rest)
        )
        print(json.dumps(one))
        return
    times = [run_alone("time", what, str(n), str(options.repeats)) for what, n in PAIRS]
    memory = [run_alone("memory", what, str(n), path) for what, n, path in MEMORY]
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch_version(),
    }
    options.out.write_text(
        json.dumps({"machine": machine, "times": times, "memory": memory}, indent=1)
    )
    print(table(times, memory))


def torch_version() -> str:
    """torch's version, without importing it here (a parent's size counts in its children's peak)."""
    from importlib.metadata import version

    return version("torch")


if __name__ == "__main__":
    main()
