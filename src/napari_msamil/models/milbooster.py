"""MILBooster: instances that look like those of negative bags are filtered out before two or more scales are pooled.

Paper: Qu et al., Boosting whole slide image classification from the perspectives of distribution, correlation and magnification,
ICCV 2023. What the paper fixes, and is built here: k-means on the instances of negative training bags, the Mahalanobis
distance of an instance to the nearest of those clusters, and a bag filter that keeps the far ones, so that
positive bags get a higher share of positive instances; more than one magnification.

What the paper leaves open, and public code does not have (its repository is empty): the window transformer (PiceBlock) and
the Scale Mixer. In their place there is gated attention per scale, and one linear mix of the scales' vectors; call results
"bag filter + gated attention", not a reproduction. Also open are the cluster count, the threshold and the covariance: here
one covariance for all clusters (within-cluster, shrunk towards its diagonal), the threshold a quantile of the negatives'
own distances, and a smallest share of the bag that is always kept, so that negative bags are never emptied.

`fit` must see negative features before training; until then nothing is filtered. The clusters are part of the checkpoint.
`attention` is 0 on filtered instances; else the scale's share (by number of kept instances) times its attention.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_msamil.config import Spec
from napari_msamil.errors import ConfigError, SelectionError
from napari_msamil.models.abmil import InstanceScores, projection
from napari_msamil.models.attention import accurate, doubled
from napari_msamil.models.base import Aggregator
from napari_msamil.models.kmeans import kmeans
from napari_msamil.models.outputs import MILOutput

_FIT_LIMIT = 50_000
"""Negative features the filter learns from; of more, an even part is taken."""


class MILBoosterArgs(Spec):
    """Arguments of the bag filter and the pooling behind it.

    Attributes:
        scales: Scales it is made for (the paper: 2).
        hidden: Width of the projection.
        attention_dim: Hidden width of the gated attention.
        dropout: Behind the projection.
        clusters: Clusters of negative instances.
        quantile: Instances nearer than this quantile of the negatives' own distances are filtered out.
        keep: Smallest share of a bag that stays, the farthest first.
        shrinkage: Weight of the diagonal in the covariance.
    """

    scales: int = Field(default=3, ge=1)
    hidden: int = Field(default=512, ge=1)
    attention_dim: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    clusters: int = Field(default=10, ge=1)
    quantile: float = Field(default=0.8, ge=0, le=1)
    keep: float = Field(default=0.2, gt=0, le=1)
    shrinkage: float = Field(default=0.1, ge=0, le=1)


class BagFilter(nn.Module):
    """Mahalanobis distance to clusters of negative instances.

    Attributes:
        centres: float32 (K, D), whitened.
        whiten: float32 (D, D), maps a feature to a space where the distance is Euclidean.
        threshold: Distance below which an instance looks negative; infinite negative before `fit`.
    """

    centres: Tensor
    whiten: Tensor
    threshold: Tensor

    def __init__(self, dim: int, args: MILBoosterArgs) -> None:
        super().__init__()
        self.args = args
        self.register_buffer("centres", torch.zeros(args.clusters, dim))
        self.register_buffer("whiten", torch.eye(dim))
        self.register_buffer("threshold", torch.tensor(-1.0))

    @torch.no_grad()
    def fit(self, negatives: Tensor) -> None:
        """Learn clusters, covariance and threshold from features (M, D) of negative bags.

        Raises:
            SelectionError: There are fewer features than clusters.
        """
        if len(negatives) < self.args.clusters:
            raise SelectionError(
                f"The bag filter needs at least {self.args.clusters} features of negative bags, but got {len(negatives)}. "
                "Add negative slides or lower `clusters`."
            )
        step = -(-len(negatives) // _FIT_LIMIT)
        x = doubled(negatives[::step].to(self.whiten))
        cluster, centres = kmeans(x, self.args.clusters)
        centred = x - doubled(centres)[cluster]
        covariance = centred.T @ centred / len(x)
        diagonal = torch.diag(covariance.diagonal())
        covariance += self.args.shrinkage * (diagonal - covariance)
        floor = 1e-6 * covariance.diagonal().mean() + 1e-12
        values, vectors = torch.linalg.eigh(covariance)
        whiten = vectors * values.clamp_min(floor).rsqrt()
        self.whiten.copy_(whiten)
        self.centres.copy_(doubled(centres) @ whiten)
        self.threshold.copy_(
            torch.quantile(self.distance(x.to(self.whiten)), self.args.quantile)
        )

    def distance(self, x: Tensor) -> Tensor:
        """Mahalanobis distance to the nearest cluster: (N, D) → (N,)."""
        return torch.cdist(x.float() @ self.whiten, self.centres).amin(1)

    @torch.no_grad()
    def keep(self, x: Tensor) -> Tensor:
        """Indices of the instances that stay, in their order: (N, D) → int64 (n,)."""
        if float(self.threshold) < 0:
            return torch.arange(len(x), device=x.device)
        distance = self.distance(x)
        least = max(1, math.ceil(self.args.keep * len(x)))
        far = distance > self.threshold
        if int(far.sum()) < least:
            return distance.topk(least).indices.sort().values
        return far.nonzero().squeeze(1)


class MILBooster(Aggregator):
    """Bag filter, gated attention per scale, a linear mix of scales."""

    Args = MILBoosterArgs
    one_by_one = True
    needs_negatives = True

    def __init__(
        self, in_dim: int, n_classes: int, args: MILBoosterArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.args = args = args or MILBoosterArgs()
        self.filter = BagFilter(in_dim, args)
        self.projection = projection(in_dim, args.hidden, args.dropout)
        self.scores = nn.ModuleList(
            InstanceScores(args.hidden, args.attention_dim, gated=True)
            for _ in range(args.scales)
        )
        self.mix = nn.Linear(args.scales * args.hidden, args.hidden)
        self.classifier = nn.Linear(args.hidden, n_classes)

    def project(self, features: Tensor) -> Tensor:
        """Nothing yet: the filter looks at the features as they are."""
        return features

    def fit(self, negatives: Tensor) -> None:
        """Learn the filter from features (M, in_dim) of negative training bags."""
        self.filter.fit(negatives)

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        raw = x[0]
        where = (
            torch.zeros(len(raw), dtype=torch.long, device=x.device)
            if scale is None
            else scale[0]
        )
        if int(where.max()) >= self.args.scales:
            raise ConfigError(
                f"MILBooster was made for {self.args.scales} scales, but the bag has scale {int(where.max())}. Set `scales`."
            )
        kept = self.filter.keep(raw)
        h, level = self.projection(raw[kept]), where[kept]
        attention = accurate(raw.new_zeros(len(raw)))
        vectors = []
        for s, scores in enumerate(self.scores):
            mine = (level == s).nonzero().squeeze(1)
            if not len(mine):
                vectors.append(h.new_zeros(h.shape[1]))
                continue
            share = accurate(scores(h[mine]).squeeze(-1)).softmax(0)
            vectors.append(share.to(h.dtype) @ h[mine])
            attention = attention.index_copy(
                0, kept[mine], share * (len(mine) / len(kept))
            )
        bag = torch.relu(self.mix(torch.cat(vectors)))
        return MILOutput(self.classifier(bag)[None], attention[None], bag[None])
