"""Many slides: nothing is lost, nothing is done twice, and one bad slide stops nothing."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from napari_msamil.batch import (
    BatchOptions,
    BatchSummary,
    _Meter,
    _write_summary,
    classify_many,
)
from napari_msamil.batch_inputs import find_slides
from napari_msamil.batch_job import SlideRow
from napari_msamil.errors import ConfigError
from napari_msamil.pipeline import classify
from napari_msamil.progress import Progress, Stage, finish

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def slides(painted_svs: Path, tmp_path: Path) -> Path:
    """A folder of three slides and two files that are none."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a", "b", "c"):
        shutil.copy(painted_svs, folder / f"{name}.svs")
    (folder / "broken.svs").write_text("no slide")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture
def options(tiny_checkpoint: Path, tmp_path: Path) -> BatchOptions:
    return BatchOptions(
        output=tmp_path / "out", model=str(tiny_checkpoint), precision="fp32"
    )


def run(words: list[str | Path], options: BatchOptions) -> BatchSummary:
    return finish(classify_many(words, options))


def logits(options: BatchOptions, name: str) -> list[float]:
    text = (options.output / name / "result.json").read_text("utf-8")
    found: list[float] = json.loads(text)["logits"]
    return found


def table(options: BatchOptions) -> dict[str, dict[str, str]]:
    with (options.output / "summary.csv").open(newline="", encoding="utf-8") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def test_a_folder_is_classified_and_the_bad_slide_is_named(
    slides: Path, options: BatchOptions
) -> None:
    summary = run([slides], options)
    assert (summary.done, summary.failed, summary.skipped) == (3, 1, 0)
    rows = table(options)
    assert set(rows) == {"a", "b", "c", "broken"}
    assert rows["broken"]["status"] == "failed"
    assert "broken" in rows["broken"]["error"]
    total = sum(float(rows["a"][f"probability_{c}"]) for c in ("calm", "odd", "wild"))
    assert total == pytest.approx(1, abs=1e-5)
    assert not (options.output / "broken").exists()


def test_a_second_run_skips_what_is_finished_and_repeats_the_rest(
    slides: Path, options: BatchOptions
) -> None:
    run([slides], options)
    shutil.rmtree(options.output / "b")
    (options.output / "c" / "run.json").unlink()
    summary = run([slides], options)
    assert (summary.done, summary.failed, summary.skipped) == (2, 1, 2 - 1)
    assert {r.slide for r in summary.rows if r.status == "skipped"} == {"a"}


@pytest.mark.parametrize(
    "change", [{"patches": "tissue"}, {"mpp": 0.45}, {"precision": "bf16"}]
)
def test_other_options_are_not_taken_for_finished(
    painted_svs: Path, options: BatchOptions, change: dict[str, Any]
) -> None:
    run([painted_svs], options)
    other = dataclasses.replace(options, **change)
    assert run([painted_svs], other).done == 1
    assert run([painted_svs], other).skipped == 1


def test_a_changed_slide_or_model_or_mask_is_done_again(
    slides: Path, options: BatchOptions, tmp_path: Path
) -> None:
    slide, mask = slides / "a.svs", tmp_path / "a.geojson"
    first = run([slide], options)
    shutil.copy(options.output / "a" / "mask.geojson", mask)
    os.utime(slide, (1, 1))
    assert run([slide], options).done == 1
    masked = dataclasses.replace(options, mask=mask)
    assert run([slide], masked).done == 1
    model = tmp_path / "other.safetensors"
    model.write_bytes(Path(options.model).read_bytes().replace(b"tiny", b"tint", 1))
    assert run([slide], dataclasses.replace(masked, model=str(model))).done == 1
    assert first.done == 1


def test_workers_cluster_and_python_give_the_same_logits(
    slides: Path, options: BatchOptions, tmp_path: Path
) -> None:
    shutil.rmtree(slides / "broken.svs", ignore_errors=True)
    (slides / "broken.svs").unlink()
    here = dataclasses.replace(options, use_cache=False, output=tmp_path / "here")
    pool = dataclasses.replace(here, workers=2, output=tmp_path / "pool")
    cluster = dataclasses.replace(here, cluster="local:1", output=tmp_path / "cluster")
    for one in (here, pool, cluster):
        assert run([slides], one).done == 3
    plain = classify(
        slides / "a.svs", options.model, precision="fp32", cache=False, device="cpu"
    ).logits.tolist()
    for one in (here, pool, cluster):
        for name in ("a", "b", "c"):
            assert logits(one, name) == plain


def test_a_worker_that_dies_costs_no_slide(slides: Path, options: BatchOptions) -> None:
    (slides / "broken.svs").unlink()
    pooled = dataclasses.replace(options, workers=2, use_cache=False)
    work = classify_many([slides], pooled)
    children: set[int] = set()
    for step in work:
        children = set(_children(os.getpid()))
        if "encode" in step.message or "patches" in step.message:
            break
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    summary = finish(work)
    assert (summary.done, summary.failed) == (3, 0)


def _children(pid: int) -> list[int]:
    """Spawned workers only: Python's resource tracker is a child too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"spawn_main" in command:
            found.append(int(path.parent.name))
    return found


def test_closing_a_pool_ends_its_workers_within_a_second(
    slides: Path, options: BatchOptions
) -> None:
    work = classify_many([slides], dataclasses.replace(options, workers=2))
    next(work)
    start = time.monotonic()
    work.close()
    assert time.monotonic() - start < 5
    assert not _children(os.getpid())


KILLED = """
import sys
from pathlib import Path
from napari_msamil.batch import BatchOptions, classify_many
if __name__ == "__main__":
    out, model, slide = sys.argv[1:]
    options = BatchOptions(output=Path(out), model=model, precision="fp32")
    for step in classify_many([slide], options):
        print(step.message, flush=True)
