"""Choosing among candidate patches once their shares are known: thresholds, caps, draws and fallbacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.config import Fallback, Strategy
from napari_msamil.errors import ConfigError, SelectionError
from napari_msamil.masks import box_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.config import PatchSpec
    from napari_msamil.masks import SlideMask
    from napari_msamil.slide.base import SlideInfo

_TIE = 1e-9
"""Shares are exact up to float64 rounding; one this little above the threshold is equal to it."""


@dataclass(frozen=True)
class Cells:
    """Candidate patches of all scales: corners (M, 2), scale (M,), share (M,) of the mask that decides."""

    xy0: NDArray[np.int64]
    scale: NDArray[np.int8]
    share: NDArray[np.float64]

    def take(self, index: NDArray[np.intp]) -> Cells:
        """The patches at `index`."""
        return Cells(self.xy0[index], self.scale[index], self.share[index])


def threshold_of(spec: PatchSpec) -> float:
    """The share that the strategy asks for."""
    lesion = spec.strategy is Strategy.LESION
    return spec.lesion_threshold if lesion else spec.tissue_threshold


def passing(cells: Cells, spec: PatchSpec) -> NDArray[np.intp]:
    """Indices of the patches whose share is strictly above the threshold of the strategy."""
    return np.flatnonzero(cells.share > threshold_of(spec) + _TIE)


def count_passing(share: NDArray[np.float64], spec: PatchSpec) -> int:
    """How many of the shares are strictly above the threshold of the strategy."""
    return int(np.count_nonzero(share > threshold_of(spec) + _TIE))


def second_rank(
    mask: SlideMask,
    boxes: NDArray[np.int64],
    tissue_share: NDArray[np.float64] | None,
    spec: PatchSpec,
) -> tuple[NDArray[np.float64], str]:
    """What patches are ranked by where the mask is empty: lesion probability inside the tissue, else tissue alone."""
    if tissue_share is None:
        return np.zeros(len(boxes)), "share"
    if mask.probability is None:
        return tissue_share, "most tissue"
    likely = box_means(mask.probability, mask.size_wh0, boxes)
    return likely * (tissue_share > spec.tissue_threshold), "largest lesion probability"


def fall_back(
    info: SlideInfo,
    spec: PatchSpec,
    cells: Cells,
    tissue_share: NDArray[np.float64] | None,
    spare_rank: NDArray[np.float64],
    spare_words: str,
) -> tuple[Cells, str]:
    """What is taken when no patch passes the threshold, and the sentence that says so."""
    lesion = spec.strategy is Strategy.LESION
    nothing = (
        f"None of the {len(cells.share)} patches of {info.path.name} has more than {threshold_of(spec):.0%} "
        f"{'lesion' if lesion else 'tissue'} (largest share {cells.share.max():.1%})"
    )
    if lesion and spec.fallback is Fallback.TISSUE and tissue_share is not None:
        found = np.flatnonzero(tissue_share > spec.tissue_threshold + _TIE)
        if len(found):
            return cells.take(
                found
            ), f"{nothing}; the {len(found)} tissue patches were used."
    if spec.fallback is Fallback.TOP or (lesion and spec.fallback is Fallback.TISSUE):
        rank, words = cells.share, "largest share"
        if lesion and not rank.any():
            rank, words = spare_rank, spare_words
            nothing += " and no lesion was found at all"
        top = _top(cells, rank, spec)
        if len(top):
            return cells.take(
                top
            ), f"{nothing}; the {len(top)} with the {words} were used."
    raise SelectionError(
        f"{nothing}. Edit the mask, lower the threshold, or allow a fallback."
    )


def _top(cells: Cells, rank: NDArray[np.float64], spec: PatchSpec) -> NDArray[np.intp]:
    """Indices of the best-ranked patches per scale, only those that have any share at all."""
    some = np.flatnonzero(rank > _TIE)
    ranked = Cells(cells.xy0[some], cells.scale[some], rank[some])
    return some[largest(ranked, spec.fallback_count, len(spec.scales))]


def largest(cells: Cells, count: int, scales: int) -> NDArray[np.intp]:
    """Indices of at most `count` patches per scale with the largest share; equal shares go by x, then y."""
    order = np.lexsort((cells.xy0[:, 1], cells.xy0[:, 0], -cells.share.round(9)))
    return np.concatenate(
        [order[cells.scale[order] == s][:count] for s in range(scales)]
    )


def draw_counts(spec: PatchSpec) -> tuple[int, ...]:
    """How many patches of each scale a random choice takes.

    Raises:
        ConfigError: There are fewer numbers than scales.
    """
    if len(spec.random_counts) < len(spec.scales):
        raise ConfigError(
            f"random_counts has {len(spec.random_counts)} numbers for {len(spec.scales)} scales; give one per scale."
        )
    return tuple(spec.random_counts[: len(spec.scales)])


def drawn(cells: Cells, spec: PatchSpec) -> NDArray[np.intp]:
    """Indices of the seeded random choice, per scale; all of a scale where there are fewer than asked for."""
    counts = draw_counts(spec)
    rng = np.random.default_rng(spec.seed)
    chosen = []
    for index in range(len(spec.scales)):
        here = np.flatnonzero(cells.scale == index)
        count = min(counts[index], len(here))
        chosen.append(rng.choice(here, size=count, replace=False))
    return np.concatenate(chosen)
