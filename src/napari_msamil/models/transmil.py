"""TransMIL: a class token reads the bag through two Nyström layers, with convolutions on a square of instances between.

Paper: Shao et al., TransMIL, NeurIPS 2021, sections 3.3 and 3.4. Written from the paper's equations.
H = ReLU(W x), squared by repeating the head of the sequence, class token in front; H ← H + Nyström(LN(H)); PPEG: depthwise
convolutions 7, 5, 3 on the √N × √N square plus identity; H ← H + Nyström(LN(H)); one Linear layer on LN(class token).

What differs: the start of the iterated inverse (see `nystrom`). `square="ppeg"` is the MHIM-MIL variant: the
first layer sees the plain sequence and only PPEG squares it, to at least 7 × 7, and drops the fill afterwards.
`mining_attention` is the class token's row of layer 1 (or the last layer) per head, which may be negative; `attention` is its
mean over heads, negative values set to 0, normalised. A repeated instance gets the sum of its copies.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.config import Spec
from napari_msamil.errors import ConfigError
from napari_msamil.models.abmil import projection
from napari_msamil.models.base import Aggregator, normalise_positive
from napari_msamil.models.nystrom import NystromAttention
from napari_msamil.models.outputs import MILOutput


class TransMILArgs(Spec):
    """Arguments of TransMIL.

    Attributes:
        hidden: Width of everything.
        heads: Attention heads.
        landmarks: Nyström landmarks; None is half of `hidden`, as published (256).
        landmark_kind: `padded` as published, or `segments` without padding.
        iterations: Steps of the inverse.
        dropout: Behind each attention.
        projection_dropout: Behind the projection (MHIM: 0.25).
        square: `repeat` as published, `ppeg` as in MHIM-MIL.
        mining_layer: Layer whose class-token row is the attention: 0 the first, 1 the last.
    """

    hidden: int = Field(default=512, ge=2)
    heads: int = Field(default=8, ge=1)
    landmarks: int | None = Field(default=None, ge=1)
    landmark_kind: Literal["padded", "segments"] = "padded"
    iterations: int = Field(default=6, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    projection_dropout: float = Field(default=0.0, ge=0, lt=1)
    square: Literal["repeat", "ppeg"] = "repeat"
    mining_layer: Literal[0, 1] = 0


_KERNELS = (7, 5, 3)
_SMALLEST_SIDE = 7
"""MHIM's square is at least as large as the widest convolution."""


def fill_to_square(x: Tensor, side: int) -> Tensor:
    """Repeat the head of the sequence until it has side² tokens; what is still missing is zeros; x (B, N, D)."""
    missing = side * side - x.shape[1]
    repeated = x[:, : min(missing, x.shape[1])]
    zeros = x.new_zeros(len(x), missing - repeated.shape[1], x.shape[2])
    return torch.cat([x, repeated, zeros], dim=1)


class PPEG(nn.Module):
    """Pyramid position encoding: x (B, side², D) → the same plus three depthwise convolutions on the square.

    The three are linear in x, so their kernels are added up and run as one.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim)
            for size in _KERNELS
        )

    def forward(self, x: Tensor, side: int) -> Tensor:
        """Encode positions."""
        square = x.transpose(1, 2).reshape(len(x), -1, side, side)
        widest = max(_KERNELS) // 2
        convs = [conv for conv in self.convs if isinstance(conv, nn.Conv2d)]
        weights = [
            F.pad(conv.weight, [widest - size // 2] * 4)
            for conv, size in zip(convs, _KERNELS, strict=True)
        ]
        biases = [conv.bias for conv in convs if conv.bias is not None]
        # added one by one: the backward of a stacked sum hands all three the same memory, and accumulated gradients
        # would be counted three times
        around = F.conv2d(
            square,
            weights[0] + weights[1] + weights[2],
            biases[0] + biases[1] + biases[2],
            padding=widest,
            groups=x.shape[2],
        )
        return (square + around).flatten(2).transpose(1, 2)


class NystromLayer(nn.Module):
    """x + Nyström(LN(x))."""

    def __init__(self, args: TransMILArgs) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(args.hidden)
        self.attention = NystromAttention(
            args.hidden,
            args.heads,
            args.landmarks or args.hidden // 2,
            args.iterations,
            args.dropout,
            kind=args.landmark_kind,
        )

    def forward(self, x: Tensor, *, with_row: bool) -> tuple[Tensor, Tensor | None]:
        """One layer; the class token's row per head where asked for."""
        out, row = self.attention(self.norm(x), with_row=with_row)
        return x + out, row


class TransMIL(Aggregator):
    """Transformer-based correlated MIL."""

    Args = TransMILArgs

    def __init__(
        self, in_dim: int, n_classes: int, args: TransMILArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.args = args = args or TransMILArgs()
        if args.hidden % args.heads:
            raise ConfigError(
                f"TransMIL: {args.heads} heads do not divide the width {args.hidden}. Change `heads`."
            )
        self.projection = projection(in_dim, args.hidden, args.projection_dropout)
        self.class_token = nn.Parameter(torch.randn(1, 1, args.hidden) * 1e-6)
        self.layer1, self.layer2 = NystromLayer(args), NystromLayer(args)
        self.ppeg = PPEG(args.hidden)
        self.norm = nn.LayerNorm(args.hidden)
        self.classifier = nn.Linear(args.hidden, n_classes)

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        n = x.shape[1]
        side = math.isqrt(n - 1) + 1
        late = self.args.square == "ppeg"
        side = max(side, _SMALLEST_SIDE) if late else side
        tokens = x if late else fill_to_square(x, side)
        start = self.class_token.to(x.dtype).expand(len(x), -1, -1)
        h, first = self.layer1(
            torch.cat([start, tokens], 1), with_row=self.args.mining_layer == 0
        )
        squared = fill_to_square(h[:, 1:], side) if late else h[:, 1:]
        placed = self.ppeg(squared, side)[:, : tokens.shape[1]]
        h, last = self.layer2(
            torch.cat([h[:, :1], placed], 1), with_row=self.args.mining_layer == 1
        )
        bag = self.norm(h)[:, 0]
        row = first if first is not None else last
        mining = _fold_copies(row[..., 1:], n)
        attention = normalise_positive(mining.mean(1))
        return MILOutput(self.classifier(bag), attention, bag, mining_attention=mining)


def _fold_copies(row: Tensor, n: int) -> Tensor:
    """Add the values of repeated instances to the instance itself: (B, H, T) → (B, H, n)."""
    index = torch.arange(row.shape[-1], device=row.device) % n
    return row.new_zeros(*row.shape[:-1], n).index_add(-1, index, row)
