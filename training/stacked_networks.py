"""Many small networks trained at once: one per fold, seed and inner split, as one stacked network.

For data so small that the overhead of a step costs more than its arithmetic. All members share the bags but have
features, weights and training bags of their own; `torch.func.vmap` runs them together. Bags are grouped by length, so no
bag is padded. A step uses a random half of each member's training bags, which gives the noise of small batches.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from napari_msamil.models import build_aggregator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from napari_msamil.config import AggregatorSpec
    from napari_msamil.models.base import Aggregator

Params = dict[str, Tensor]


@dataclass(frozen=True)
class StackedSettings:
    """How all members are trained.

    Attributes:
        lr: Learning rate of AdamW.
        weight_decay: Decoupled weight decay.
        bag_share: Share of a member's training bags in one step.
        checkpoints: Steps after which all bags are predicted, ascending; the last ends the training.
    """

    lr: float = 3e-3
    weight_decay: float = 1e-2
    bag_share: float = 0.5
    checkpoints: tuple[int, ...] = (40, 80, 120)


class _Member(nn.Module):
    """An aggregator with its two parts under one `forward`, for `functional_call`."""

    def __init__(self, aggregator: Aggregator) -> None:
        super().__init__()
        self.aggregator = aggregator

    def forward(self, x: Tensor, label: Tensor | None = None) -> Any:
        """Without label the projection of flat instances (N, D); with one, logits (C,) and loss () of a bag (n, H)."""
        if label is None:
            return self.aggregator.project(x[None])[0]
        places = x.new_zeros(1, len(x), 2)
        output = self.aggregator.aggregate(
            x[None], places, places[..., 0].long(), label=label[None]
        )
        loss = functional.cross_entropy(output.logits, label[None])
        loss = self.aggregator.bag_loss_weight * loss
        return output.logits[0], loss + sum((output.losses or {}).values())


class StackedNetworks:
    """The members and their bags.

    Args:
        spec: What every member is.
        n_classes: Number of classes.
        features: float32 (members, ΣN, D).
        lengths: Instances of each bag.
        labels: int64 (bags,).
        train: bool (members, bags), the training bags of each member.
        seed: Of start weights and draws.
    """

    def __init__(
        self,
        spec: AggregatorSpec,
        n_classes: int,
        features: Tensor,
        lengths: Sequence[int],
        labels: Tensor,
        train: Tensor,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        members = [build_aggregator(spec, n_classes) for _ in range(len(features))]
        stacked, _ = stack_module_state(list(members))
        self.params: Params = {
            k: v.detach().requires_grad_() for k, v in stacked.items()
        }
        self.network = _Member(members[0])
        self.features, self.labels, self.train = features, labels, train.float()
        self.groups = length_groups(lengths)
        self.n_classes = n_classes

    def fit(self, settings: StackedSettings) -> dict[int, Tensor]:
        """Train, and predict at every checkpoint: step → probabilities (members, bags, C)."""
        optimizer = torch.optim.AdamW(
            self.params.values(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            foreach=True,
        )
        found = {}
        for step in range(1, settings.checkpoints[-1] + 1):
            drawn = torch.rand_like(self.train) < settings.bag_share
            weight = self.train * drawn
            self.network.train()
            loss = self._loss(weight / weight.sum(1, keepdim=True).clamp_min(1))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            if step in settings.checkpoints:
                found[step] = self.predict()
        return found

    def _loss(self, weight: Tensor) -> Tensor:
        """Sum over members of their weighted mean loss; members do not touch each other."""
        loss = weight.new_zeros(())
        for bags, _, each in self._outputs():
            loss = loss + (each * weight[:, bags]).sum()
        return loss

    @torch.no_grad()
    def predict(self) -> Tensor:
        """Probabilities of all bags in evaluation mode: (members, bags, C)."""
        self.network.eval()
        found = torch.empty(*self.train.shape, self.n_classes)
        for bags, logits, _ in self._outputs():
            found[:, bags] = logits.softmax(-1)
        return found

    def _outputs(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Per group of bags of equal length: bag numbers (n,), logits (members, n, C) and losses (members, n)."""
        project = vmap(self._call, randomness="different")
        alone = vmap(self._call, in_dims=(None, 0, 0), randomness="different")
        pool = vmap(alone, in_dims=(0, 0, None), randomness="different")
        projected = project(self.params, self.features)
        for bags, rows in self.groups:
            # fused attention kernels have no rule for stacked networks
            with sdpa_kernel(SDPBackend.MATH):
                found = pool(self.params, projected[:, rows], self.labels[bags])
            yield bags, *found

    def _call(self, params: Params, *inputs: Tensor) -> Any:
        named = {f"aggregator.{k}": v for k, v in params.items()}
        return functional_call(self.network, named, inputs)


def length_groups(lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Bags of equal length: for each length the bag numbers (n,) and the rows of their instances (n, length)."""
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    groups: dict[int, list[int]] = defaultdict(list)
    for bag, length in enumerate(lengths):
        groups[length].append(bag)
    return [
        (
            torch.tensor(bags),
            torch.tensor([starts[b] for b in bags])[:, None] + torch.arange(length),
        )
        for length, bags in sorted(groups.items())
    ]
