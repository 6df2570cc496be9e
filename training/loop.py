"""One training loop for all verbs, top to bottom: visit, backward, step, validate, save, stop.

The order of visits and every draw inside a visit depend only on (seed, epoch, position), never on threads or on
what was run before; the dropout masks depend on torch's generator, whose state is saved. So a run that was killed
and resumed takes the same steps as one that was not, bit for bit on a CPU in float32.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from napari_msamil.errors import MsamilError

from .ranks import ONE_RANK, Ranks
from .state import (
    BEST,
    LAST,
    load_state,
    require_same_data,
    rng_state,
    save_state,
    set_rng_state,
)
from .stopping import stop_on_signal
from .visits import Visit as Visit
from .visits import class_weights, epoch_visits, schedule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from .config import LoopSpec
    from .log import RunLog


class Task(Protocol):
    """What a verb gives to the loop."""

    kind: str
    network: nn.Module

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for AdamW, each with `params`, `lr` and `name`."""
        ...

    def names(self) -> Sequence[str]:
        """Names of the training items, for messages."""
        ...

    def labels(self) -> Sequence[int]:
        """Class index of each training item."""
        ...

    def start_epoch(self, epoch: int, visits: Sequence[Visit]) -> None:
        """Called before each epoch with its visits that are still to be done (for reading ahead)."""
        ...

    def backward(self, visit: Visit) -> float | None:
        """Forward and backward of one visit; returns the unweighted loss, or None if the item was skipped."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on the validation items; empty where there are none."""
        ...

    def description(self) -> dict[str, Any]:
        """Plain data stored in every state: the configuration that `publish` needs."""
        ...


@runtime_checkable
class FollowsSteps(Protocol):
    """A task that does something after each optimiser step, before a state is saved: moving a teacher."""

    def after_step(self, step: int) -> None:
        """Called after optimiser step number `step`; 0 is the first."""
        ...


@runtime_checkable
class TakesWindows(Protocol):
    """A task that computes all visits of an accumulation window at once."""

    def backward_window(self, visits: Sequence[Visit]) -> list[float | None]:
        """As `Task.backward` for each visit, in one pass."""
        ...


