"""Several slides at once on this machine: spawned workers that may die without taking a slide with them."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from napari_msamil.batch_job import SlideRow, run_job
from napari_msamil.device import cores
from napari_msamil.folders import sweep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from napari_msamil.batch_inputs import SlideJob
    from napari_msamil.batch_job import BatchOptions
    from napari_msamil.progress import Progress

ATTEMPTS = 3
"""A slide whose worker died is tried again until this many workers were lost on it."""
_STEP_EVERY_S = 0.25
_POLL_S = 0.2
_GRACE_S = 0.8


@dataclass(eq=False)
class _Worker:
    """A process, its end of the pipe, the slide it has, and whether its end of the pipe was closed."""

    process: SpawnProcess
    pipe: Connection
    job: SlideJob | None = None
    gone: bool = False


def run_in_pool(
    jobs: list[SlideJob], options: BatchOptions
) -> Iterator[SlideRow | tuple[str, Progress]]:
    """Classify slides in worker processes.

    Yields:
        A row for each slide as it finishes, and (name, step) in between.
    """
    count = min(options.workers, len(jobs))
    waiting, lost = deque(jobs), dict.fromkeys(jobs, 0)
    workers: list[_Worker] = []
    left = len(jobs)
    try:
        while left:
            while len(workers) < min(count, left):
                workers.append(_start(len(workers), count, options))
            for worker in workers:
                if worker.job is None and waiting:
                    _hand_over(worker, waiting)
            for event in _events(workers):
                left -= isinstance(event, SlideRow)
                yield event
            for row in _bury_the_dead(workers, waiting, lost):
                left -= 1
                yield row
    finally:
        _stop(workers)
        for job in [worker.job for worker in workers if worker.job is not None]:
            sweep(options.output / job.name)


def _start(index: int, count: int, options: BatchOptions) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    device = _device(index, options.device)
    process = context.Process(
        target=_serve, args=(there, replace(options, device=device), count), daemon=True
    )
    with deaf_children():
        process.start()
    there.close()
    return _Worker(process, here)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that are started meanwhile, and threads, do not hear Ctrl-C: it is for the process that was called.

    A terminal sends it to all. A process takes the blocked signals of the thread that starts it along, so there is no
    moment, not even while it imports, in which it would die with a traceback.
    """
    mask = getattr(signal, "pthread_sigmask", None)  # Windows has none
    if mask is None:
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # Python unblocks the signal when it starts this
    before = mask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        mask(signal.SIG_SETMASK, before)


def _device(index: int, device: str) -> str:
    """Spread workers over the GPUs where the device is left open."""
    if device not in ("auto", "cuda"):
        return device
    import torch

    found = torch.cuda.device_count()
    return f"cuda:{index % found}" if found > 1 else device


def _hand_over(worker: _Worker, waiting: deque[SlideJob]) -> None:
    worker.job = waiting.popleft()
    try:
        worker.pipe.send(worker.job)
    except OSError:
        worker.process.join(_GRACE_S)  # it is dead and will be buried


def _events(workers: list[_Worker]) -> Iterator[SlideRow | tuple[str, Progress]]:
    """What workers say within the next moment."""
    pipes = {worker.pipe: worker for worker in workers}
    for pipe in wait([*pipes, *(w.process.sentinel for w in workers)], _POLL_S):
        worker = pipes.get(pipe)  # type: ignore[call-overload]
        if worker is None:
            continue
        try:
            event = worker.pipe.recv()
        except (EOFError, OSError):
            worker.gone = True  # everything it had said was read before
            worker.process.join(_GRACE_S)
            continue
        if isinstance(event, SlideRow):
            worker.job = None
        yield event


def _bury_the_dead(
    workers: list[_Worker], waiting: deque[SlideJob], lost: dict[SlideJob, int]
) -> Iterator[SlideRow]:
    """Take dead workers out; their slide is tried again, or given up with the reason."""
    for worker in [w for w in workers if w.gone]:
        workers.remove(worker)
        worker.pipe.close()
        if worker.job is None:
            continue
        lost[worker.job] += 1
        if lost[worker.job] < ATTEMPTS:
            waiting.append(worker.job)
        else:
            yield lost_row(worker.job, f"exit code {worker.process.exitcode}")


def lost_row(job: SlideJob, reason: str) -> SlideRow:
    """The row of a slide that no worker survived."""
    error = (
        f"{job.path}: {ATTEMPTS} worker processes died on this slide ({reason}), perhaps for lack of memory. "
        "Try it alone, with fewer workers."
    )
    return SlideRow(job.name, str(job.path), "failed", error=error)


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(_GRACE_S)
        worker.pipe.close()


def _serve(pipe: Connection, options: BatchOptions, workers: int) -> None:
    """A worker: slides in, steps and rows out, until the parent is gone. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(max(1, cores() // workers))
    said = 0.0
    while True:
        try:
            job: SlideJob = pipe.recv()
        except (EOFError, OSError):
            return

        def say(step: Progress, name: str = job.name) -> None:
            nonlocal said
            if time.monotonic() - said > _STEP_EVERY_S:
                said = time.monotonic()
                pipe.send((name, replace(step, partial=None)))

        try:
            pipe.send(run_job(job, options, say))
        except BrokenPipeError:
            return
