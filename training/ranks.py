"""Several processes that train one model together, started by torchrun; one process is the plain case.

Gradients are summed over the ranks after the last backward of a window, so the weights of a visit stay what they are
in one process, and so do loss and parameters. Work is shared over slides (each rank computes some visits of a window)
or over the instances of one slide (each rank encodes its share of the patches; features are gathered, every rank runs
the small aggregator, and each takes the gradient of its own features back through its encoder).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import nn


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those that train together.

    Attributes:
        rank: 0 … size − 1.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes; all ranks get the same answer."""
        if self.size == 1:
            return flag
        told = torch.tensor([float(flag)], device=_device())
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return bool(told.item())

    def share(self, count: int) -> range:
        """Positions 0 … count − 1 that are this rank's: every `size`-th."""
        return range(self.rank, count, self.size)

    def span(self, count: int) -> slice:
        """This rank's contiguous part of `count` things, as even as possible."""
        return slice(
            count * self.rank // self.size, count * (self.rank + 1) // self.size
        )

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all ranks, in one message; a missing gradient counts as zero."""
        if self.size == 1:
            return
        chosen = [p for p in parameters if p.requires_grad]
        flat = torch.cat([_gradient(p).flatten() for p in chosen])
        dist.all_reduce(flat)
        start = 0
        for p in chosen:
            p.grad = flat[start : start + p.numel()].view_as(p).clone()
            start += p.numel()

    def gather_losses(
        self, losses: Sequence[float | None], mine: Iterable[int]
    ) -> list[float | None]:
        """Losses of all visits of a window on every rank.

        Args:
            losses: This rank's losses; None where an item was skipped or is another rank's.
            mine: Positions this rank computed.
        """
        if self.size == 1:
            return list(losses)
        table = torch.zeros(2, len(losses), dtype=torch.float64, device=_device())
        for i in mine:
            loss = losses[i]
            table[0, i], table[1, i] = (0.0 if loss is None else loss), loss is not None
        dist.all_reduce(table)
        values, known = table.tolist()
        return [v if k else None for v, k in zip(values, known, strict=True)]

    def gather(self, thing: Any) -> list[Any]:
        """A small picklable thing of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [thing]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, thing)
        return found

    def gather_features(self, features: Tensor, count: int) -> Tensor:
        """Features (count, D) of all ranks in order, with the gradient of this rank's own `span`.

        Every rank computes the whole loss from the gathered features, so the gradient of its own part is complete
        and nothing is to be summed here.
        """
        if self.size == 1:
            return features
        lengths = [_length(Ranks(r, self.size).span(count)) for r in range(self.size)]
        # gloo gathers tensors of one size only: short parts are filled up, and cut again afterwards.
        mine = features.new_zeros(max(lengths), features.shape[1])
        mine[: len(features)] = features.detach()
        found = [torch.empty_like(mine) for _ in lengths]
        dist.all_gather(found, mine)
        parts = [part[:n] for part, n in zip(found, lengths, strict=True)]
        parts[self.rank] = features
        return torch.cat(parts)


ONE_RANK = Ranks()


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """The ranks torchrun started (gloo on CPU, NCCL on CUDA); without torchrun one rank.

    Args:
        device: Device of this process.

    Raises:
        ConfigError: torchrun's variables are there, but the ranks cannot join.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ONE_RANK
        return
    backend = "nccl" if device.startswith("cuda") else "gloo"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The {size} ranks cannot join ({error}). Start them with torchrun."
        ) from error
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def rank_device(device: str) -> str:
    """The device of this process: with several CUDA ranks on a machine each takes its own."""
    local = os.environ.get("LOCAL_RANK")
    if local is not None and device in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(int(local))
        return f"cuda:{local}"
    return device


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _length(part: slice) -> int:
    return int(part.stop - part.start)
