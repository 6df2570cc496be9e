"""DTFD-MIL: a bag is split at random into pseudo-bags; a second tier learns from what the first distils of each.

Paper: Zhang et al., Double-tier feature distillation multiple instance learning, CVPR 2022, section 3.
Tier 1, for each of G pseudo-bags with gated attention a and z_g = Σ a h: logits W₁ z_g, trained with the bag's label.
Distillation: `afs` takes z_g itself; `maxs` the instance with the largest class activation; `maxmins` the largest and the
smallest. Tier 2: gated attention over the distilled vectors, one Linear layer. L = CE(tier 2) + mean_g CE(tier 1).

What differs: one optimiser and one sum of losses instead of two optimisers; with a softmax over classes the class
activation of an instance is the log-odds of tier 1's most likely class for its pseudo-bag. The split is random in training;
otherwise it comes from a fixed seed, so that an answer can be repeated (it still depends on the order of the bag).
`attention` is tier 2's weight of a vector times tier 1's weight of the instance in it.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.config import Spec
from napari_msamil.models.abmil import InstanceScores
from napari_msamil.models.attention import accurate
from napari_msamil.models.base import Aggregator
from napari_msamil.models.outputs import MILOutput


class DTFDArgs(Spec):
    """Arguments of DTFD-MIL.

    Attributes:
        hidden: Width of the bias-free projection.
        attention_dim: Hidden width of both gated attentions.
        groups: Pseudo-bags per bag.
        distill: What tier 2 gets of each pseudo-bag.
        dropout: Behind the projection.
        seed: Of the split outside training.
    """

    hidden: int = Field(default=512, ge=1)
    attention_dim: int = Field(default=128, ge=1)
    groups: int = Field(default=4, ge=1)
    distill: Literal["afs", "maxs", "maxmins"] = "afs"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0


class Tier(nn.Module):
    """Gated attention and a classifier: x (N, D) → vector (D,), logits (C,), attention (N,)."""

    def __init__(self, dim: int, hidden: int, n_classes: int) -> None:
        super().__init__()
        self.scores = InstanceScores(dim, hidden, gated=True)
        self.classifier = nn.Linear(dim, n_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pool and classify."""
        attention = accurate(self.scores(x).squeeze(-1)).softmax(0)
        bag = attention.to(x.dtype) @ x
        return bag, self.classifier(bag), attention


class DTFD(Aggregator):
    """Double-tier feature distillation."""

    Args = DTFDArgs
    one_by_one = True

    def __init__(
        self, in_dim: int, n_classes: int, args: DTFDArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.args = args = args or DTFDArgs()
        self.projection = nn.Sequential(
            nn.Linear(in_dim, args.hidden, bias=False),
            nn.ReLU(),
            nn.Dropout(args.dropout),
        )
        self.tier1 = Tier(args.hidden, args.attention_dim, n_classes)
        self.tier2 = Tier(args.hidden, args.attention_dim, n_classes)

    def split(self, n: int) -> list[Tensor]:
        """Indices 0 … n − 1 in random groups of nearly equal size, on the CPU; a fixed draw outside training."""
        generator = None
        if not self.training:
            generator = torch.Generator().manual_seed(self.args.seed)
        order = torch.randperm(n, generator=generator)
        return list(order.tensor_split(min(self.args.groups, n)))

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        x = x[0]
        vectors, shares, tier1_logits = [], [], []
        for group in (g.to(x.device) for g in self.split(len(x))):
            bag, logits, attention = self.tier1(x[group])
            tier1_logits.append(logits)
            for vector, within in self._distil(x[group], bag, logits, attention):
                vectors.append(vector)
                shares.append(within.new_zeros(len(x)).index_copy(0, group, within))
        bag, logits, weights = self.tier2(torch.stack(vectors))
        losses = None
        if label is not None:
            each = accurate(torch.stack(tier1_logits))
            losses = {"tier1": F.cross_entropy(each, label.expand(len(each)))}
        return MILOutput(
            logits[None],
            (weights @ torch.stack(shares))[None],
            bag[None],
            instance_logits=self.tier1.classifier(x)[None],
            losses=losses,
        )

    def _distil(
        self, x: Tensor, bag: Tensor, logits: Tensor, attention: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Vectors for tier 2, each with its share per instance of the group: [((D,), (n,)), …]."""
        if self.args.distill == "afs":
            return [(bag, attention)]
        with torch.no_grad():
            likely = logits.argmax()
            activation = accurate(self.tier1.classifier(x)).log_softmax(-1)[:, likely]
        chosen = [int(activation.argmax())]
        if self.args.distill == "maxmins" and len(x) > 1:
            chosen.append(int(activation.argmin()))
        return [
            (x[i], F.one_hot(torch.tensor(i), len(x)).to(attention)) for i in chosen
        ]
