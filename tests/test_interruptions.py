"""What may happen to a run from outside: Ctrl-C, a lost worker of a cluster, a full disk, a second run beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from napari_msamil.batch import BatchOptions, BatchSummary, classify_many
from napari_msamil.batch_cluster import run_on_cluster
from napari_msamil.batch_inputs import find_slides
from napari_msamil.batch_job import SlideRow
from napari_msamil.progress import finish

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("a", "b", "c", "d")
PATIENCE_S = 300

posix = pytest.mark.skipif(
    sys.platform == "win32", reason="signals and limits of POSIX"
)


@pytest.fixture
def slides(painted_svs: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(painted_svs, folder / f"{name}.svs")
    return folder


@pytest.fixture
def options(tiny_checkpoint: Path, tmp_path: Path) -> BatchOptions:
    return BatchOptions(
        output=tmp_path / "out", model=str(tiny_checkpoint), precision="fp32"
    )


def run(slides: Path, options: BatchOptions) -> BatchSummary:
    return finish(classify_many([slides], options))


def logits(folder: Path) -> dict[str, list[float]]:
    found = folder.glob("*/result.json")
    return {p.parent.name: json.loads(p.read_text("utf-8"))["logits"] for p in found}


def undisturbed(slides: Path, options: BatchOptions) -> dict[str, list[float]]:
    alone = dataclasses.replace(
        options, output=options.output.with_name("alone"), use_cache=False
    )
    assert run(slides, alone).done == len(NAMES)
    return logits(alone.output)


def command(slides: Path, options: BatchOptions, *more: str) -> list[str]:
    words = ["--model", options.model, "-o", str(options.output), "--precision", "fp32"]
    return [
        sys.executable, "-m", "napari_msamil", "classify", str(slides), *words, *more
    ]  # fmt: skip


def until_one_is_finished(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(folder.glob("*/run.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def heed_ctrl_c() -> None:
    """As at a terminal: tests that run in the background inherit that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@posix
@pytest.mark.parametrize("way", [(), ("--workers", "2"), ("--cluster", "local:2")])
def test_ctrl_c_ends_cleanly_and_the_same_command_finishes_the_rest(
    slides: Path, options: BatchOptions, way: tuple[str, ...]
) -> None:
    if "--cluster" in way:
        pytest.importorskip("distributed")
    words = command(slides, options, *way)
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    until_one_is_finished(process, options.output)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert "run the same command again" in said
    assert "Traceback" not in said
    finished = {p.parent.name for p in options.output.glob("*/run.json")}
    assert 1 <= len(finished) < len(NAMES)
    if not way:  # a worker is killed at once and may leave a part, which the next run sweeps away
        assert not list(options.output.rglob("*.part"))
    summary = run(slides, options)
    assert {r.slide for r in summary.rows if r.status == "skipped"} == finished
    assert summary.done == len(NAMES) - len(finished)
    assert not list(options.output.rglob("*.part"))
    assert logits(options.output) == undisturbed(slides, options)


@posix
def test_a_lost_worker_of_a_cluster_costs_no_slide(
    slides: Path, options: BatchOptions
) -> None:
    pytest.importorskip("distributed")
    psutil = pytest.importorskip("psutil")
    local = dataclasses.replace(options, cluster="local:2", use_cache=False)
    local.output.mkdir()
    steps = run_on_cluster(find_slides([slides]), local)
    assert next(steps) is None  # every worker has a slide now
    family = psutil.Process().children(recursive=True)
    workers = [p for p in family if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) >= 2
    workers[0].kill()
    rows = [row for row in steps if isinstance(row, SlideRow)]
    assert sorted((row.slide, row.status) for row in rows) == [
        (name, "done") for name in NAMES
    ]
    assert logits(local.output) == undisturbed(slides, options)


FULL = """
import resource, sys
limit = 60_000  # bytes a file may have: fewer than features or pictures need
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from napari_msamil.cli import main
if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
"""


@posix
def test_a_full_disk_fails_slides_with_the_reason_and_leaves_nothing_half_written(
    slides: Path, options: BatchOptions, tmp_path: Path
) -> None:
    script = tmp_path / "full.py"
    script.write_text(FULL)
    words = [sys.executable, str(script), *command(slides, options)[3:]]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    for name in NAMES:
        assert f"{name}: The result folder" in ended.stderr
    assert ended.stderr.count("(File too large)") >= len(NAMES)
    assert "Traceback" not in ended.stderr
    assert [p.name for p in options.output.iterdir()] == ["summary.csv"]
    summary = run(slides, options)
    assert (summary.done, summary.failed) == (len(NAMES), 0)
    assert logits(options.output) == undisturbed(slides, options)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB: room for the results of a slide or two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_what_is_finished_and_the_rest_follows(
    slides: Path, options: BatchOptions, small_disk: Path
) -> None:
    there = dataclasses.replace(options, output=small_disk / "out")
    cache = {**os.environ, "MSAMIL_CACHE": str(small_disk / "cache")}
    words = command(slides, there)
    ended = subprocess.run(
        words, capture_output=True, text=True, env=cache, check=False
    )
    assert ended.returncode == 1
    assert "(No space left on device)" in ended.stderr
    assert "Traceback" not in ended.stderr
    expected = undisturbed(slides, options)
    finished = logits(there.output)
    assert 0 < len(finished) < len(NAMES)
    assert finished == {name: expected[name] for name in finished}
    left = {p.name for p in there.output.iterdir()}
    assert left <= {*finished, "summary.csv"}
    grow = ["mount", "-o", "remount,size=64m", str(small_disk)]
    subprocess.run(grow, check=True)
    subprocess.run(words, check=True, capture_output=True, env=cache)
    assert logits(there.output) == expected


def test_two_runs_at_once_into_one_folder_and_cache_both_succeed(
    slides: Path, options: BatchOptions
) -> None:
    words = command(slides, options)
    runs = [
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in runs:
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
    names = {p.name for p in options.output.iterdir()}
    assert names == {*NAMES, "summary.csv"}
    assert logits(options.output) == undisturbed(slides, options)
