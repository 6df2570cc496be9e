"""Rows of `engine.py` about behaviour: mask edit, cancel, Ctrl-C, memory, cluster."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from engine_slide import Setting, everything, left_part, model_file

from napari_msamil.batch import BatchOptions, classify_many
from napari_msamil.checkpoint import LoadedModel
from napari_msamil.config import paper_config, small_config
from napari_msamil.device import choose_runtime
from napari_msamil.feature_store import FeatureStore, patch_keys, store_key
from napari_msamil.inference import aggregate, encode_patches, encoder_id
from napari_msamil.pipeline import ClassifyOptions, classify_steps
from napari_msamil.progress import Stage, finish
from napari_msamil.slide import open_slide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari_msamil.slide import Slide


def edit(setting: Setting) -> dict[str, Any]:
    """A mask edit with 3000 cached patches: time from mask to answer, the difference included."""
    config = paper_config("paper", ("a", "b"))
    loaded, runtime = model_file(config, setting.work), choose_runtime("cpu")
    spec = config.patches.model_copy(update={"stride": 0.82})
    config = config.model_copy(update={"patches": spec, "segmenter": None})
    loaded = LoadedModel(loaded.model, config, {}, loaded.path, loaded.sha256)
    times, counts, before = [], [], None
    with tempfile.TemporaryDirectory() as folder, open_slide(setting.slide) as slide:
        store = FeatureStore(Path(folder))
        grid = everything(slide, config)
        key = store_key(slide.info, grid, encoder_id(loaded, runtime))
        made_up = np.random.default_rng(0).normal(size=(len(grid), 512))
        store.put(key, patch_keys(grid), made_up.astype(np.float32))
        for share in (1.0, 0.97, 0.99, 0.96, 0.98, 0.95):
            asked = ClassifyOptions(
                mask=left_part(slide, share), store=store, runtime=runtime, previous=before
            )  # fmt: skip
            start = time.perf_counter()
            before = finish(classify_steps(slide, loaded, asked))
            times.append(time.perf_counter() - start)
            counts.append(len(before.grid))
    return {
        "patches": counts,
        "first answer s": times[0],
        "edits s": times[1:],
        "median of edits s": statistics.median(times[1:]),
    }


def cancel(setting: Setting) -> dict[str, Any]:
    """From asking a working thread to stop (as the window does) until the work has ended, at random moments."""
    rng, rows = random.Random(0), {}
    for config in (
        small_config("small", ("a", "b")),
        paper_config("paper", ("a", "b")),
    ):
        loaded = model_file(config, setting.work)
        with open_slide(setting.slide) as slide:
            waits = [_stop_once(slide, loaded, rng) for _ in range(4 * setting.repeats)]
        rows[config.name] = {
            "median ms": 1e3 * statistics.median(waits),
            "longest ms": 1e3 * max(waits),
        }
    return rows


def _stop_once(slide: Slide, loaded: LoadedModel, rng: random.Random) -> float:
    options = ClassifyOptions(mask=left_part(slide, 1.0), runtime=choose_runtime("cpu"))
    encoding, stop = threading.Event(), threading.Event()

    def work() -> None:
        with closing(classify_steps(slide, loaded, options)) as steps:
            for step in steps:
                if step.stage is Stage.ENCODE and step.done > 4:
                    encoding.set()
                if stop.is_set():
                    return

    thread = threading.Thread(target=work)
    thread.start()
    encoding.wait()
    time.sleep(rng.uniform(0.0, 1.0))
    start = time.perf_counter()
    stop.set()
    thread.join()
    return time.perf_counter() - start


def ctrl_c(setting: Setting) -> dict[str, Any]:
    """SIGINT to `msamil classify` on six slides at random moments; then the same command finishes the rest."""
    rng = random.Random(1)
    loaded = model_file(small_config("small", ("a", "b")), setting.work)
    small = setting.slide_of(3072)
    ways = {"one process": [], "--workers 2": ["--workers", "2"], "--cluster local:2": ["--cluster", "local:2"]}  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slides = [folder / f"s{i}.svs" for i in range(6)]
        for slide in slides:
            shutil.copy(small, slide)  # links to one file would be one slide
        words = ["-m", str(loaded.path), "--precision", "fp32", "--patches", "tissue", "--no-cache"]  # fmt: skip
        command = [sys.executable, "-m", "napari_msamil", "classify", *map(str, slides), *words]  # fmt: skip
        _finish_rest([*command, "-o", str(folder / "whole")])
        expected = _logits(folder / "whole")
        rows = {}
        for way, extra in ways.items():
            trials = []
            for turn in range(setting.trials):
                out = folder / f"{way}{turn}"
                once = [*command, *extra, "-o", str(out)]
                trials.append(_interrupt(once, out, rng))
                _finish_rest(once)
                assert _logits(out) == expected, "the second run differs"
            rows[way] = _of_trials(trials)
    return rows


def _interrupt(command: list[str], out: Path, rng: random.Random) -> dict[str, Any]:
    """Start, wait for the first finished slide, wait a little, press Ctrl-C: the whole group gets the signal."""
    hear = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a background shell has it ignored
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=hear
    )
    while process.poll() is None and not any(out.glob("*/run.json")):
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 1.5))
    before = len(list(out.glob("*/run.json")))
    running = process.poll() is None
    start = time.perf_counter()
    if running:
        os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    seconds = time.perf_counter() - start
    left = list(out.rglob("*.part"))
    return {
        "seconds": seconds, "running": running, "code": process.returncode, "finished": before,
        "alive": _alive(process.pid), "parts": len(left), "traceback": b"Traceback" in said,
    }  # fmt: skip


def _alive(group: int) -> int:
    """How many processes of a group are left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return 0
    return 1


