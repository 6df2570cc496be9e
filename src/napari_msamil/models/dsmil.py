"""DSMIL: the best-scoring instance of each class asks all others how alike they are.

Paper: Li, Li, Eliceiri, Dual-stream multiple instance learning network, CVPR 2021, eq. 2 to 6.
Stream 1: instance logits c = W₀ h, critical instance per class m_c = argmax_n. Stream 2: q = tanh(W₂ ReLU(W₁ h)),
A_nc = softmax_n(q_n · q_{m_c} / √d_q), b_c = Σ_n A_nc v_n with v = h or a linear layer, bag logits by a convolution over the
stacked b. L = ½ CE(bag) + ½ CE(max over instances).

What differs: cross-entropy over a softmax of classes instead of one Bernoulli per class (one label per slide).
`hidden` adds the Linear–ReLU–dropout projection that MHIM-MIL puts before it. `attention` is the mean of the classes'
attentions weighted by the predicted probabilities; `embedding` is the mean of b over classes; `mining_attention` is the
largest instance logit over classes, which MHIM ranks by.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.config import Spec
from napari_msamil.models.abmil import projection
from napari_msamil.models.attention import accurate
from napari_msamil.models.base import Aggregator
from napari_msamil.models.outputs import MILOutput


class DSMILArgs(Spec):
    """Arguments of DSMIL.

    Attributes:
        hidden: Width of a projection before everything; None leaves the features as they are.
        query_dim: Width of q.
        value: Whether v is a learned linear layer.
        dropout: Behind the projection, and before v.
    """

    hidden: int | None = Field(default=None, ge=1)
    query_dim: int = Field(default=128, ge=1)
    value: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)


class DualStream(nn.Module):
    """The two streams: x (B, N, D) → instance logits, bag logits, attention (B, C, N), bag vectors (B, C, D)."""

    def __init__(self, dim: int, n_classes: int, args: DSMILArgs) -> None:
        super().__init__()
        self.instance = nn.Linear(dim, n_classes)
        self.query = nn.Sequential(
            nn.Linear(dim, args.query_dim),
            nn.ReLU(),
            nn.Linear(args.query_dim, args.query_dim),
            nn.Tanh(),
        )
        self.value = (
            nn.Sequential(nn.Dropout(args.dropout), nn.Linear(dim, dim), nn.ReLU())
            if args.value
            else nn.Identity()
        )
        self.bag = nn.Conv1d(n_classes, n_classes, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both streams; the critical instances are chosen per bag and class."""
        scores: Tensor = self.instance(x)
        critical = scores.detach().argmax(1)
        query = self.query(x)
        asked = query.gather(1, critical[..., None].expand(-1, -1, query.shape[-1]))
        alike = accurate(asked @ query.transpose(1, 2)) * query.shape[-1] ** -0.5
        attention = alike.softmax(-1)
        bags = attention.to(x.dtype) @ self.value(x)
        return scores, self.bag(bags).squeeze(-1), attention, bags


class DSMIL(Aggregator):
    """Dual-stream MIL."""

    Args = DSMILArgs
    bag_loss_weight = 0.5

    def __init__(
        self, in_dim: int, n_classes: int, args: DSMILArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        args = args or DSMILArgs()
        dim = args.hidden or in_dim
        self.projection = (
            nn.Identity()
            if args.hidden is None
            else projection(in_dim, dim, args.dropout)
        )
        self.streams = DualStream(dim, n_classes, args)

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        scores, logits, branches, bags = self.streams(x)
        attention = (accurate(logits.detach()).softmax(-1)[..., None] * branches).sum(1)
        losses = None
        if label is not None:
            best = torch.amax(accurate(scores), dim=1)
            losses = {"max_instance": 0.5 * F.cross_entropy(best, label)}
        return MILOutput(
            logits,
            attention,
            bags.mean(1),
            mining_attention=scores.amax(-1)[:, None],
            instance_logits=scores,
            losses=losses,
        )
