"""What every aggregator returns: always this one type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class MILOutput:
    """Answer of an aggregator for a batch of bags.

    Attributes:
        logits: (B, C), before the softmax over classes.
        attention: (B, N), at least 0, sums to 1 over the valid instances of each bag, 0 elsewhere.
        embedding: (B, D), one vector per bag: the input of the classifier.
        query_attention: (B, Q, N) per learned query (DMQ), each row sums to 1; None for other methods.
        gates: (B, Q) gate per query; None for other methods.
        mining_attention: (B, H, N) what MHIM ranks instances by, per head; None where it is `attention` itself.
        instance_logits: (B, N, C) where the method scores instances; None otherwise.
        member_logits: (B, K, C) of the members of an ensemble; None for a single model.
        losses: Further training losses of the method by name (for example CLAM's instance loss).
    """

    logits: Tensor
    attention: Tensor
    embedding: Tensor
    query_attention: Tensor | None = None
    gates: Tensor | None = None
    mining_attention: Tensor | None = None
    instance_logits: Tensor | None = None
    member_logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None
