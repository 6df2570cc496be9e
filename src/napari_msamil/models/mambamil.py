"""MambaMIL: selective state spaces read the bag as a sequence, once as it comes and once reordered.

Paper: Yang, Wang, Chen, MambaMIL: sequence reordering Mamba, MICCAI 2024. Written from the paper's equations and those of Mamba.
H = ReLU(W x); twice H ← H + SRMamba(LN(H)); a = softmax_n(wᵀ tanh(V LN(H))); z = Σ a LN(H); one Linear layer.
SRMamba: (x, z) = W_in h; for each of two branches u = SiLU(conv(x)), Δ = softplus(W_Δ W_x u), y = scan(u, Δ, A, B, C, D) ⊙ SiLU(z); the
second branch has its own weights and sees the sequence reordered (every `rate`-th token, then the next ones), and its
output is put back in order; out = W_out(y₁ + y₂).

What differs: the scan is exact plain PyTorch (`selective_scan`) instead of a CUDA kernel, in float32 at any precision. The order
of the bag matters by design.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.config import Spec
from napari_msamil.models.abmil import InstanceScores, projection
from napari_msamil.models.attention import accurate
from napari_msamil.models.base import Aggregator, OwnStart
from napari_msamil.models.outputs import MILOutput
from napari_msamil.models.selective_scan import selective_scan


class MambaMILArgs(Spec):
    """Arguments of MambaMIL.

    Attributes:
        hidden: Width of the projection.
        layers: SRMamba layers.
        state: States per channel.
        conv: Width of the causal convolution.
        expand: Channels inside, in multiples of `hidden`.
        rate: Stride of the reordering.
        attention_dim: Hidden width of the attention.
        dropout: Behind the projection.
    """

    hidden: int = Field(default=512, ge=1)
    layers: int = Field(default=2, ge=1)
    state: int = Field(default=16, ge=1)
    conv: int = Field(default=4, ge=1)
    expand: int = Field(default=2, ge=1)
    rate: int = Field(default=10, ge=1)
    attention_dim: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.25, ge=0, lt=1)


def reorder(x: Tensor, rate: int) -> Tensor:
    """Every `rate`-th token, then those one later, …; zeros fill the end: (B, T, E) → (B, T', E)."""
    x = F.pad(x, (0, 0, 0, -x.shape[1] % rate))
    return x.reshape(len(x), -1, rate, x.shape[2]).transpose(1, 2).flatten(1, 2)


def restore(x: Tensor, rate: int, length: int) -> Tensor:
    """The inverse of `reorder`."""
    return (
        x.reshape(len(x), rate, -1, x.shape[2])
        .transpose(1, 2)
        .flatten(1, 2)[:, :length]
    )


class ScanBranch(nn.Module):
    """Causal convolution, selective scan and gate: x, z (B, T, E) → (B, T, E)."""

    def __init__(self, channels: int, args: MambaMILArgs) -> None:
        super().__init__()
        self.rank, self.state = math.ceil(args.hidden / 16), args.state
        self.conv = nn.Conv1d(
            channels, channels, args.conv, groups=channels, padding=args.conv - 1
        )
        self.select = nn.Linear(channels, self.rank + 2 * args.state, bias=False)
        self.step = OwnStart(self.rank, channels)
        # Mamba's start: decay rates 1 … S for every channel, step sizes log-uniform in 0.001 … 0.1.
        rates = torch.arange(1, args.state + 1, dtype=torch.float32).repeat(channels, 1)
        self.log_rate = nn.Parameter(rates.log())
        self.skip = nn.Parameter(torch.ones(channels))
        sizes = torch.exp(torch.rand(channels) * math.log(100) + math.log(1e-3))
        with torch.no_grad():
            self.step.bias.copy_(sizes + torch.log(-torch.expm1(-sizes)))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Scan one order of the sequence."""
        u = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        small, b, c = self.select(u).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(self.step(small))
        with torch.autocast(x.device.type, enabled=False):
            rates = -torch.exp(accurate(self.log_rate))
            b, c, skip = accurate(b), accurate(c), accurate(self.skip)
            y = selective_scan(accurate(u), accurate(delta), rates, b, c, skip)
        return y.to(z.dtype) * F.silu(z)


class SRMamba(nn.Module):
    """Sequence reordering Mamba: (B, T, D) → (B, T, D)."""

    def __init__(self, args: MambaMILArgs) -> None:
        super().__init__()
        channels = args.hidden * args.expand
        self.rate = args.rate
        self.inner = nn.Linear(args.hidden, 2 * channels, bias=False)
        self.plain, self.reordered = (
            ScanBranch(channels, args),
            ScanBranch(channels, args),
        )
        self.out = nn.Linear(channels, args.hidden, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Both orders, added before the output projection."""
        both = self.inner(h)
        mixed = reorder(both, self.rate)
        y = self.plain(*both.chunk(2, dim=-1))
        other = self.reordered(*mixed.chunk(2, dim=-1))
        out: Tensor = self.out(y + restore(other, self.rate, h.shape[1]))
        return out


class MambaMIL(Aggregator):
    """MIL with sequence reordering Mamba."""

    Args = MambaMILArgs

    def __init__(
        self, in_dim: int, n_classes: int, args: MambaMILArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        args = args or MambaMILArgs()
        self.projection = projection(in_dim, args.hidden, args.dropout)
        self.norms = nn.ModuleList(
            nn.LayerNorm(args.hidden) for _ in range(args.layers)
        )
        self.layers = nn.ModuleList(SRMamba(args) for _ in range(args.layers))
        self.norm = nn.LayerNorm(args.hidden)
        self.scores = InstanceScores(args.hidden, args.attention_dim, gated=False)
        self.classifier = nn.Linear(args.hidden, n_classes)

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        x = self.norm(x)
        attention = accurate(self.scores(x).squeeze(-1)).softmax(-1)
        bag = (attention.to(x.dtype)[:, None] @ x).squeeze(1)
        return MILOutput(self.classifier(bag), attention, bag)
