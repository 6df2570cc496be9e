"""Thousands of damaged slides, each opened and read in a subprocess: none may crash, hang or raise anything but our errors.

    python benchmarks/fuzz_slides.py DATA_FOLDER --count 2400 --seed 1

Prints a table by kind of file and of damage, and exits with 1 if any file crashed the interpreter, hung, or raised an
exception that is no `MsamilError`. Such files are kept in `--keep` for a look. Runs are repeatable from the seed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path

SECONDS_PER_FILE = 300
SECONDS_TO_IMPORT = 900
BATCH = 300
MEMORY_LIMIT = 6 << 30
SEED_FOLDERS = ("slides", "images", "masks")
LARGEST_SEED = 4 << 20


def flip_bytes(data: bytearray, rng: random.Random, low: int, high: int) -> None:
    for _ in range(rng.choice([1, 2, 8, 64])):
        data[rng.randrange(low, max(high, low + 1))] = rng.randrange(256)


def header(data: bytearray, rng: random.Random) -> None:
    flip_bytes(data, rng, 0, min(len(data), 512))


def body(data: bytearray, rng: random.Random) -> None:
    flip_bytes(data, rng, 0, len(data))


def tail(data: bytearray, rng: random.Random) -> None:
    flip_bytes(data, rng, max(0, len(data) - 2048), len(data))


def extreme_number(data: bytearray, rng: random.Random) -> None:
    """Sizes, offsets and counts of extreme value near the start or the end, where directories lie."""
    for _ in range(rng.choice([1, 3])):
        near = rng.choice([0, max(0, len(data) - 4096), rng.randrange(len(data))])
        at = min(near + rng.randrange(4096), len(data) - 4) & ~1
        value = rng.choice(
            [0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0xFFFF, len(data), 0x01000000]
        )
        data[max(at, 0) : max(at, 0) + 4] = value.to_bytes(
            4, rng.choice(["little", "big"])
        )


def truncated(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def zero_run(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    length = min(rng.choice([16, 512, 20_000]), len(data) - at)
    data[at : at + length] = rng.choice([b"\0", b"\xff"]) * length


def spliced(data: bytearray, rng: random.Random) -> None:
    at, to = rng.randrange(len(data)), rng.randrange(len(data))
    piece = data[at : at + rng.choice([4, 64, 4096])]
    data[to : to + len(piece)] = piece


DAMAGES = (header, body, tail, extreme_number, truncated, zero_run, spliced)


def exercise(path: Path) -> str:
    """Open and read a file as the programs do; returns what happened."""
    from napari_msamil.errors import MsamilError
    from napari_msamil.slide import open_slide
    from napari_msamil.slide.describe import describe_json, describe_text
    from napari_msamil.slide.pyramid import lazy_pyramid

    outcome = "read"
    for backend in ("auto", "openslide"):
        try:
            with open_slide(path, backend=backend) as slide:
                info = slide.info
                json.dumps(describe_json(info))
                describe_text(info)
                readings = [
                    lambda s=slide, i=info: s.read_region(
                        (i.size_wh0[0] // 2, i.size_wh0[1] // 2), 0, (300, 200)
                    ),
                    lambda s=slide, i=info: s.read_level(
                        i.level_count - 1, (-9, -9), (300, 200)
                    ),
                    *[
                        lambda s=slide, n=name: s.associated_image(n)
                        for name in info.associated_images
                    ],
                ]
                if info.size_wh0[0] * info.size_wh0[1] < 60_000_000:
                    readings.append(lambda s=slide: s.thumbnail((64, 48)))
                    if max(info.level_sizes_wh[-1]) <= 4096:
                        readings.append(
                            lambda s=slide: lazy_pyramid(s)[-1][:200, :200].compute(
                                scheduler="sync"
                            )
                        )
                for reading in readings:
                    try:
                        reading()
                    except MsamilError:
                        outcome = "partly"
        except MsamilError:
            if backend == "auto":
                outcome = "refused"
    return outcome


def child(folder: Path) -> None:
    """Exercise the files named on stdin; one JSON line before and one after each."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    import logging

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    importlib.import_module("napari_msamil.slide.pyramid")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        name = line.strip()
        print(json.dumps({"start": name}), flush=True)
        try:
            outcome = exercise(folder / name)
        except Exception as error:  # noqa: BLE001 - the point of the run is to find these
            outcome = f"WRONG {type(error).__name__}: {error}"[:300]
        print(json.dumps({"end": name, "outcome": outcome}), flush=True)


