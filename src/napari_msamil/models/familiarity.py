"""How far the features of a slide lie from those of the training slides.

Mahalanobis distance with one mean per scale and a shared, shrunken covariance (Lee et al. 2018, eq. 2, without classes:
patches have none), averaged over the patches of a slide. 1 is the usual distance of a training patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from napari_msamil.models.attention import doubled


class Familiarity(nn.Module):
    """Mean and whitening of training features.

    Args:
        scales: Number of scales S.
        dim: Width of a feature D; of an ensemble with encoders of their own, the first member's.
    """

    mean: Tensor
    whiten: Tensor

    def __init__(self, scales: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(scales, dim))
        self.register_buffer("whiten", torch.eye(dim))

    def forward(self, features: Tensor, scale: Tensor) -> Tensor:
        """Distance of a slide: features (N, ≥ D), scale int64 (N,) → root mean square of whitened values, a scalar."""
        mean, whiten = doubled(self.mean), doubled(self.whiten)
        known = doubled(features[:, : mean.shape[1]])
        usual = mean[scale.to(mean.device)]
        return ((known - usual) @ whiten).square().mean().sqrt()
