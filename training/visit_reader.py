"""Pixels of visits: read ahead, this rank's share of them, on the device, augmented."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from napari_msamil.errors import MsamilError

from .augment import augment
from .read_ahead import ReadAhead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from .config import E2ESpec
    from .patch_dataset import Draw, PatchPool
    from .ranks import Ranks
    from .visits import Visit


class VisitReader:
    """Reads the visits of an epoch in order.

    Args:
        pool: The training slides.
        spec: Instances, sampling, augmentation, sharing between ranks.
        device: Where pixels go.
        ranks: This process among those that train together.

    Attributes:
        faults: Reason by slide, for slides that cannot be read.
    """

    def __init__(
        self, pool: PatchPool, spec: E2ESpec, device: torch.device, ranks: Ranks
    ) -> None:
        self.pool, self.spec, self.device, self.ranks = pool, spec, device, ranks
        self.faults: dict[str, str] = {}
        self._ahead: ReadAhead[Visit, Draw] | None = None

    def mine(self, visit: Visit) -> bool:
        """Whether this rank computes (its part of) a visit."""
        if self.spec.distributed == "instances":
            return True
        place = visit.position % self.spec.accumulate
        return place % self.ranks.size == self.ranks.rank

    def start(self, visits: Sequence[Visit]) -> None:
        """Begin to read the visits of this rank ahead."""
        if self._ahead is not None:
            self._ahead.close()
        mine = [visit for visit in visits if self.mine(visit)]
        self._ahead = ReadAhead(self._draw, mine, self.spec.prefetch)

    def next(self, visits: Sequence[Visit]) -> list[tuple[Visit, Draw]]:
        """The next visits, in the order given to `start`; without those that cannot be read."""
        assert self._ahead is not None
        found = []
        for visit, draw in zip(visits, self._ahead, strict=False):
            if isinstance(draw, MsamilError):
                self.faults[self.pool.names[visit.item]] = str(draw)
            else:
                found.append((visit, draw))
        return found

    def prepared(self, visit: Visit, draw: Draw) -> Tensor:
        """Pixels of one visit on the device, augmented: uint8 (N, 3, H, W), channels last in memory.

        The augmentation of a patch depends on the visit and its place in the draw, not on the rank that encodes it.
        """
        pixels = draw.pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        seed = int(visit.rng(self.spec.seed + 1).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        return augment(pixels, self.spec.augment, generator, len(draw), draw.part)

    def whole(self, visits: Sequence[Visit]) -> Tensor:
        """Prepared pixels of all patches of some visits, whatever the rank; visits that cannot be read are left out."""
        parts = []
        for visit in visits:
            try:
                draw = self._draw(visit, whole=True)
            except MsamilError:
                continue
            parts.append(self.prepared(visit, draw))
        return torch.cat(parts) if parts else torch.empty(0)

    def _draw(self, visit: Visit, *, whole: bool = False) -> Draw:
        rng = visit.rng(self.spec.seed)
        shared = self.spec.distributed == "instances" and not whole
        return self.pool.draw(
            visit.item,
            self.spec.instances,
            rng,
            self.spec.sampling,
            self.ranks.span if shared else None,
        )
