"""What a training says of itself: a JSONL file, TensorBoard where it is installed, a progress bar with time left."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

LOG_NAME = "log.jsonl"


class RunLog:
    """Log of one run; use it as a context manager.

    Args:
        folder: Where `log.jsonl` and the TensorBoard files go.
        total: Steps of the whole run, for the time left.
        start: Steps already done by the run that is resumed.
        title: Word before the progress bar.
        enabled: False on every rank but the first: nothing is written or shown.
    """

    def __init__(
        self,
        folder: Path,
        total: int = 0,
        start: int = 0,
        title: str = "",
        enabled: bool = True,
    ) -> None:
        self._enabled = enabled
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / LOG_NAME).open("a", encoding="utf-8")
        self._board = _open_board(folder)
        self._bar = tqdm(
            total=total, initial=start, desc=title, file=sys.stderr, mininterval=0.5
        )

    def event(self, name: str, **values: Any) -> None:
        """Write one line that is no time series: start, resume, skipped slide, stop."""
        self._write({"event": name, **values})

    def scalars(self, step: int, **values: float) -> None:
        """Write figures of one step to the JSONL file and to TensorBoard."""
        self._write({"step": step, **values})
        if self._enabled and self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def resumed(self, step: int) -> None:
        """Say that so many steps were done by an earlier run, so that the time left counts the others only."""
        if self._enabled:
            self._bar.initial = self._bar.n = step
            self._bar.refresh()

    def advance(self, **shown: float) -> None:
        """One step further on the progress bar, with figures beside it."""
        if not self._enabled:
            return
        self._bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)
        self._bar.update(1)

    def note(self, text: str) -> None:
        """A sentence for the user, above the progress bar."""
        if self._enabled:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flush and close everything; closing twice is fine."""
        if not self._enabled or self._file.closed:
            return
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._enabled:
            line["time"] = round(time.time(), 3)
            self._file.write(json.dumps(plain(line)) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with null in place of numbers that JSON does not know."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in values.items()
    }


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run's log, oldest first; figures that were no numbers are NaN again."""
    text = (folder / LOG_NAME).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [{k: math.nan if v is None else v for k, v in x.items()} for x in lines]


def _open_board(folder: Path) -> Any:
    """TensorBoard's writer, or None where the extra `train` is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
