"""AB-MIL: a small network scores every instance, the softmax of the scores weights their sum.

Paper: Ilse, Tomczak, Welling, Attention-based Deep Multiple Instance Learning, ICML 2018, eq. 7 to 9.
h = ρ(W x); a = softmax_n(wᵀ φ(V h)), gated: a = softmax_n(wᵀ(φ(V h) ⊙ σ(U h))); z = Σ a h; one Linear layer.

What differs: φ is tanh with biases in Ilse's paper; the MHIM-MIL runs use ReLU without biases, ungated for
CAMELYON16 (591,490 parameters for 1024 values and two classes) and gated for TCGA (657,026). `ABMIL_PRESETS` has all.
The head is a softmax over classes instead of Bernoulli, so that more than two classes work.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_msamil.config import Spec
from napari_msamil.models.base import Aggregator, activation, masked_softmax
from napari_msamil.models.outputs import MILOutput

ABMIL_PRESETS: dict[str, dict[str, Any]] = {
    "ilse": {"gated": False, "activation": "tanh", "bias": True},
    "ilse_gated": {"gated": True, "activation": "tanh", "bias": True},
    "mhim": {"gated": False, "activation": "relu", "bias": False},
    "mhim_gated": {"gated": True, "activation": "relu", "bias": False},
}
"""Arguments of the published variants, for `AggregatorSpec.args`."""


class ABMILArgs(Spec):
    """Arguments of AB-MIL.

    Attributes:
        hidden: Width of the projection.
        attention_dim: Hidden width of the attention network.
        gated: Whether the sigmoid gate is used.
        activation: φ.
        bias: Whether the attention network has biases.
        dropout: Behind the projection.
    """

    hidden: int = Field(default=512, ge=1)
    attention_dim: int = Field(default=128, ge=1)
    gated: bool = True
    activation: Literal["relu", "tanh", "gelu"] = "tanh"
    bias: bool = True
    dropout: float = Field(default=0.25, ge=0, lt=1)


class InstanceScores(nn.Module):
    """The attention network: instances (…, N, dim) → scores (…, N, out)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        out: int = 1,
        *,
        gated: bool,
        phi: str = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.v = nn.Linear(dim, hidden, bias=bias)
        self.u = nn.Linear(dim, hidden, bias=bias) if gated else None
        self.phi = activation(phi)
        self.drop = nn.Dropout(dropout)
        self.w = nn.Linear(hidden, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scores before the softmax."""
        hidden = self.phi(self.v(x))
        if self.u is not None:
            hidden = hidden * torch.sigmoid(self.u(x))
        scores: Tensor = self.w(self.drop(hidden))
        return scores


def projection(
    in_dim: int, hidden: int, dropout: float, *, bias: bool = True
) -> nn.Sequential:
    """Linear, ReLU, dropout: the per-instance part of most methods."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden, bias=bias), nn.ReLU(), nn.Dropout(dropout)
    )


class ABMIL(Aggregator):
    """Attention-based MIL; padded batches run at once, with a masked softmax."""

    Args = ABMILArgs
    pads = True

    def __init__(
        self, in_dim: int, n_classes: int, args: ABMILArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        args = args or ABMILArgs()
        self.projection = projection(in_dim, args.hidden, args.dropout)
        self.scores = InstanceScores(
            args.hidden,
            args.attention_dim,
            gated=args.gated,
            phi=args.activation,
            bias=args.bias,
        )
        self.classifier = nn.Linear(args.hidden, n_classes)

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        return self._pool_padded(x, None)

    def _pool_padded(
        self, x: Tensor, valid: Tensor | None, *others: Tensor | None
    ) -> MILOutput:
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0)
        attention = masked_softmax(self.scores(x).squeeze(-1), valid)
        bag = (attention.to(x.dtype)[:, None] @ x).squeeze(1)
        return MILOutput(self.classifier(bag), attention, bag)
