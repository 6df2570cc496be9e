"""Being asked to end: the signal is noted, the loop saves and leaves."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """A list that gets the signal's number when the process is asked to end; the loop then saves and leaves.

    Only in the main thread; elsewhere the list stays empty.
    """
    received: list[int] = []
    try:
        old = {
            name: signal.signal(name, lambda number, _frame: received.append(number))
            for name in (signal.SIGTERM, signal.SIGINT)
        }
    except ValueError:
        yield received
        return
    try:
        yield received
    finally:
        for name, handler in old.items():
            signal.signal(name, handler)
