"""Which instances a student does not see: pure selection from the teacher's attention.

Masked Hard Instance Mining (MHIM-MIL supplementary, sections 2.1 and 2.3, Algorithm 1) masks easy
instances so that the student learns from the hard ones. Three sets are drawn, each a share of the full
bag, and **united**: the `&` of the pseudocode reads as "together", for an intersection would mask almost
nothing; the authors' printed counts agree with the union. Survivors stay in their original order.

Everything here works on `(heads, instances)` attention without asking the device for a value, but for the
survivors' indices and `averaging`: sizes come from the host-side `n`, ties are broken by mean attention and
then by index, so the same attention and the same random state give the same mask on every machine (a CUDA
device draws other random numbers than a CPU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_EPSILON = 1e-9  # 0.07 * 100 is 7.000000000000001 in binary; its ceiling must be 7


class Fusion(StrEnum):
    """How the heads of an attention agree on a ranking (supplementary section 2.3)."""

    VOTING = "voting"
    AVERAGING = "averaging"


@dataclass(frozen=True)
class MaskRatios:
    """Shares of the full bag to mask.

    Attributes:
        high: Share with the highest attention, β_h (decays during training).
        low: Share with the lowest attention, β_l.
        random: Share drawn uniformly, β_r.
        high_randomness: Share of the high candidates that is masked; 0.5 is the paper's "2·β_h candidates,
            half of them masked" (randomly-high masking), 1 masks all candidates.
    """

    high: float = 0.0
    low: float = 0.0
    random: float = 0.0
    high_randomness: float = 1.0


def share_count(n: int, share: float) -> int:
    """Number of instances that a share of `n` means: the ceiling, between 0 and `n`."""
    return min(max(math.ceil(n * share - _EPSILON), 0), n)


def high_counts(n: int, ratios: MaskRatios) -> tuple[int, int]:
    """How many instances are high candidates, and how many of those are masked.

    Where β_h / randomness exceeds 1, every instance is a candidate and a share β_h is masked.
    """
    if ratios.high <= 0:
        return 0, 0
    wanted = ratios.high / ratios.high_randomness
    if wanted > 1:
        return n, share_count(n, ratios.high)
    candidates = share_count(n, wanted)
    return candidates, share_count(candidates, ratios.high_randomness)


def rank_instances(
    attention: Tensor, count: int, *, largest: bool, fusion: Fusion = Fusion.VOTING
) -> Tensor:
    """Indices of the `count` instances the heads put first.

    `voting`: each head marks its `count` first instances, the most-marked win; `averaging`: each head gives
    its `count // heads` first instances and their union is taken, which may be fewer than `count`.

    Args:
        attention: (H, N), any real scores.
        count: How many to pick.
        largest: Whether high scores come first.
        fusion: How heads are combined.

    Returns:
        int64 (≤ count,), best first for voting, ascending for averaging.
    """
    heads = attention.shape[0]
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=attention.device)
    scores = attention if largest else -attention
    if heads == 1:
        return _first(scores[0], count)
    if fusion is Fusion.AVERAGING:
        return _union_of_heads(scores, count // heads)
    marked = _mark_first(scores, count)
    by_mean = _descending(scores.mean(dim=0))
    votes = marked.sum(dim=0)[by_mean]
    return by_mean[_descending(votes)[:count]]


def _descending(values: Tensor) -> Tensor:
    """Order from large to small; equal values keep their order."""
    return torch.sort(values, dim=-1, descending=True, stable=True).indices


def _first(scores: Tensor, count: int) -> Tensor:
    return _descending(scores)[:count]


def _mark_first(scores: Tensor, count: int) -> Tensor:
    """int32 (H, N), 1 where an instance is among the first `count` of a head."""
    first = _descending(scores)[:, :count]
    marked = torch.zeros(scores.shape, dtype=torch.int32, device=scores.device)
    return marked.scatter_(1, first, 1)


def _union_of_heads(scores: Tensor, per_head: int) -> Tensor:
    marked = _mark_first(scores, per_head).any(dim=0)
    return marked.nonzero().squeeze(1)


def select_masked(
    attention: Tensor,
    ratios: MaskRatios,
    generator: torch.Generator,
    *,
    fusion: Fusion = Fusion.VOTING,
    groups: Sequence[Tensor] = (),
) -> Tensor:
    """Choose the instances to mask.

    Args:
        attention: (H, N) or (N,), the teacher's mining attention of one bag.
        ratios: Shares of the bag.
        generator: Source of randomness, on the device of `attention`.
        fusion: How heads are combined.
        groups: Index tensors that part the bag, for example one per scale: each is masked by its own shares,
            so that no scale disappears. Empty: the bag is one group.

    Returns:
        bool (N,), True where masked. At least one instance (per group) survives: if the union covers all, the
        instance of highest mean attention outside the high set is spared.
    """
    if attention.dim() == 1:
        attention = attention[None]
    attention = attention.detach().float()
    if not groups:
        return _select(attention, ratios, generator, fusion)
    masked = torch.zeros(attention.shape[1], dtype=torch.bool, device=attention.device)
    for members in groups:
        masked[members] = _select(attention[:, members], ratios, generator, fusion)
    return masked


def _select(
    attention: Tensor, ratios: MaskRatios, generator: torch.Generator, fusion: Fusion
) -> Tensor:
    n = attention.shape[1]
    device = attention.device
    masked = torch.zeros(n, dtype=torch.bool, device=device)
    if n == 0:
        return masked
    drawn = torch.randperm(n, generator=generator, device=device)
    masked[drawn[: share_count(n, ratios.random)]] = True
    low = share_count(n, ratios.low)
    masked[rank_instances(attention, low, largest=False, fusion=fusion)] = True
    high = _high_set(attention, ratios, generator, fusion)
    masked[high] = True
    return _spare_one(masked, high, attention)


def _high_set(
    attention: Tensor, ratios: MaskRatios, generator: torch.Generator, fusion: Fusion
) -> Tensor:
    """The high instances that are masked: all candidates, or a uniform part of them."""
    count, masked = high_counts(attention.shape[1], ratios)
    candidates = rank_instances(attention, count, largest=True, fusion=fusion)
    if masked >= count:
        return candidates
    # averaging may return fewer candidates than asked; the share stays the same
    masked = share_count(len(candidates), masked / count)
    order = torch.randperm(
        len(candidates), generator=generator, device=attention.device
    )
    return candidates[order[:masked]]


def _spare_one(masked: Tensor, high: Tensor, attention: Tensor) -> Tensor:
    score = attention.mean(dim=0).clone()
    score[high] = -torch.inf
    spared = score.argmax()
    masked[spared] &= ~masked.all()
    return masked


def survivors(masked: Tensor) -> Tensor:
    """Indices of the instances that are kept, ascending: int64 (K,)."""
    return (~masked).nonzero().squeeze(1)
