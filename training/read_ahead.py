"""Results computed in threads ahead of their use."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

from napari_msamil.errors import MsamilError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_T = TypeVar("_T")
_R = TypeVar("_R")


class ReadAhead(Generic[_T, _R]):
    """Results of a function over a list of arguments, the next ones computed in threads while one is used.

    Expected errors (`MsamilError`) come back as values, so that one bad slide does not end the rest.
    """

    def __init__(
        self, work: Callable[[_T], _R], arguments: Sequence[_T], ahead: int
    ) -> None:
        self._work = work
        self._left = deque(arguments)
        self._waiting: deque[Future[_R | MsamilError]] = deque()
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(
            max(ahead, 1), thread_name_prefix="msamil-ahead"
        )

    def __iter__(self) -> Iterator[_R | MsamilError]:
        return self

    def __next__(self) -> _R | MsamilError:
        """The next result in the order of the arguments."""
        while self._left and len(self._waiting) <= self._ahead:
            self._waiting.append(self._pool.submit(self._try, self._left.popleft()))
        if not self._waiting:
            self.close()
            raise StopIteration
        return self._waiting.popleft().result()

    def _try(self, argument: _T) -> _R | MsamilError:
        try:
            return self._work(argument)
        except MsamilError as error:
            return error

    def close(self) -> None:
        """Drop what has not begun and end the threads."""
        self._left.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
