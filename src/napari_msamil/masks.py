"""A mask over a whole slide: the type that tissue, lesion and annotation code hand on.

The mask grid covers exactly the whole of level 0, also where its two scale factors differ
(the paper's 1024 × 1024 thumbnail, s1 = W/1024 and s2 = H/1024).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.errors import MaskError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MaskSource(StrEnum):
    """Who made the mask; stored with every result."""

    MODEL = "model"
    FILE = "file"
    USER = "user"
    TISSUE = "tissue"


@dataclass(frozen=True, eq=False)
class SlideMask:
    """A boolean mask over the whole of level 0.

    Attributes:
        mask: bool (H, W).
        size_wh0: Width and height of level 0 in pixels.
        source: Who made it.
        probability: float32 (H, W) lesion probability where a model made the mask, else None.
    """

    mask: NDArray[np.bool_]
    size_wh0: tuple[int, int]
    source: MaskSource
    probability: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_ or 0 in self.mask.shape:
            raise MaskError(
                f"A mask is a non-empty boolean image, not {self.mask.dtype} {self.mask.shape}."
            )

    @property
    def downsample_xy(self) -> tuple[float, float]:
        """Level-0 pixels per mask pixel along x and y (the paper's s1 and s2)."""
        height, width = self.mask.shape
        return self.size_wh0[0] / width, self.size_wh0[1] / height

    @property
    def fraction(self) -> float:
        """Share of the slide that is marked, 0 … 1."""
        return float(self.mask.mean())
