"""Kill a classification at random moments, again and again, until it is done: nothing may be lost, nothing may differ.

    python benchmarks/kill.py SLIDE MODEL [--trials 50] [--seed 0]

Each trial starts a run in a process of its own, kills it (SIGKILL) after a random share of the time a whole run takes,
then lets a second run finish with the same cache and output folder, and compares its logits with those of a run that
was never disturbed. It also counts how many patches the second run found in the cache, and what was left behind.
Processes are forked from one that has imported everything, so that trials are short (Linux and macOS).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from napari_msamil import inference
from napari_msamil.batch import BatchOptions, classify_many

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

FORK = multiprocessing.get_context("fork")


def classify(
    slide: Path, model: Path, folder: Path, pipe: Connection | None = None
) -> None:
    """One run; says how many patches were in the cache when it began to encode."""
    os.environ["MSAMIL_CACHE"] = str(folder / "cache")
    inference.FLUSH_PATCHES, inference.FLUSH_S = 8, 0.0
    torch.set_num_threads(1)
    options = BatchOptions(
        output=folder / "out", model=str(model), precision="fp32", patches="tissue"
    )
    cached = None
    for step in classify_many([slide], options):
        if cached is None and "encode" in step.message:
            cached = int(step.message.split("encode ")[1].split("/")[0])
    if pipe is not None:
        pipe.send(cached or 0)


def start(args: argparse.Namespace, folder: Path) -> tuple[ForkProcess, Connection]:
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(
        target=classify, args=(args.slide, args.model, folder, there)
    )
    process.start()
    there.close()
    return process, here


def finish(process: ForkProcess, pipe: Connection) -> int:
    """Let a run end; how many patches came from the cache."""
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"a run that was not killed failed with {process.exitcode}")
    cached: int = pipe.recv()
    return cached


def answer(folder: Path, slide: Path) -> list[float]:
    text = (folder / "out" / slide.stem / "result.json").read_text("utf-8")
    found: list[float] = json.loads(text)["logits"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kill.json"))
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.set_num_threads(1)  # no thread pool may exist when forking
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classify(args.slide, args.model, folder)  # imports everything
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.monotonic()
        finish(*start(args, folder))
        whole = time.monotonic() - begin
        expected = answer(folder, args.slide)
    rows = []
    for trial in range(args.trials):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            process, _ = start(args, folder)
            moment = rng.uniform(0.0, 1.05) * whole
            time.sleep(moment)
            process.kill()
            process.join()
            killed = process.exitcode != 0
            cached = finish(*start(args, folder))
            same = answer(folder, args.slide) == expected
            left = [p.name for p in folder.rglob("*.part")]
            rows.append(
                {
                    "moment": moment / whole,
                    "killed": killed,
                    "cached": cached,
                    "same": same,
                    "left": left,
                }
            )
            print(trial, rows[-1], flush=True)
    killed = [row for row in rows if row["killed"]]
    summary = {
        "trials": len(rows), "killed before the end": len(killed), "same logits": sum(r["same"] for r in rows),
        "resumed from cached patches": sum(r["cached"] > 0 for r in killed),
        "runs with parts left behind": sum(bool(r["left"]) for r in rows),
        "seconds of a whole run": whole,
    }  # fmt: skip
    print(json.dumps(summary, indent=1))
    args.out.write_text(
        json.dumps({"summary": summary, "rows": rows}, indent=1), encoding="utf-8"
    )
    return 0 if summary["same logits"] == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
