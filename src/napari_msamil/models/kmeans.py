"""k-means on the device where the features are, without chance: the answer does not depend on the order of the bag.

Lloyd's iterations from farthest-point centres: the first centre is the point nearest to the mean, each further one the
point farthest from all centres so far.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def farthest_points(x: Tensor, k: int) -> Tensor:
    """Start centres: x (N, D) → (k, D), k at most N."""
    first = (x - x.mean(0)).square().sum(1).argmin()
    centres = [x[first]]
    distance = (x - centres[0]).square().sum(1)
    for _ in range(k - 1):
        centres.append(x[distance.argmax()])
        distance = torch.minimum(distance, (x - centres[-1]).square().sum(1))
    return torch.stack(centres)


@torch.no_grad()
def kmeans(x: Tensor, k: int, iterations: int = 20) -> tuple[Tensor, Tensor]:
    """Cluster points.

    Args:
        x: (N, D).
        k: Clusters wanted; never more than points.
        iterations: Lloyd steps.

    Returns:
        Cluster of each point, int64 (N,), and centres float32 (k', D). A cluster may be empty; it keeps its centre.
    """
    x = x.float()
    centres = farthest_points(x, min(k, len(x)))
    cluster = torch.cdist(x, centres).argmin(1)
    for _ in range(iterations):
        sums = torch.zeros_like(centres).index_add_(0, cluster, x)
        counts = torch.bincount(cluster, minlength=len(centres))[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
        moved = torch.cdist(x, centres).argmin(1)
        if torch.equal(moved, cluster):
            break
        cluster = moved
    return cluster, centres
