"""The same bits whatever the number of threads.

A sum that is split among threads is rounded differently for each way of splitting it (seen: features of MSFEM differ
by 1e-6 between one thread and two, logits of IAAM by 1e-7). A window leaves one core free, a pool and a cluster share
the cores out, so where answers must be equal bit for bit every sum is computed by one thread, and several patches at
a time by several threads.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Let torch compute with one thread in the calling thread, if wanted."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if wanted:
            torch.set_num_threads(before)


class Crew:
    """Workers that share out the threads that torch would use here.

    Args:
        most: At most so many workers, each with more threads where there are more; None: one thread for each.

    Attributes:
        size: How many workers.
    """

    def __init__(self, most: int | None = None) -> None:
        threads = torch.get_num_threads()
        each = math.ceil(threads / (most or threads))
        self.size = threads // each
        self._threads = ThreadPoolExecutor(self.size, "msamil-crew")
        # torch's setting belongs to a thread, but new threads begin with the one that was set last anywhere:
        # every thread of the crew is started and set here, and then the caller's own setting is set again.
        together = Barrier(self.size)
        list(self._threads.map(_compute_with, [(each, together)] * self.size))
        torch.set_num_threads(threads)

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> list[Result]:
        """Do the work for every item and return the results in order."""
        return list(self._threads.map(work, items))


def _compute_with(order: tuple[int, Barrier]) -> None:
    threads, together = order
    torch.get_num_threads()  # a new thread takes the common setting at its first question, and would do so later
    torch.set_num_threads(threads)
    together.wait()
