"""Several trainings of one model as one: the members of a cross-validation answer together.

Members share an encoder, or each has its own; then a feature is the members' features side by side, and everything
between encoder and aggregator (feature store, bags, asking again after the mask was edited) needs to know nothing of it.
The answer is the mean of the members' probabilities, each after the temperature (Lakshminarayanan et al. 2017, eq. 1 ff.).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.models.base import Aggregator
from napari_msamil.models.outputs import MILOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class EncoderEnsemble(nn.Module):
    """The members' encoders side by side.

    Args:
        members: K encoders of width D.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) with values 0 … 255 → features (B, K · D), member after member."""
        return torch.cat([member(pixels) for member in self.members], dim=1)


class AggregatorEnsemble(Aggregator):
    """The members' aggregators and the mean of their answers.

    Args:
        members: K aggregators of one method and size.
        temperature: Divides the members' logits before the softmax, as it does for a single model.
        own_features: Whether each member has its own part of the features, or all take the same.
    """

    def __init__(
        self, members: Sequence[Aggregator], temperature: float, *, own_features: bool
    ) -> None:
        first = members[0]
        parts = len(members) if own_features else 1
        super().__init__(first.in_dim * parts, first.n_classes)
        self.members = nn.ModuleList(members)
        self.temperature = temperature
        self.parts = parts
        self.needs_positions = first.needs_positions
        self.one_by_one = first.one_by_one

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        shares = x.chunk(self.parts, dim=2)
        outputs = [
            member(shares[k % self.parts], coords, scale, None, label)
            for k, member in enumerate(self.members)
        ]
        return mean_output(outputs, self.temperature)


def mean_output(outputs: Sequence[MILOutput], temperature: float) -> MILOutput:
    """One output for several: a single one comes back as it is, with its logits as those of the only member.

    Learned queries of different trainings have nothing to do with each other, so an ensemble has none.
    """
    stacked = torch.stack([o.logits for o in outputs], dim=1)
    if len(outputs) == 1:
        outputs[0].member_logits = stacked
        return outputs[0]
    return MILOutput(
        logits=mean_logits(stacked, temperature),
        attention=torch.stack([o.attention for o in outputs]).mean(0),
        embedding=torch.cat([o.embedding for o in outputs], dim=1),
        mining_attention=_where_all([o.mining_attention for o in outputs], _join_heads),
        instance_logits=_where_all([o.instance_logits for o in outputs], _mean),
        member_logits=stacked,
    )


def mean_logits(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B, C) whose softmax at the temperature is the mean of the members' at it: logits (B, K, C)."""
    log_shares = F.log_softmax(logits / temperature, dim=-1)
    # the members' mean without its constant 1 / K, which no softmax sees
    return temperature * torch.logsumexp(log_shares, dim=1)


def _where_all(
    found: Sequence[Tensor | None], join: Callable[[list[Tensor]], Tensor]
) -> Tensor | None:
    there = [t for t in found if t is not None]
    return join(there) if len(there) == len(found) else None


def _join_heads(found: list[Tensor]) -> Tensor:
    return torch.cat(found, dim=1)


def _mean(found: list[Tensor]) -> Tensor:
    return torch.stack(found).mean(0)
