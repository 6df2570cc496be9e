"""Nyström attention: softmax attention through m landmarks, O(N · m).

Paper: Xiong et al., Nyströmformer, AAAI 2021: with landmark means Q̃, K̃ (m of them) of consecutive tokens,
softmax(Q Kᵀ) V ≈ softmax(Q K̃ᵀ) · pinv(softmax(Q̃ K̃ᵀ)) · softmax(Q̃ Kᵀ) V, plus a depthwise convolution of V.
pinv by six steps of Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z))) from Z₀ = Aᵀ / (‖A‖₁ ‖A‖_∞).

What differs:

- Z₀ uses the norms of *each* matrix. The widespread code takes the largest norm over batch and heads, so an answer there
  depends on which other bags share the batch.
- The two outer softmax products are ordinary attentions (keys K̃, values pinv(…)…; queries Q̃), so fused kernels run them.
- pinv always runs in float32.
- `landmarks="padded"` (the published way) puts zeros in front until m divides the length; these zeros then take part in the landmarks
  and in the softmax over keys. `landmarks="segments"` averages m nearly equal segments of the real tokens instead.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.models.attention import accurate, merge_heads, split_heads


def iterative_pinv(a: Tensor, iterations: int = 6) -> Tensor:
    """Moore–Penrose inverse of row-stochastic matrices by iteration, each started from its own norms; a (…, m, m)."""
    shape = a.shape
    columns = a.abs().sum(-2).amax(-1)[..., None, None]
    rows = a.abs().sum(-1).amax(-1)[..., None, None]
    z = a.transpose(-1, -2) / (columns * rows)
    z, a = (t.reshape(-1, *a.shape[-2:]) for t in (z, a))
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    seven = 7 * eye
    for _ in range(iterations):
        az = a @ z
        inner = torch.baddbmm(eye, az, seven - az, beta=15, alpha=-1)
        inner = torch.baddbmm(eye, az, inner, beta=13, alpha=-1)
        z = 0.25 * z @ inner
    return z.reshape(shape)


class NystromAttention(nn.Module):
    """Multi-head Nyström attention over a sequence whose token 0 is the class token.

    Attributes:
        landmarks: Number of landmarks m.
        kind: `padded` or `segments`, see the module.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        dropout: float = 0.1,
        kernel: int = 33,
        kind: Literal["padded", "segments"] = "padded",
    ) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations, self.kind = (
            heads,
            landmarks,
            iterations,
            kind,
        )
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.value_conv = nn.Conv2d(
            heads,
            heads,
            (kernel, 1),
            padding=(kernel // 2, 0),
            groups=heads,
            bias=False,
        )

    def forward(
        self, x: Tensor, *, with_row: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: (B, T, dim).
            with_row: Whether the class token's row of the approximated attention is wanted.

        Returns:
            (B, T, dim), and the row per head (B, H, T) without gradient: entries may be negative and need not sum to 1.
        """
        length = x.shape[1]
        if self.kind == "padded":
            x = F.pad(x, (0, 0, -length % self.landmarks, 0))
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        q = q * q.shape[-1] ** -0.5
        q_marks, k_marks = self._means(q), self._means(k)
        with torch.autocast(x.device.type, enabled=False):
            kernel = torch.softmax(
                accurate(q_marks) @ accurate(k_marks).transpose(-1, -2), dim=-1
            )
            inverse = iterative_pinv(kernel, self.iterations)
        gathered = F.scaled_dot_product_attention(q_marks, k, v, scale=1.0)
        start = x.shape[1] - length
        row = None
        if with_row:
            first = q[..., start, None, :]
            row = _first_row(first, q_marks, k, k_marks, inverse)[..., start:]
        values = inverse.to(v.dtype) @ gathered
        attended = F.scaled_dot_product_attention(q, k_marks, values, scale=1.0)
        out = self.out(merge_heads(attended + self.value_conv(v)))
        return out[:, -length:], row

    def _means(self, tokens: Tensor) -> Tensor:
        """Landmarks: means of consecutive tokens, (B, H, T, w) → (B, H, m, w)."""
        batch, heads, length, width = tokens.shape
        if self.kind == "padded":
            return tokens.reshape(batch, heads, self.landmarks, -1, width).mean(3)
        marks = min(self.landmarks, length)
        flat = tokens.reshape(batch * heads, length, width).transpose(1, 2)
        return (
            F.adaptive_avg_pool1d(flat, marks)
            .transpose(1, 2)
            .reshape(batch, heads, marks, width)
        )


@torch.no_grad()
def _first_row(
    first: Tensor, q_marks: Tensor, k: Tensor, k_marks: Tensor, inverse: Tensor
) -> Tensor:
    """Row of the approximated attention for one query (B, H, 1, w): (B, H, T).

    Nobody trains through it, so the m × T matrix it needs is made apart from the fused kernel and kept by no graph.
    """
    to_marks = torch.softmax(accurate(first @ k_marks.transpose(-1, -2)), dim=-1)
    from_marks = torch.softmax(accurate(q_marks @ k.transpose(-1, -2)), dim=-1)
    return (to_marks @ inverse @ from_marks).squeeze(-2)
