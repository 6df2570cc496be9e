"""Long work in a thread: a generator of `Progress` becomes calls in the window's own thread.

A `Runner` runs one job at a time. Every start and every cancel raises its generation number, and whatever an
older job still sends is dropped, so cancelling takes effect in the window at once, even while a batch is still
being computed in the background.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import MsamilError
from napari_msamil.gui.strings import ERROR
from napari_msamil.gui.triton_guard import keep_triton_out
from napari_msamil.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from napari_msamil.progress import ProgressGen

logger = logging.getLogger(__name__)

INTERVAL_S = 0.15
"""Least time between two messages to the window."""


@dataclass(frozen=True)
class Done:
    """The job returned this."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """The job ended with this sentence for the user."""

    message: str


Message = Progress | Done | Failed


def relay(
    work: ProgressGen[Any], stop: Event, interval_s: float = INTERVAL_S
) -> Generator[Message, None, None]:
    """Run work to its end, a cancel or an error, passing on few messages.

    Progress is thinned to one message per interval (a change of stage always passes); the newest partial
    result is kept until the next message.

    Args:
        work: The job; closed before this returns.
        stop: Set to cancel.
        interval_s: Least time between two messages.
    """
    keep_triton_out()
    sieve = _Sieve(interval_s)
    threads = _ThreadCap()
    try:
        while not stop.is_set():
            try:
                step = next(work)
            except StopIteration as end:
                yield Done(end.value)
                return
            threads.apply()
            message = sieve.pass_on(step)
            if message is not None:
                yield message
    except MsamilError as error:
        yield Failed(str(error))
    except Exception as error:  # the worker's outermost door
        logger.exception("a job of the workbench failed")
        yield Failed(ERROR.unexpected.format(error=str(error) or type(error).__name__))
    finally:
        work.close()
        threads.restore()


class _Sieve:
    """Lets one step per interval through, with the newest partial result."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._last_s = float("-inf")
        self._stage: str | None = None
        self._partial: Any = None

    def pass_on(self, step: Progress) -> Progress | None:
        if step.partial is not None:
            self._partial = step.partial
        now = time.monotonic()
        if step.stage == self._stage and now - self._last_s < self._interval_s:
            return None
        self._stage, self._last_s = step.stage, now
        partial, self._partial = self._partial, None
        return replace(step, partial=partial)


class _ThreadCap:
    """Leaves one core to the window while torch computes on the CPU; torch is never imported for it."""

    def __init__(self) -> None:
        self._before: int | None = None

    def apply(self) -> None:
        torch = sys.modules.get("torch")
        if self._before is None and torch is not None:
            self._before = int(torch.get_num_threads())
            torch.set_num_threads(min(self._before, max(1, (os.cpu_count() or 2) - 1)))

    def restore(self) -> None:
        if self._before is not None:
            sys.modules["torch"].set_num_threads(self._before)


class Runner:
    """Runs one job at a time; only the newest job is heard."""

    def __init__(self) -> None:
        self._generation = 0
        self._stop: Event | None = None
        self._workers: set[Any] = set()

    @property
    def running(self) -> bool:
        """Whether a job is running that has not been cancelled."""
        return self._stop is not None

    @property
    def threads_alive(self) -> bool:
        """Whether any thread, cancelled ones included, still computes."""
        return bool(self._workers)

    def start(
        self,
        work: ProgressGen[Any],
        *,
        on_done: Callable[[Any], None],
        on_failed: Callable[[str], None],
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Start a job; one that still runs is cancelled first.

        Args:
            work: The job.
            on_done: Called with what it returned.
            on_failed: Called with a sentence for the user.
            on_progress: Called with its steps, at most every `INTERVAL_S`.
        """
        from napari.qt.threading import create_worker

        self.cancel()
        generation, stop = self._generation, Event()
        self._stop = stop

        def hear(message: Message) -> None:
            if generation != self._generation:
                return
            if isinstance(message, Progress):
                if on_progress is not None:
                    on_progress(message)
                return
            self._stop = None
            if isinstance(message, Done):
                on_done(message.value)
            else:
                on_failed(message.message)

        worker = create_worker(relay, work, stop)
        worker.warned.connect(_log_warning)
        worker.yielded.connect(hear)
        self._workers.add(worker)
        worker.finished.connect(lambda: self._workers.discard(worker))
        worker.start()

    def cancel(self) -> None:
        """Stop listening now, and ask the job to end at its next step."""
        self._generation += 1
        if self._stop is not None:
            self._stop.set()
            self._stop = None


def _log_warning(details: tuple[Any, ...]) -> None:
    logger.warning("%s", details[0])