def next_line(lines: queue.Queue[str | None], patience: int) -> str | None:
    """The child's next line within so many waking seconds: a suspended machine or process is no hang."""
    for _ in range(patience):
        with contextlib.suppress(queue.Empty):
            return lines.get(timeout=1)
    raise queue.Empty


def run_batch(folder: Path, names: list[str]) -> dict[str, str]:
    """Outcomes of some files; a crash or hang is laid to the file that was open, and the rest goes on."""
    outcomes: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()

        def pump(stream=process.stdout, lines=lines) -> None:
            for line in stream:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=pump, daemon=True).start()
        process.stdin.write("\n".join(waiting) + "\n")
        process.stdin.close()
        current, patience = waiting[0], SECONDS_TO_IMPORT
        while True:
            try:
                line = next_line(lines, patience)
            except queue.Empty:
                process.kill()
                outcomes[current] = "HANG"
                break
            if line is None:
                break
            message, patience = json.loads(line), SECONDS_PER_FILE
            if "ready" in message:
                continue
            if "start" in message:
                current = message["start"]
            else:
                outcomes[message["end"]] = message["outcome"]
        code = process.wait()
        waiting = [name for name in waiting if name not in outcomes]
        if waiting and code != 0 and current in waiting:
            outcomes[current] = f"CRASH {code}"
            waiting.remove(current)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--count", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    seeds = sorted(
        path for name in SEED_FOLDERS for path in (args.data / name).rglob("*")
        if path.is_file() and path.stat().st_size <= LARGEST_SEED
    )  # fmt: skip
    rng = random.Random(args.seed)
    table: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    bad: list[tuple[str, str]] = []
    began, done = time.perf_counter(), 0
    while done < args.count:
        with tempfile.TemporaryDirectory() as scratch:
            folder, kinds = Path(scratch), {}
            for index in range(done, min(done + BATCH, args.count)):
                seed, damage = rng.choice(seeds), rng.choice(DAMAGES)
                data = bytearray(seed.read_bytes())
                damage(data, rng)
                name = f"{index:05d}_{damage.__name__}{seed.suffix}"
                (folder / name).write_bytes(data)
                kinds[name] = (seed.suffix, damage.__name__)
            for name, outcome in run_batch(folder, list(kinds)).items():
                table[kinds[name]][outcome.split()[0]] += 1
                if outcome.split()[0] in ("WRONG", "CRASH", "HANG"):
                    bad.append((name, outcome))
                    if args.keep:
                        args.keep.mkdir(parents=True, exist_ok=True)
                        (args.keep / name).write_bytes((folder / name).read_bytes())
            done += len(kinds)
            print(f"{done} files, {len(bad)} bad", file=sys.stderr, flush=True)
    report(table, bad, done, time.perf_counter() - began)
    return 1 if bad else 0


def report(table, bad, done: int, seconds: float) -> None:
    total: Counter[str] = Counter()
    for (suffix, damage), counts in sorted(table.items()):
        total += counts
        print(
            f"{suffix:8} {damage:15} "
            + "  ".join(f"{k} {v}" for k, v in sorted(counts.items()))
        )
    print(
        f"{done} damaged files in {seconds:.0f} s: {dict(total)}; crashes, hangs and foreign exceptions: {len(bad)}"
    )
    for name, outcome in bad:
        print(f"  {name}: {outcome}")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "--child":
        child(Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
