"""Which patch lies in which: integer cells, parents and neighbours, found from coordinates and scale alone.

Patches of all scales lie on nested lattices (patch side of scale s = ratio^s finest sides, no overlap). Aggregators
get only coordinates as shares of the slide, so the finest side is recovered per axis as the smallest gap between
coordinates, or a coarser scale's smallest gap over its ratio. Too few patches to see a gap make everything one cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from napari_msamil.models.attention import doubled

_SAME = 1e-5
"""Coordinates nearer than this share of the slide are the same: far below any patch side, above float32 rounding."""


@dataclass(frozen=True)
class Lattice:
    """Places of the patches of one bag.

    Attributes:
        cell: int64 (N, 2), column and row in finest patch sides, counted from the smallest coordinate.
        scale: int64 (N,), 0 the finest.
        ratio: Sides of a patch in sides of the next finer scale.
    """

    cell: Tensor
    scale: Tensor
    ratio: int

    def containing(self, target: Tensor) -> Tensor:
        """Index of the patch of a target scale that contains each patch, −1 where the bag has none.

        Args:
            target: int64 (N,), the scale looked for, for each patch.
        """
        side = self.ratio ** target[:, None]
        origin = torch.div(self.cell, side, rounding_mode="floor") * side
        return self._find(origin, target)

    def parents(self) -> Tensor:
        """Index of the containing patch one scale coarser, or −1; int64 (N,)."""
        return self.containing(self.scale + 1)

    def neighbours(self) -> Tensor:
        """Pairs of patches of one scale that touch, corners included, both ways: int64 (2, E)."""
        side = self.ratio**self.scale
        pairs = []
        for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1)):
            step = torch.tensor([dx, dy], device=self.cell.device)
            found = self._find(self.cell + step * side[:, None], self.scale)
            here = (found >= 0).nonzero().squeeze(1)
            pairs.append(torch.stack([here, found[here]]))
        one_way = torch.cat(pairs, dim=1)
        return torch.cat([one_way, one_way.flip(0)], dim=1)

    def _find(self, cell: Tensor, scale: Tensor) -> Tensor:
        """Index of the patch at a cell and scale, or −1; of several the first."""
        low = torch.minimum(cell.amin(0), self.cell.amin(0))
        span = torch.maximum(cell.amax(0), self.cell.amax(0)) - low + 1

        def key(c: Tensor, s: Tensor) -> Tensor:
            return (s * span[0] + c[:, 0] - low[0]) * span[1] + c[:, 1] - low[1]

        have, order = key(self.cell, self.scale).sort(stable=True)
        want = key(cell, scale)
        at = torch.searchsorted(have, want).clamp_max(len(have) - 1)
        return torch.where(have[at] == want, order[at], -1)


@torch.no_grad()
def lattice(coords: Tensor, scale: Tensor, ratio: int = 2) -> Lattice:
    """Recover the lattice of one bag.

    Args:
        coords: (N, 2), top-left corners as shares of the slide, x then y.
        scale: int64 (N,).
        ratio: Sides of a patch in sides of the next finer scale.
    """
    # The coarsest patch fixes the origin: finer patches are counted from a corner that a parent may have.
    origin = doubled(coords[scale == scale.max()].amin(0))
    places = doubled(coords) - origin
    at = scale.to(places.device)
    columns = [_cells(places[:, axis], at, ratio) for axis in (0, 1)]
    return Lattice(torch.stack(columns, dim=1).to(scale.device), scale, ratio)


def _cells(place: Tensor, scale: Tensor, ratio: int) -> Tensor:
    """Coordinates along one axis → whole finest sides."""
    gaps = [_smallest_gap(place)]
    gaps += [
        _smallest_gap(place[scale == s]) / ratio**s
        for s in torch.unique(scale).tolist()
    ]
    side = min(gaps)
    if side == float("inf"):
        return torch.zeros_like(scale)
    return (place / side).round().long()


def _smallest_gap(place: Tensor) -> float:
    gaps = place.sort().values.diff()
    gaps = gaps[gaps > _SAME]
    return float(gaps.min()) if len(gaps) else float("inf")