@dataclass
class Position:
    """Where a run stands; saved with the state."""

    epoch: int = 0
    position: int = 0
    step: int = 0
    best: float = -math.inf
    best_epoch: int = -1
    best_loss: float = math.inf
    stale: int = 0
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        epochs: Epochs done.
        best: Best monitored figure (the sign is the figure's own).
        best_epoch: Epoch it was reached in, -1 where nothing was validated.
        reason: `finished`, `early` or `stopped` (by a signal).
        skipped: Items that could not be read.
        seconds: Time spent, earlier parts of a resumed run included.
    """

    epochs: int
    best: float
    best_epoch: int
    reason: str
    skipped: tuple[str, ...]
    seconds: float


def fit(
    task: Task,
    spec: LoopSpec,
    folder: Path,
    log: RunLog,
    *,
    resume: bool = False,
    ranks: Ranks = ONE_RANK,
) -> FitResult:
    """Train until the end, early stopping, or a signal.

    Args:
        task: What one step is.
        spec: How long and how fast.
        folder: Gets `state.pt` after each epoch and `best.pt` at each improvement.
        log: Where figures go.
        resume: Go on from `state.pt` in the folder.
        ranks: The processes that train together; the first one writes.

    Raises:
        MsamilError: The loss is not a number; the message names the item.
    """
    run = TrainingRun(task, spec, folder, log, ranks)
    if resume and (folder / LAST).is_file():
        run.load()
    with stop_on_signal() as stopped:
        return run.go(stopped)


class TrainingRun:
    """The loop with its optimiser and schedule; `save` may be overridden."""

    def __init__(
        self,
        task: Task,
        spec: LoopSpec,
        folder: Path,
        log: RunLog,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.task, self.spec, self.folder, self.log = task, spec, folder, log
        self.ranks = ranks
        self.groups = task.parameter_groups()
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[spec.optimizer]
        self.optimizer = kind(
            self.groups, betas=spec.betas, weight_decay=spec.weight_decay, foreach=True
        )
        self.base_lr = [float(g["lr"]) for g in self.groups]
        self.at = Position()
        self.saved_at = self.started = time.monotonic()
        labels = np.asarray(task.labels())
        self.weights = class_weights(labels) if spec.balance == "weights" else None
        self.epoch_steps = math.ceil(len(labels) / spec.accumulate)
        self.total_steps = spec.epochs * self.epoch_steps

    def go(self, stopped: list[int]) -> FitResult:
        """Train until the end, early stopping, or until `stopped` holds something."""
        reason = "finished"
        while self.at.epoch < self.spec.epochs:
            if self.at.position == 0 and self._enough():  # resumed where it had ended
                reason = "early"
                break
            if not self._epoch(stopped):
                reason = "stopped"
                break
            if self._validate_and_save():
                reason = "early"
                break
        self.log.event("end", reason=reason, epoch=self.at.epoch)
        sign = -1.0 if self.spec.monitor == "val_loss" else 1.0
        return FitResult(
            self.at.epoch,
            sign * self.at.best,
            self.at.best_epoch,
            reason,
            tuple(self.at.skipped),
            self._seconds(),
        )

    def _epoch(self, stopped: list[int]) -> bool:
        """The rest of the current epoch; False if a signal stopped it (the state is saved)."""
        self.task.network.train()
        visits = epoch_visits(self.task.labels(), self.spec, self.at.epoch)
        size = self.spec.accumulate
        self.task.start_epoch(self.at.epoch, visits[self.at.position :])
        for first in range(self.at.position, len(visits), size):
            self._step(visits[first : first + size])
            self.at.position = min(first + size, len(visits))
            if self.ranks.any(bool(stopped)):
                self.save()
                self.log.note("Stopped by a signal; go on with --resume.")
                return False
            self._save_now_and_then()
        self.at.epoch += 1
        self.at.position = 0
        return True

    def _step(self, visits: Sequence[Visit]) -> None:
        """One optimiser step over the visits of one accumulation window."""
        along = self.at.step
        if self.spec.anneal == "epoch":
            along -= along % self.epoch_steps
        lr_share = schedule(along, self.total_steps, self.spec)
        for group, lr in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = lr * lr_share
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._losses(visits)
        done = [loss for loss in losses if loss is not None]
        norm = self._clip() if done else 0.0
        if done:
            self.optimizer.step()
        if isinstance(self.task, FollowsSteps):
            self.task.after_step(self.at.step)
        self.at.step += 1
        loss = float(np.mean(done)) if done else math.nan
        self.log.scalars(
            self.at.step,
            loss=loss,
            lr_share=lr_share,
            grad_norm=norm,
            epoch=self.at.epoch,
        )
        self.log.advance(loss=loss)

    def _losses(self, visits: Sequence[Visit]) -> list[float | None]:
        weighted = [self._weighted(visit) for visit in visits]
        if isinstance(self.task, TakesWindows):
            losses = self.task.backward_window(weighted)
        else:
            losses = [self.task.backward(visit) for visit in weighted]
        return [self._check(v, x) for v, x in zip(weighted, losses, strict=True)]

    def _weighted(self, visit: Visit) -> Visit:
        if self.weights is None:
            return visit
        share = self.weights[self.task.labels()[visit.item]]
        return replace(visit, weight=visit.weight * float(share))

    def _check(self, visit: Visit, loss: float | None) -> float | None:
        name = self.task.names()[visit.item]
        if loss is None:
            if name not in self.at.skipped:
                self.at.skipped.append(name)
                self.log.event("skipped", item=name)
            return None
        if not math.isfinite(loss):
            self.log.event("not finite", item=name, loss=str(loss))
            raise MsamilError(
                f"The loss became {loss} on slide {name} (epoch {visit.epoch + 1}, step {self.at.step + 1}). "
                "Look at that slide, lower the learning rates, or set clip_norm."
            )
        return loss

    def _clip(self) -> float:
        parameters = [p for group in self.groups for p in group["params"]]
        bound = self.spec.clip_norm or math.inf
        return float(torch.nn.utils.clip_grad_norm_(parameters, bound))

    def _validate_and_save(self) -> bool:
        """Validate if it is time, save, and say whether to stop early."""
        spec, epoch = self.spec, self.at.epoch
        last = epoch == spec.epochs
        if epoch % spec.validate_every == 0 or last:
            self.task.network.eval()
            figures = self.task.validate()
            if figures:
                self._judge(figures)
        if last or epoch % spec.save_every == 0:
            self.save()
        return self._enough()

    def _enough(self) -> bool:
        """Whether nothing got better for so long that the run ends."""
        spec = self.spec
        waited = self.at.epoch >= max(spec.min_epochs, 1)
        return bool(spec.patience and waited and self.at.stale >= spec.patience)

    def _judge(self, figures: dict[str, float]) -> None:
        self.log.scalars(self.at.step, **figures, epoch=self.at.epoch)
        shown = ", ".join(f"{k} {v:.4f}" for k, v in figures.items())
        self.log.note(f"epoch {self.at.epoch}: {shown}")
        sign = -1.0 if self.spec.monitor == "val_loss" else 1.0
        value, loss = sign * figures[self.spec.monitor], figures.get("val_loss", 0.0)
        better, tied = value > self.at.best, value == self.at.best
        fresh = better or (tied and self.spec.tie_resets)
        self.at.stale = 0 if fresh else self.at.stale + 1
        if better or (tied and self.spec.tie_break and loss < self.at.best_loss):
            self.at.best, self.at.best_epoch = value, self.at.epoch
            self.at.best_loss = loss
            self.save(BEST, figures)

    def _save_now_and_then(self) -> None:
        minutes = (time.monotonic() - self.saved_at) / 60
        if self.spec.save_minutes and minutes >= self.spec.save_minutes:
            self.save()

    def _seconds(self) -> float:
        return self.at.seconds + time.monotonic() - self.started

    def save(self, name: str = LAST, figures: dict[str, float] | None = None) -> None:
        """Write the whole state under `name` in the run's folder."""
        self.saved_at = time.monotonic()
        if not self.ranks.first:
            return
        position = {**vars(self.at), "seconds": self._seconds()}
        save_state(
            self.folder / name,
            self.task.kind,
            {
                "model": self.task.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "position": position,
                "rng": rng_state(),
                "metrics": figures or {},
                "description": self.task.description(),
            },
        )

    def load(self) -> None:
        """Go on from the folder's last state."""
        state = load_state(self.folder / LAST, self.task.kind)
        require_same_data(state, self.task.description(), self.folder / LAST)
        self.task.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.at = Position(**state["position"])
        set_rng_state(state["rng"])
        self.log.resumed(self.at.step)
        self.log.event("resume", epoch=self.at.epoch, step=self.at.step)
