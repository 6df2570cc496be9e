"""DAS-MIL: patches pass messages to their neighbours and across scales, and fine scales teach coarse ones.

Paper: Bontempo et al., DAS-MIL: Distilling across scales for MIL classification of histological WSIs, MICCAI 2023.
Graph attention per scale over touching patches, graph attention over parents and children of all scales, a DSMIL
head per scale. With y_s the bag logits of scale s (0 the finest), for each pair of neighbouring scales:
L = CE_fine + (1 − λ) CE_coarse + λ KL(softmax(y_fine / τ) ‖ softmax(y_coarse / τ)) + β MSE(parent's instance logits, largest of its
children's), CE each ½ bag + ½ max instance as in DSMIL; λ = β = 1, τ = 1.5.

What differs: softmax over classes instead of sigmoids; any number of scales instead of two; scatter operations instead
of a graph library; a ReLU behind each graph layer. Parents come from coordinates (`lattice`). The answer is the
finest scale's that the bag has, and `attention` lies on its patches alone.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.config import Spec
from napari_msamil.errors import ConfigError
from napari_msamil.models.attention import accurate
from napari_msamil.models.base import Aggregator
from napari_msamil.models.dsmil import DSMILArgs, DualStream
from napari_msamil.models.graph_attention import GraphAttention
from napari_msamil.models.lattice import lattice
from napari_msamil.models.outputs import MILOutput


class DASMILArgs(Spec):
    """Arguments of DAS-MIL.

    Attributes:
        scales: Scales it is made for (the paper: 2).
        hidden: Width of the graph layers.
        heads: Heads of the graph attention.
        dropout: On its weights.
        query_dim: Width of the queries in the DSMIL heads.
        distill: λ.
        align: β.
        temperature: τ.
        ratio: Sides of a patch in sides of the next finer scale.
    """

    scales: int = Field(default=3, ge=1)
    hidden: int = Field(default=256, ge=1)
    heads: int = Field(default=3, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    query_dim: int = Field(default=128, ge=1)
    distill: float = Field(default=1.0, ge=0, le=1)
    align: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.5, gt=0)
    ratio: int = Field(default=2, ge=2)


def _pair_loss(logits: Tensor, scores: Tensor, label: Tensor) -> Tensor:
    """½ CE(bag) + ½ CE(max instance), as in DSMIL."""
    bag, best = accurate(logits), accurate(scores).amax(1)
    return 0.5 * (F.cross_entropy(bag, label) + F.cross_entropy(best, label))


class DASMIL(Aggregator):
    """Distilling across scales."""

    Args = DASMILArgs
    needs_positions = True
    one_by_one = True
    bag_loss_weight = 0.5

    def __init__(
        self, in_dim: int, n_classes: int, args: DASMILArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.args = args = args or DASMILArgs()
        self.within = nn.ModuleList(
            GraphAttention(in_dim, args.hidden, args.heads, args.dropout)
            for _ in range(args.scales)
        )
        self.across = GraphAttention(args.hidden, args.hidden, args.heads, args.dropout)
        head = DSMILArgs(query_dim=args.query_dim)
        self.streams = nn.ModuleList(
            DualStream(args.hidden, n_classes, head) for _ in range(args.scales)
        )

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        assert coords is not None
        assert scale is not None
        nodes, where = x[0], scale[0]
        found = lattice(coords[0], where, self.args.ratio)
        parents = found.parents()
        h = self._pass_messages(nodes, where, found.neighbours(), parents)
        levels = torch.unique(where).tolist()
        answers = {s: self.streams[s](h[where == s][None]) for s in levels}
        scores = h.new_zeros(1, len(h), self.n_classes)
        for s in levels:
            scores = scores.index_copy(
                1, (where == s).nonzero().squeeze(1), answers[s][0]
            )
        _, logits, branches, bags = answers[levels[0]]
        share = (accurate(logits.detach()).softmax(-1)[..., None] * branches).sum(1)
        chosen = (where == levels[0]).nonzero().squeeze(1)
        attention = share.new_zeros(1, len(h)).index_copy(1, chosen, share)
        losses = (
            None if label is None else self._losses(answers, scores[0], parents, label)
        )
        return MILOutput(
            logits, attention, bags.mean(1), instance_logits=scores, losses=losses
        )

    def _pass_messages(
        self, nodes: Tensor, scale: Tensor, neighbours: Tensor, parents: Tensor
    ) -> Tensor:
        """Both graph layers: (N, in_dim) → (N, hidden)."""
        if int(scale.max()) >= len(self.within):
            raise ConfigError(
                f"DASMIL was made for {len(self.within)} scales, but the bag has scale {int(scale.max())}. "
                "Set `scales`."
            )
        hidden = nodes.new_zeros(len(nodes), self.args.hidden)
        for s, layer in enumerate(self.within):
            mine = (scale == s).nonzero().squeeze(1)
            if len(mine):
                local = torch.full_like(scale, -1).index_copy(
                    0, mine, torch.arange(len(mine), device=mine.device)
                )
                edges = local[neighbours]
                out = layer(nodes[mine], edges[:, (edges >= 0).all(0)])
                hidden = hidden.index_copy(0, mine, F.relu(out).to(hidden.dtype))
        child = (parents >= 0).nonzero().squeeze(1)
        up = torch.stack([child, parents[child]])
        return F.relu(self.across(hidden, torch.cat([up, up.flip(0)], dim=1)))

    def _losses(
        self,
        answers: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]],
        scores: Tensor,
        parents: Tensor,
        label: Tensor,
    ) -> dict[str, Tensor]:
        """All terms but ½ CE of the finest bag logits, weighted."""
        args, levels = self.args, sorted(answers)
        first = answers[levels[0]]
        losses = {
            "max_instance": 0.5 * F.cross_entropy(accurate(first[0]).amax(1), label)
        }
        coarse, distilled = [], []
        for fine, rough in pairwise(levels):
            coarse.append(_pair_loss(answers[rough][1], answers[rough][0], label))
            teacher = (accurate(answers[fine][1].detach()) / args.temperature).softmax(
                -1
            )
            student = (accurate(answers[rough][1]) / args.temperature).log_softmax(-1)
            distilled.append(F.kl_div(student, teacher, reduction="batchmean"))
        if coarse:
            losses["coarse"] = (1 - args.distill) * torch.stack(coarse).sum()
            losses["distill"] = args.distill * torch.stack(distilled).sum()
        child = (parents >= 0).nonzero().squeeze(1)
        if len(child) and args.align:
            losses["align"] = args.align * self._align(
                accurate(scores), child, parents[child]
            )
        return losses

    def _align(self, scores: Tensor, child: Tensor, parent: Tensor) -> Tensor:
        """Mean squared difference of a parent's instance logits and the largest of its children's."""
        index = parent[:, None].expand(-1, scores.shape[1])
        best = torch.full_like(scores, float("-inf")).scatter_reduce(
            0, index, scores[child], "amax"
        )
        has = torch.unique(parent)
        return F.mse_loss(scores[has], best[has])
