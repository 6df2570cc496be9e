"""IAAM: positions and scales are injected, all instances attend to all, ten learned queries read the bag.

Paper: MsaMIL-Net, section 3.3. The bag arrives in paper order (`patches.paper_order`).

MHE, the multi-scale hierarchical encoder, for features T (N, D):

- eq. 2: T' = T + FC([x, y, scale]) + E, FC: 3 → D, E the sinusoid of Vaswani et al. over the sorted index;
- eq. 3: Q = T' W_Q, K = T' W_K, each of rank r per head; V = T' W_V;
- eq. 4: A = softmax(Q Kᵀ / √r);
- eq. 5: T''' = MLP(LayerNorm(A V)).

DMQ, the dynamic multi-instance query, with learned Z (10, D):

- eq. 6: Z' = softmax(Z W_Q (T''' W_K)ᵀ / √D) T''' W_V;
- eq. 7: g_i = σ(w_g · Z'_i + b_g);
- eq. 8: F_bag = Σ g_i Z'_i; one Linear layer gives the logits.

What the text leaves open, and what is built: 8 heads with r = 32 each, V split by heads, no output projection
(`heads=1` is the literal formula); x, y as shares of the slide in 0 … 1 and the raw scale code; no residual
connections (`residual=True` adds them around attention and MLP); MLP D → 4D → D with GELU; σ is a sigmoid and the sum
of eq. 8 has no normalisation (`gate` has the alternatives); DMQ has a single head.

Eq. 6 is evaluated as (Z W_Q W_Kᵀ) T'''ᵀ and (A T''') W_V: the same product bracketed so that no N × D × D
multiplication is left. `attention` is Σ g_i A_i / Σ g_i, and MHIM mines by it. Masked bags number their survivors
anew: E is the index among the instances given.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_msamil.config import Spec
from napari_msamil.errors import ConfigError
from napari_msamil.models.attention import (
    accurate,
    attention_received,
    low_rank_attention,
    merge_heads,
    split_heads,
)
from napari_msamil.models.base import Aggregator
from napari_msamil.models.outputs import MILOutput


class IAAMArgs(Spec):
    """Arguments of IAAM.

    Attributes:
        heads, rank: Heads of MHE and the rank of queries and keys in each.
        layers: Passes through attention and MLP (the equations show one).
        mlp_dim: Hidden width of the MLP.
        dropout: In the MLP.
        residual: Whether attention and MLP are residual.
        queries: Learned queries of DMQ.
        gate: `sigmoid` is eq. 7 and 8; `normalised` divides the gates by their sum; `softmax` takes it over the queries.
        dim: Inner width; None is the width of the features.
    """

    heads: int = Field(default=8, ge=1)
    rank: int = Field(default=32, ge=1)
    layers: int = Field(default=1, ge=1)
    mlp_dim: int = Field(default=2048, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    residual: bool = False
    queries: int = Field(default=10, ge=1)
    gate: Literal["sigmoid", "normalised", "softmax"] = "sigmoid"
    dim: int | None = Field(default=None, gt=0)


def sinusoid(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Positions of Vaswani et al.: sin and cos of index / 10000^(2i/dim), interleaved; float32 (length, dim)."""
    index = torch.arange(length, dtype=torch.float32, device=device)[:, None]
    pair = torch.arange(0, dim, 2, dtype=torch.float32, device=device)
    angle = index * torch.exp(pair * (-math.log(10_000.0) / dim))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


