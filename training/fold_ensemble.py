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

from napari_msamil.models import build_aggregator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from napari_msamil.config import AggregatorSpec
    from napari_msamil.models.base import Aggregator

Params = dict[str, Tensor]


@dataclass(frozen=True)
class EnsembleSettings:
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


class _Pooling(nn.Module):
    """An aggregator with its two parts under one `forward`, for `functional_call`."""

    def __init__(self, aggregator: Aggregator) -> None:
        super().__init__()
        self.aggregator = aggregator

    def forward(self, x: Tensor, *, project: bool) -> Any:
        """Projection of flat instances (1, N, D); for bags of one length (B, n, H) two tensors (B, C).

        These are the logits and the largest instance logits, or the logits again where none are scored.
        """
        if project:
            return self.aggregator.project(x)
        zeros = x.new_zeros(*x.shape[:2], 2)
        output = self.aggregator.aggregate(x, zeros, zeros[..., 0].long())
        best = output.instance_logits
        return output.logits, output.logits if best is None else best.amax(1)


class FoldEnsemble:
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
        self.network = _Pooling(members[0])
        self.features, self.labels, self.train = features, labels, train.float()
        self.groups = length_groups(lengths)
        self.n_classes = n_classes
        self.max_stream = spec.name == "dsmil"

    def fit(self, settings: EnsembleSettings) -> dict[int, Tensor]:
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
        for bags, logits, best in self._outputs():
            labels = self.labels[bags].expand(len(weight), -1)
            each = _cross_entropy(logits, labels)
            if self.max_stream:
                each = 0.5 * each + 0.5 * _cross_entropy(best, labels)
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
        """Per group of bags of equal length: bag numbers, logits and best instance logits (members, n, C)."""
        call = vmap(self._call, in_dims=(0, 0, None), randomness="different")
        projected = call(self.params, self.features[:, None], True)[:, 0]
        for bags, rows in self.groups:
            logits, best = call(self.params, projected[:, rows], False)
            yield bags, logits, best

    def _call(self, params: Params, x: Tensor, project: bool) -> Any:
        named = {f"aggregator.{k}": v for k, v in params.items()}
        return functional_call(self.network, named, (x,), {"project": project})


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


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Per member and bag: logits (M, B, C), labels (M, B) → (M, B)."""
    return functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none"
    ).view(labels.shape)
