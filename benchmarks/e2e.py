"""One end-to-end step in each memory mode: seconds and peak memory, and the floor that bytes and FLOPs set.

A step is what training does with one slide: encode its patches, classify the bag, carry the gradient back through
every patch. Each mode runs in a process of its own. On a CUDA device the paper's setting is measured (EfficientNet-B3,
200 patches of 512 px, bf16), free and under a cap of 10 GB; on a CPU a small one. Where there is no CUDA device its
rows say "not measured". Run it on Linux or macOS:

    python -m benchmarks.e2e --json e2e.json
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MODES = ("none", "selective", "chunked", "two-pass", "auto")


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    device: str
    backbone: str
    size_px: int
    patches: int
    chunk: int
    precision: str
    cap_gb: float = 0.0

    @property
    def title(self) -> str:
        cap = f", cap {self.cap_gb:g} GB" if self.cap_gb else ""
        return f"{self.device}: {self.backbone}, {self.patches} × {self.size_px} px, {self.precision}{cap}"


CPU = (
    Setting("cpu", "efficientnet_b3", 128, 16, 4, "fp32"),
    Setting("cpu", "efficientnet_b3", 128, 16, 4, "bf16"),
)
CUDA = (
    Setting("cuda", "efficientnet_b3", 512, 200, 20, "bf16"),
    Setting("cuda", "efficientnet_b3", 512, 200, 20, "bf16", cap_gb=10.0),
    Setting("cuda", "efficientnet_b3", 512, 200, 20, "fp32", cap_gb=10.0),
)


def measure(setting: Setting, mode: str, repeats: int) -> dict[str, Any]:
    """Seconds per step (median) and peak memory of one mode in this process."""
    import torch

    from napari_msamil.config import paper_config
    from napari_msamil.models import build_model
    from training.gradients import backward, set_batchnorm
    from training.step_memory import memory_budget

    device = torch.device(setting.device)
    if setting.device == "cuda" and setting.cap_gb:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(setting.cap_gb * 1e9 / total)
    torch.manual_seed(0)
    config = paper_config("bench", ("a", "b", "c"))
    spec = config.encoder.model_copy(
        update={"backbone": setting.backbone, "grid": max(setting.size_px // 32, 1)}
    )
    config = config.model_copy(update={"encoder": spec, "segmenter": None})
    model = build_model(config).to(device).train()
    model.encoder.to(memory_format=torch.channels_last)
    set_batchnorm(model.encoder, frozen=True)
    budget = memory_budget(device, setting.cap_gb)
    plan = plan_of(model.encoder, setting, mode, budget)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-5, fused=setting.device == "cuda"
    )
    side = setting.size_px
    pixels = torch.randint(
        0, 256, (setting.patches, side, side, 3), dtype=torch.uint8, device=device
    )
    pixels = pixels.permute(0, 3, 1, 2)
    coords = torch.rand(1, setting.patches, 2, device=device)
    scale = torch.randint(0, 3, (1, setting.patches), device=device)
    target = torch.tensor([1], device=device)

    def loss_of(features: torch.Tensor) -> torch.Tensor:
        logits = model.aggregator(features[None], coords, scale).logits
        return torch.nn.functional.cross_entropy(logits, target)

    start_mb = peak_mb(device)
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        backward(model.encoder, pixels, loss_of, plan)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return {
        "plan": plan.mode,
        "chunk": plan.chunk,
        "seconds": statistics.median(seconds[1:]),
        "peak_mb": peak_mb(device) - (start_mb if device.type == "cpu" else 0),
    }


def plan_of(encoder: Any, setting: Setting, mode: str, budget: float) -> Any:
    """The plan of a mode; `auto` asks the memory model."""
    import torch

    from training.gradients import StepPlan, set_batchnorm
    from training.step_memory import choose_plan, measure_cost

    if mode != "auto":
        return StepPlan(mode, setting.chunk, setting.precision)
    cost = measure_cost(
        encoder, setting.size_px, torch.device(setting.device), setting.precision
    )
    set_batchnorm(encoder, frozen=True)
    return choose_plan(cost, setting.patches, setting.chunk, budget, setting.precision)


def peak_mb(device: Any) -> float:
    """Peak memory so far, in MB: of the device's allocator, or resident memory of the process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def floor(setting: Setting) -> dict[str, float]:
    """The least a step can take on this device, from bytes moved and from multiplications, both rates measured here.

    Bytes: what autograd saves is written once and read once. FLOPs: forward once, backward twice.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from napari_msamil.config import paper_config
    from napari_msamil.models import build_encoder
    from training.gradients import StepPlan, encode, set_batchnorm
    from training.step_memory import measure_cost

    device = torch.device(setting.device)
    spec = paper_config("b", ("a", "b")).encoder.model_copy(
        update={"backbone": setting.backbone, "grid": max(setting.size_px // 32, 1)}
    )
    encoder = build_encoder(spec).to(device)
    set_batchnorm(encoder, frozen=True)
    cost = measure_cost(encoder, setting.size_px, device, setting.precision)
    pixels = torch.zeros(1, 3, setting.size_px, setting.size_px, device=device)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        encode(encoder, pixels, StepPlan(precision="fp32"))
    flops = 3.0 * counter.get_total_flops() * setting.patches
    moved = 2.0 * cost.saved * setting.patches
    bandwidth, rate = _bandwidth(device), _flop_rate(device, setting.precision)
    return {
        "saved_gb": cost.saved * setting.patches / 1e9,
        "tflop": flops / 1e12,
        "bandwidth_gb_s": bandwidth / 1e9,
        "tflop_s": rate / 1e12,
        "floor_bytes_s": moved / bandwidth,
        "floor_flops_s": flops / rate,
    }


def _bandwidth(device: Any) -> float:
    """Bytes per second of a large copy, read and write counted."""
    import torch

    size = 2**28 if device.type == "cuda" else 2**25
    a = torch.empty(size, dtype=torch.float32, device=device)
    b = torch.empty_like(a)
    return 2 * 4 * size / _best_time(lambda: b.copy_(a), device)


def _flop_rate(device: Any, precision: str) -> float:
    import torch

    n = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / _best_time(lambda: a @ a, device)


def _best_time(call: Any, device: Any) -> float:
    import torch

    times = []
    for _ in range(5):
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)


def run_child(setting: Setting, what: str, repeats: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.e2e",
        "--child",
        json.dumps(asdict(setting)),
    ]
    words += ["--what", what, "--repeats", str(repeats)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["failed"])[-1]
        return {"error": "out of memory" if "OutOfMemory" in last else last[:120]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(
    setting: Setting, rows: dict[str, dict[str, Any]], least: dict[str, Any]
) -> str:
    """Markdown of one setting: times, memory, and the ratio to full recomputing."""
    lines = [
        f"### {setting.title}",
        "",
        "| mode | s per step | against chunked | peak MB |",
        "|---|---|---|---|",
    ]
    whole = rows.get("chunked", {}).get("seconds")
    for mode, row in rows.items():
        if "error" in row:
            lines.append(f"| {mode} | {row['error']} | | |")
            continue
        name = (
            f"{mode} → {row['plan']}, chunk {row['chunk']}" if mode == "auto" else mode
        )
        ratio = f"{whole / row['seconds']:.2f} ×" if whole else ""
        lines.append(
            f"| {name} | {row['seconds']:.2f} | {ratio} | {row['peak_mb']:.0f} |"
        )
    if least and "error" not in least:
        lines += [
            "",
            (
                f"Floor: {least['floor_bytes_s']:.3f} s from {2 * least['saved_gb']:.1f} GB moved at {least['bandwidth_gb_s']:.0f} GB/s, "
                f"{least['floor_flops_s']:.3f} s from {least['tflop']:.2f} TFLOP at {least['tflop_s']:.2f} TFLOP/s."
            ),
        ]
    return "\n".join(lines)


def machine() -> str:
    """Name of the machine the figures are from."""
    import torch

    name = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        name += f", {torch.cuda.get_device_name()}"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Measure what this machine can, say what it cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        setting = Setting(**json.loads(args.child))
        found = (
            floor(setting)
            if args.what == "floor"
            else measure(setting, args.what, args.repeats)
        )
        print(json.dumps(found))
        return
    import torch

    figures: dict[str, Any] = {"machine": machine(), "settings": []}
    print(f"Measured on {figures['machine']}\n")
    for setting in (*CPU, *CUDA):
        if setting.device == "cuda" and not torch.cuda.is_available():
            print(f"### {setting.title}\n\nnot measured (no CUDA device)\n")
            figures["settings"].append({**asdict(setting), "modes": "not measured"})
            continue
        rows = {mode: run_child(setting, mode, args.repeats) for mode in args.modes}
        least = run_child(setting, "floor", args.repeats)
        print(table(setting, rows, least) + "\n")
        figures["settings"].append({**asdict(setting), "modes": rows, "floor": least})
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