class LowRankLayer(nn.Module):
    """Equations 3 to 5: x (B, N, D) → (B, N, D)."""

    def __init__(self, dim: int, args: IAAMArgs) -> None:
        super().__init__()
        self.heads, self.residual = args.heads, args.residual
        self.query = nn.Linear(dim, args.heads * args.rank, bias=False)
        self.key = nn.Linear(dim, args.heads * args.rank, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, args.mlp_dim),
            nn.GELU(),
            nn.Dropout(args.dropout),
            nn.Linear(args.mlp_dim, dim),
            nn.Dropout(args.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """One pass through attention and MLP."""
        q, k, v = (
            split_heads(f(x), self.heads) for f in (self.query, self.key, self.value)
        )
        inter = merge_heads(low_rank_attention(q, k, v))
        if self.residual:
            inter = x + inter
        out: Tensor = self.mlp(self.norm(inter))
        return inter + out if self.residual else out

    def received(self, x: Tensor, block: int = 512) -> Tensor:
        """Attention each instance receives from all others, per head: (B, H, N), rows sum to 1."""
        q, k = (
            split_heads(self.query(x), self.heads),
            split_heads(self.key(x), self.heads),
        )
        return attention_received(q, k, block)


class DMQ(nn.Module):
    """Equations 6 to 8: learned queries, single-head cross-attention, gates."""

    def __init__(self, dim: int, queries: int, gate: str) -> None:
        super().__init__()
        self.gate_kind = gate
        self.queries = nn.Parameter(torch.randn(queries, dim) * dim**-0.5)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encoded bag (B, N, D) → F_bag (B, D), attention (B, Q, N), gates (B, Q)."""
        asked = self.query(self.queries) @ self.key.weight
        logits = accurate(asked @ x.transpose(1, 2)) * x.shape[-1] ** -0.5
        attention = torch.softmax(logits, dim=-1)
        read = self.value(attention.to(x.dtype) @ x)
        raw = accurate(self.gate(read).squeeze(-1))
        gates = raw.softmax(-1) if self.gate_kind == "softmax" else raw.sigmoid()
        if self.gate_kind == "normalised":
            gates = gates / gates.sum(-1, keepdim=True)
        return (gates.to(read.dtype)[..., None] * read).sum(1), attention, gates


class IAAM(Aggregator):
    """Instance-aware attention module."""

    Args = IAAMArgs
    needs_positions = True

    def __init__(
        self, in_dim: int, n_classes: int, args: IAAMArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        args = args or IAAMArgs()
        dim = args.dim or in_dim
        if dim % args.heads:
            raise ConfigError(
                f"IAAM: {args.heads} heads do not divide the width {dim}. Change `heads`."
            )
        self.projection = nn.Identity() if dim == in_dim else nn.Linear(in_dim, dim)
        self.place = nn.Linear(3, dim)
        self.layers = nn.ModuleList(LowRankLayer(dim, args) for _ in range(args.layers))
        self.dmq = DMQ(dim, args.queries, args.gate)
        self.classifier = nn.Linear(dim, n_classes)

    def inject(self, x: Tensor, coords: Tensor, scale: Tensor) -> Tensor:
        """Equation 2: T' for x (B, N, D), coords (B, N, 2) in 0 … 1, scale (B, N)."""
        place = torch.cat([coords.to(x.dtype), scale[..., None].to(x.dtype)], dim=-1)
        injected: Tensor = (
            x
            + self.place(place)
            + sinusoid(x.shape[1], x.shape[2], x.device).to(x.dtype)
        )
        return injected

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        assert coords is not None
        assert scale is not None
        x = self.inject(x, coords, scale)
        for layer in self.layers:
            x = layer(x)
        bag, queries, gates = self.dmq(x)
        share = gates / gates.sum(-1, keepdim=True).clamp_min(
            torch.finfo(gates.dtype).tiny
        )
        attention = (share[..., None] * queries).sum(1)
        return MILOutput(
            self.classifier(bag), attention, bag, query_attention=queries, gates=gates
        )

    @torch.no_grad()
    def received(
        self, features: Tensor, coords: Tensor, scale: Tensor, block: int = 512
    ) -> Tensor:
        """Attention each instance receives in the last MHE layer, per head, in blocks: (B, H, N).

        Args:
            features: (B, N, in_dim), all valid.
            coords: (B, N, 2).
            scale: (B, N).
            block: Queries per block; memory is B · H · block · N floats.
        """
        x = self.inject(self.project(features), coords, scale)
        for layer in self.layers[:-1]:
            x = layer(x)
        last = self.layers[-1]
        assert isinstance(last, LowRankLayer)
        return last.received(x, block)