def _finish_rest(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _logits(out: Path) -> list[list[float]]:
    files = sorted(out.glob("*/result.json"))
    return [json.loads(file.read_text("utf-8"))["logits"] for file in files]


def _of_trials(trials: list[dict[str, Any]]) -> dict[str, Any]:
    stopped = [t for t in trials if t["running"]]
    return {
        "interrupted while running": len(stopped),
        "seconds until the command ended": [round(t["seconds"], 2) for t in stopped],
        "exit codes": [t["code"] for t in stopped],
        "slides finished before": [t["finished"] for t in stopped],
        "processes left": sum(t["alive"] for t in stopped),
        "parts left": sum(t["parts"] for t in stopped),
        "with a traceback": sum(t["traceback"] for t in stopped),
        "same logits after the second run": "all",
    }


def memory(setting: Setting) -> dict[str, Any]:
    """Peak memory of classifying a small and the large slide, each in a process of its own."""
    rows = {}
    for side in (4096, 20_480):
        path = setting.slide_of(side)
        main = Path(__file__).with_name("engine.py")
        command = [sys.executable, str(main), str(setting.seed), "--work", str(setting.work), "--peak", str(path)]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[f"{side}²"] = json.loads(run.stdout.splitlines()[-1])
    return rows


def peak_of(path: Path, setting: Setting) -> dict[str, Any]:
    """What the process of the memory row does."""
    loaded = model_file(small_config("small", ("a", "b")), setting.work)
    with open_slide(path) as slide:
        grid = everything(slide, loaded.config)
        before = _peak_mb()
        aggregate(loaded, finish(encode_patches(slide, grid, loaded, None)))
    peak = _peak_mb()
    found = {"patches": len(grid), "before MB": before, "peak MB": peak}
    return {**found, "added MB": peak - before}


def _peak_mb() -> float:
    """Largest resident size so far; `getrusage` would count that of the process that started this one."""
    status = Path("/proc/self/status").read_text("ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def cluster(setting: Setting) -> dict[str, Any]:
    """Dask on this machine: the same slides by one worker on one core, and by two workers on two."""
    small = setting.slide_of(4096)
    loaded = model_file(small_config("small", ("a", "b")), setting.work)
    cores, rows = sorted(os.sched_getaffinity(0)), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slides = [folder / f"s{i}.svs" for i in range(setting.slides)]
        for slide in slides:
            shutil.copy(small, slide)  # links to one file would be one slide
        try:
            for count in (1, 2):
                os.sched_setaffinity(0, cores[:count])
                options = BatchOptions(
                    output=folder / f"out{count}", model=str(loaded.path), cluster=f"local:{count}",
                    use_cache=False, patches="tissue",
                )  # fmt: skip
                rows[count] = _throughput(slides, options, count)
        finally:
            os.sched_setaffinity(0, cores)
    return {
        "slides": setting.slides,
        "1 worker": rows[1],
        "2 workers": rows[2],
        "efficiency by seconds per slide": rows[1]["s per slide"] / rows[2]["s per slide"],
        "efficiency by slides per minute": rows[2]["slides/min"] / rows[1]["slides/min"] / 2,
    }  # fmt: skip


def _throughput(
    slides: list[Path], options: BatchOptions, workers: int
) -> dict[str, float]:
    """Once the workers have warmed up: the first slide of each loads torch and the model, which a long run does not feel."""
    rows, moments, start = [], [], time.perf_counter()
    steps: Iterator[Any] = classify_many(list(slides), options)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            rows = end.value.rows
            break
        if len(moments) < step.done:
            moments += [time.perf_counter()] * (step.done - len(moments))
    assert all(row.status == "done" for row in rows), rows
    warm = rows[workers:]
    spent = moments[-1] - moments[workers - 1]
    return {
        "s per slide": statistics.median(row.seconds for row in warm),
        "slides/min": 60 * len(warm) / spent,
        "whole run s": time.perf_counter() - start,
    }