"""


def kill_when(
    seen: Callable[[str], bool], args: list[str], script: Path
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(script), *args], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if seen(line):
            process.kill()
            break
    process.wait()
    return process


@pytest.mark.parametrize("stage", ["mask", "encode 0", "encode 2", "aggregate"])
def test_a_killed_run_is_finished_by_the_next_with_the_same_answer(
    painted_svs: Path, options: BatchOptions, tmp_path: Path, stage: str
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    args = [str(options.output), options.model, str(painted_svs)]
    process = kill_when(lambda line: stage in line, args, script)
    assert process.returncode == -signal.SIGKILL
    assert not (options.output / painted_svs.stem / "run.json").exists()
    assert run([painted_svs], options).done == 1
    fresh = dataclasses.replace(options, output=tmp_path / "fresh", use_cache=False)
    run([painted_svs], fresh)
    assert logits(options, painted_svs.stem) == logits(fresh, painted_svs.stem)


def test_slides_are_found_in_tables_globs_and_dicom_folders(
    slides: Path, shared_data: Path
) -> None:
    jobs = find_slides([str(slides / "[ab].svs"), str(slides / "a.svs")])
    assert [j.name for j in jobs] == ["a", "b"]
    dicom = shared_data / "slides" / "dicom_CMU-1-Small-Region"
    one = sorted(dicom.glob("*.dcm"))[2]
    assert [j.path for j in find_slides([str(one), str(dicom)])] == [dicom]
    cohort = slides / "cohort.csv"
    cohort.write_text("slide_path,mpp,label\na.svs,0.4,x\nb.svs,,y\n")
    assert [(j.name, j.mpp) for j in find_slides([cohort], mpp=0.3)] == [
        ("a", 0.4),
        ("b", 0.3),
    ]


def test_slides_of_one_name_get_folders_of_their_own(slides: Path) -> None:
    other = slides.parent / "more"
    other.mkdir()
    shutil.copy(slides / "a.svs", other / "a.svs")
    names = [j.name for j in find_slides([slides / "a.svs", other / "a.svs"])]
    assert names == ["slides__a", "more__a"]


def test_masks_are_matched_by_name_and_a_missing_one_fails_its_slide_only(
    slides: Path, options: BatchOptions, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    run([slides / "a.svs"], options)
    shutil.copy(options.output / "a" / "mask.geojson", masks / "a.geojson")
    masked = dataclasses.replace(options, mask=masks, output=tmp_path / "masked")
    summary = run([slides / "a.svs", slides / "b.svs"], masked)
    assert (summary.done, summary.failed) == (1, 1)
    assert "no mask named b" in table(masked)["b"]["error"]


def test_ctrl_c_while_the_summary_is_written_leaves_the_old_one_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.csv"
    _write_summary([SlideRow("a", "a.svs", "done")], path)
    before = path.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(csv.DictWriter, "writerows", stop)
        with pytest.raises(KeyboardInterrupt):
            _write_summary([SlideRow("b", "b.svs", "done")], path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
    _write_summary([SlideRow("b", "b.svs", "done")], path)
    assert [line.split(",")[0] for line in path.read_text().split()[1:]] == ["a", "b"]


@pytest.mark.parametrize("word", ["nothing*.svs", "empty", "bad.csv"])
def test_a_word_that_matches_nothing_is_a_wrong_call(tmp_path: Path, word: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError):
        find_slides([str(tmp_path / word)])


def test_one_mask_for_many_slides_is_a_wrong_call(slides: Path, tmp_path: Path) -> None:
    mask = tmp_path / "m.geojson"
    mask.write_text("{}")
    with pytest.raises(ConfigError, match="One mask"):
        find_slides([slides], mask=mask)


def test_progress_says_rates_and_time_left_and_counts_no_cached_patch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("napari_msamil.batch.time.perf_counter", lambda: now[0])
    meter = _Meter(4)
    meter.step("a", Progress(Stage.ENCODE, 10, 90))
    now[0] += 10
    meter.step("a", Progress(Stage.ENCODE, 45, 90))
    assert meter.message == "a: encode 45/90 · 180 slides/h · 4 patches/s · 70 s left"
    now[0] += 10
    meter.count(SlideRow("a", "a.svs", "done", patches=90, read_s=0.5, encode_s=16))
    assert meter.message == (
        "a: encode 45/90 · 180 slides/h · 4 patches/s (read 160, encode 5) · 60 s left"
    )
    now[0] += 180
    meter.step("b", Progress(Stage.MASK))
    assert meter.message == (
        "b: mask 0/0 · 18 slides/h · 0 patches/s (read 160, encode 5) · 10 min left"
    )
    meter.step("c", Progress(Stage.ENCODE, 70, 90))
    meter.count(SlideRow("c", "c.svs", "failed", error="the disk is full"))
    assert " 0 patches/s (read 160" in meter.message


def test_an_unreachable_cluster_is_a_wrong_call(
    painted_svs: Path, options: BatchOptions
) -> None:
    wrong = dataclasses.replace(options, cluster="local:many")
    with pytest.raises(ConfigError, match="local:N"):
        run([painted_svs], wrong)
