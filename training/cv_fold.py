"""One fold of a cross-validation, run in a process of its own: its stages in order, finished ones skipped."""

from __future__ import annotations

import json
import os
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_msamil.errors import MsamilError

from .made_with import claim, inputs_of

if TYPE_CHECKING:
    from pathlib import Path

RESUMABLE = ("segment", "e2e", "mil", "mhim", "dino")
"""Verbs that go on from `state.pt` with `--resume`."""
STATE = "state.pt"
PREDICTIONS = "predictions.csv"


@dataclass(frozen=True)
class FoldStage:
    """One verb of a fold.

    Attributes:
        verb: A verb of msamil-train.
        words: Its arguments.
        makes: File that shows it is finished.
        folder: Its output folder: a `state.pt` there is gone on from.
    """

    verb: str
    words: tuple[str, ...]
    makes: Path
    folder: Path


@dataclass(frozen=True)
class FoldTask:
    """A fold.

    Attributes:
        number: Which fold.
        folder: Its folder; `output.log` there gets what the verbs print.
        stages: What is run.
        threads: CPU threads it may use; 0 leaves that to torch.
    """

    number: int
    folder: Path
    stages: tuple[FoldStage, ...]
    threads: int = 0

    @property
    def predictions(self) -> Path:
        """What the fold must leave behind."""
        return self.folder / PREDICTIONS


def run_fold(task: FoldTask) -> str:
    """Run what is unfinished.

    Returns:
        Empty, or why it failed; a fold that fails does not stop the others.
    """
    log = task.folder / "output.log"
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        _limit_threads(task.threads)
        with (
            log.open("a", encoding="utf-8") as file,
            redirect_stdout(file),
            redirect_stderr(file),
        ):
            return _run_stages(task)
    except (MsamilError, OSError) as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  (the outermost door of this process)
        with log.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        return f"unexpected error, see {log}: {error}"


def _run_stages(task: FoldTask) -> str:
    for stage in task.stages:
        words = list(stage.words)
        part = os.path.relpath(stage.makes, task.folder)
        begun = stage.verb in RESUMABLE and (stage.folder / STATE).exists()
        finished = stage.makes.exists()
        inputs = inputs_of([stage.verb, *words])
        claim(task.folder, part, inputs, begun=begun or finished)
        if finished:
            continue
        if begun:
            words.append("--resume")
        start = time.perf_counter(), time.process_time()
        code = _code(stage.verb, words)
        _note_seconds(task.folder, stage.verb, time.perf_counter() - start[0])
        _note_seconds(task.folder, f"{stage.verb} cpu", time.process_time() - start[1])
        if code:
            return (
                f"{stage.verb} ended with code {code}, see {task.folder / 'output.log'}"
            )
    if not task.predictions.exists():
        return f"the stages left no {task.predictions}"
    return ""


def _code(verb: str, words: list[str]) -> int:
    """The exit code of a verb; arguments that it does not take end the fold, not the process with all folds in it."""
    from .cli import run_verb

    try:
        return run_verb(verb, words)
    except SystemExit as stop:  # argparse, which has said why
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _note_seconds(folder: Path, verb: str, seconds: float) -> None:
    """Add the time of a stage to `seconds.json`: a resumed stage counts in parts."""
    path = folder / "seconds.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found[verb] = found.get(verb, 0.0) + seconds
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")


def _limit_threads(threads: int) -> None:
    if threads <= 0:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
