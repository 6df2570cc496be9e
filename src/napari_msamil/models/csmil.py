"""CS-MIL: patches of one place at all scales are weighed against each other, then groups of alike places.

Paper: Deng et al., Cross-scale multi-instance learning for pathological image diagnosis, Medical Image Analysis 2024 (MICCAI
workshop 2022). x = ReLU(W f) per scale with shared weights; s = MLP(x); place = Σ_scales s x, without a softmax over scales, as
released; places are averaged within k-means clusters; a = softmax over clusters of wᵀ tanh(V c); bag = Σ a c; two linear layers.

What differs:

- The paper crops triplets around one centre. Here a place is a patch that contains no finer patch, with all coarser patches
  that contain it, found from coordinates (`lattice`). A scale that a place lacks has no share in its sum.
- Clusters are those of this bag's own features (finest scale at hand of each place), by k-means without chance.
- Cross-entropy over classes; the released code has one sigmoid output and survival-style losses (137,475 parameters for
  2048 values with one output; each further class adds 33).

`attention` of a patch is the sum over its places of cluster attention / cluster size × share of its scale (negative scale
weights count as 0 there).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_msamil.config import Spec
from napari_msamil.models.attention import accurate
from napari_msamil.models.base import Aggregator, normalise_positive
from napari_msamil.models.kmeans import kmeans
from napari_msamil.models.lattice import lattice
from napari_msamil.models.outputs import MILOutput


class CSMILArgs(Spec):
    """Arguments of CS-MIL.

    Attributes:
        hidden: Width of the shared projection.
        attention_dim: Hidden width of scale attention, cluster attention and classifier.
        clusters: Groups of alike places.
        ratio: Sides of a patch in sides of the next finer scale.
        scale_softmax: Whether scale weights go through a softmax (the paper's text) or not (the released code).
    """

    hidden: int = Field(default=64, ge=1)
    attention_dim: int = Field(default=32, ge=1)
    clusters: int = Field(default=8, ge=1)
    ratio: int = Field(default=2, ge=2)
    scale_softmax: bool = False


def places(coords: Tensor, scale: Tensor, ratio: int) -> Tensor:
    """Aligned patches of one bag: index of the patch of each scale, −1 where there is none.

    Args:
        coords: (N, 2), shares of the slide.
        scale: int64 (N,).
        ratio: Sides of a patch in sides of the next finer scale.

    Returns:
        int64 (P, S): one row per patch that contains no finer one.
    """
    found = lattice(coords, scale, ratio)
    count = int(scale.max()) + 1
    index = torch.arange(len(scale), device=scale.device)
    columns = []
    covered = torch.zeros_like(scale, dtype=torch.bool)
    for s in range(count):
        above = found.containing(torch.full_like(scale, s))
        above = torch.where(scale < s, above, -1)
        covered[above[above >= 0]] = True
        columns.append(torch.where(scale == s, index, above))
    return torch.stack(columns, dim=1)[~covered]


class CSMIL(Aggregator):
    """Cross-scale MIL."""

    Args = CSMILArgs
    needs_positions = True
    one_by_one = True

    def __init__(
        self, in_dim: int, n_classes: int, args: CSMILArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.args = args = args or CSMILArgs()
        hidden, inner = args.hidden, args.attention_dim
        self.embed = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU())
        self.scale_scores = nn.Sequential(
            nn.Linear(hidden, inner), nn.ReLU(), nn.Linear(inner, 1)
        )
        self.cluster_scores = nn.Sequential(
            nn.Linear(hidden, inner), nn.Tanh(), nn.Linear(inner, 1)
        )
        self.classifier = nn.Sequential(
            nn.Linear(hidden, inner), nn.ReLU(), nn.Linear(inner, n_classes)
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
        table = places(coords[0], scale[0], self.args.ratio)
        present = table >= 0
        index = table.clamp_min(0)
        embedded = self.embed(x[0])
        weights = self._scale_weights(
            self.scale_scores(embedded).squeeze(-1)[index], present
        )
        merged = (weights.to(x.dtype)[..., None] * embedded[index]).sum(1)
        finest = index.gather(1, present.long().argmax(1, keepdim=True)).squeeze(1)
        cluster = kmeans(x[0, finest].detach(), self.args.clusters)[0]
        counts = torch.bincount(cluster)
        sums = merged.new_zeros(len(counts), merged.shape[1]).index_add(
            0, cluster, merged
        )
        means = sums / counts.clamp_min(1)[:, None]
        scores = accurate(self.cluster_scores(means).squeeze(-1))
        shares = scores.masked_fill(counts == 0, float("-inf")).softmax(0)
        bag = shares.to(x.dtype) @ means
        per_place = (shares / counts.clamp_min(1))[cluster]
        attention = self._patch_attention(
            per_place, weights, present, index, x.shape[1]
        )
        return MILOutput(self.classifier(bag)[None], attention[None], bag[None])

    def _scale_weights(self, scores: Tensor, present: Tensor) -> Tensor:
        """Weight of each scale of each place, 0 where it is missing; (P, S)."""
        scores = accurate(scores)
        if self.args.scale_softmax:
            return scores.masked_fill(~present, float("-inf")).softmax(1)
        return scores * present

    def _patch_attention(
        self, per_place: Tensor, weights: Tensor, present: Tensor, index: Tensor, n: int
    ) -> Tensor:
        """Attention of places (P,) → attention of patches (n,), sum 1."""
        positive = weights.clamp_min(0)
        nothing = positive.sum(1, keepdim=True) <= 0
        share = normalise_positive(torch.where(nothing, present.float(), positive))
        spread = per_place[:, None] * share
        return spread.new_zeros(n).index_add(0, index.flatten(), spread.flatten())
