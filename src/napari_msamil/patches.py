"""Which patches of a slide are used, and where they lie: pure geometry, no file is read here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from napari_msamil.config import PatchSpec


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Selected patches of one slide, in the order the aggregator sees them.

    Attributes:
        spec: How they were selected.
        size_wh0: Width and height of the slide's level 0 in pixels.
        mpp: µm per level-0 pixel they were computed with.
        size_px0: Side of a patch of each scale in level-0 pixels; every side is a whole multiple of the finest
            where the physical sizes are (nested 20x/10x/5x families).
        coords_xy0: int64 (N, 2), top-left corners in level-0 pixels, x then y.
        scale: int8 (N,), index into `spec.scales`.
        lesion_fraction: float32 (N,), share of the mask inside each patch (of the tissue mask for tissue strategies).
        warnings: What a user must know (a fallback was taken, …).
    """

    spec: PatchSpec
    size_wh0: tuple[int, int]
    mpp: float
    size_px0: tuple[int, ...]
    coords_xy0: NDArray[np.int64]
    scale: NDArray[np.int8]
    lesion_fraction: NDArray[np.float32]
    warnings: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.coords_xy0)

    @property
    def step_px0(self) -> tuple[int, ...]:
        """Step between neighbouring patches of each scale in level-0 pixels."""
        return tuple(max(1, round(size * self.spec.stride)) for size in self.size_px0)
