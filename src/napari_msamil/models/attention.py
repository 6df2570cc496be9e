"""Exact low-rank attention in O(N) memory, and its values in blocks.

`A = softmax(Q Kᵀ / √r)`, `A V` with r (width of queries and keys per head) smaller than d (width of values
per head): MsaMIL-Net equations 3 to 5. Fused kernels want equal widths, and where they do not get them
`scaled_dot_product_attention` falls back *silently* to the N × N path. Zeros appended to q and k add nothing
to Q Kᵀ, so padding them to d and passing `scale = r ** -0.5` is exact and stays fused.

A fused kernel does not return A. Its column means (how much each instance is looked at) are recomputed here
from blocks of queries, so that no N × N matrix ever exists.

Legend: B bags, H heads, N instances, r rank, d value width per head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_FLASH_CUDA_MAX = 256
"""Widest head the flash kernels of CUDA take; above it the memory-efficient kernel takes unequal widths."""


def accurate(x: Tensor) -> Tensor:
    """For softmaxes and losses: half formats become float32, float64 stays what it is."""
    return x if x.dtype == torch.float64 else x.float()


def doubled(x: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none (Apple's mps)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def low_rank_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √r) v without an N × N matrix.

    Args:
        q: (B, H, Nq, r).
        k: (B, H, N, r).
        v: (B, H, N, d).

    Returns:
        (B, H, Nq, d).
    """
    rank, width = q.shape[-1], v.shape[-1]
    common = max(rank, width)
    if not (q.is_cuda and common > _FLASH_CUDA_MAX):
        q, k, v = (F.pad(t, (0, common - t.shape[-1])) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=rank**-0.5)[..., :width]


def reference_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The written formula with its N × N matrix; tests and benchmarks compare with it."""
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return weights @ v


def attention_received(q: Tensor, k: Tensor, block: int = 512) -> Tensor:
    """Column means of softmax(q kᵀ / √r): the share of attention each instance receives.

    Args:
        q: (B, H, Nq, r).
        k: (B, H, N, r).
        block: Queries per block; memory is B · H · block · N floats.

    Returns:
        (B, H, N), float32 or wider; each row sums to 1.
    """
    received = accurate(k.new_zeros(k.shape[:-1]))
    keys = accurate(k).transpose(-1, -2)
    for start in range(0, q.shape[-2], block):
        part = accurate(q[..., start : start + block, :])
        received += torch.softmax(part @ keys * q.shape[-1] ** -0.5, dim=-1).sum(-2)
    return received / q.shape[-2]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, heads · w) → (B, heads, N, w)."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, w) → (B, N, heads · w)."""
    return x.transpose(1, 2).flatten(2)
