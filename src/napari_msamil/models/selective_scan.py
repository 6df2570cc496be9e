"""The selective scan of Mamba, exact, in plain PyTorch: h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t, y_t = C_t · h_t + D x_t.

Paper: Gu, Dao, Mamba, 2023, eq. 2 and algorithm 2. A step-by-step loop over T tokens is slow in Python, and closed forms
that divide by products of decays overflow. Here the sequence is cut into chunks that run side by side: a loop over the
steps *inside* a chunk (all chunks at once, each from an empty state), then a loop over chunks that carries the state
across: about 2 √T steps instead of T, and only products of decays in 0 … 1.

Memory: the states (T · E · S floats) never exist for the whole sequence; it is walked in segments, and in training
each segment is computed again for its gradient.

Legend: B bags, T tokens, E channels, S states per channel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SEGMENT = 1024
"""Tokens whose states are in memory at once."""


def scan_reference(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> Tensor:
    """The recurrence as written, token by token; tests compare with it. Shapes as in `selective_scan`."""
    state = x.new_zeros(x.shape[0], x.shape[2], a.shape[1])
    out = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * a)
        state = decay * state + (delta[:, t] * x[:, t])[..., None] * b[:, t, None]
        out.append((state * c[:, t, None]).sum(-1) + d * x[:, t])
    return torch.stack(out, dim=1)


def selective_scan(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> Tensor:
    """Scan a sequence.

    Args:
        x: (B, T, E).
        delta: Step sizes, positive (B, T, E).
        a: Decay rates, negative (E, S).
        b: (B, T, S).
        c: (B, T, S).
        d: (E,).

    Returns:
        (B, T, E).
    """
    state = x.new_zeros(x.shape[0], x.shape[2], a.shape[1])
    parts = []
    for start in range(0, x.shape[1], SEGMENT):
        cut = slice(start, start + SEGMENT)
        pieces = (x[:, cut], delta[:, cut], a, b[:, cut], c[:, cut], state)
        if torch.is_grad_enabled() and x.shape[1] > SEGMENT:
            y, state = checkpoint(_scan_segment, *pieces, use_reentrant=False)
        else:
            y, state = _scan_segment(*pieces)
        parts.append(y)
    return torch.cat(parts, dim=1) + d * x


def _scan_segment(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One segment from a given state: y (B, T, E) and the state behind it (B, E, S)."""
    length = x.shape[1]
    steps = math.isqrt(max(length - 1, 0)) + 1
    chunks = -(-length // steps)
    fill = chunks * steps - length
    # A step of size 0 has decay 1 and adds nothing: filling at the end changes no state.
    x, delta, b, c = (
        F.pad(t, (0, 0, 0, fill)).reshape(len(t), chunks, steps, -1)
        for t in (x, delta, b, c)
    )
    local = x.new_zeros(x.shape[0], chunks, x.shape[3], a.shape[1])
    kept = torch.ones_like(local)
    outputs, kepts = [], []
    for t in range(steps):
        decay = torch.exp(delta[:, :, t, :, None] * a)
        local = (
            decay * local + (delta[:, :, t] * x[:, :, t])[..., None] * b[:, :, t, None]
        )
        kept = kept * decay
        outputs.append((local * c[:, :, t, None]).sum(-1))
        kepts.append(kept)
    starts = []
    for chunk in range(chunks):
        starts.append(state)
        state = kept[:, chunk] * state + local[:, chunk]
    start = torch.stack(starts, dim=1)
    carried = [(k * start * c[:, :, t, None]).sum(-1) for t, k in enumerate(kepts)]
    y = torch.stack(
        [own + more for own, more in zip(outputs, carried, strict=True)], dim=2
    )
    return y.flatten(1, 2)[:, :length], state
