"""Which patches of a slide are used, and where they lie: pure geometry, no file is read here.

Paper section 3.1: a fixed grid per scale with stride d_k on the 20x frame, the lesion share of every
cell measured on the anisotropic 1024 × 1024 mask, cells above 0.7 kept, and the rest of the network
sees them sorted by position.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.config import Fallback, Strategy
from napari_msamil.errors import ConfigError, SelectionError
from napari_msamil.masks import area_shares, box_means
from napari_msamil.slide.levels import require_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_msamil.config import PatchSpec
    from napari_msamil.masks import SlideMask
    from napari_msamil.slide.base import SlideInfo

_TIE = 1e-9
"""Shares are exact up to float64 rounding; one this little above the threshold is equal to it."""


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
        """Distance between neighbouring patches of each scale in level-0 pixels."""
        return tuple(max(1, round(side * self.spec.stride)) for side in self.size_px0)

    @property
    def boxes_xywh0(self) -> NDArray[np.int64]:
        """int64 (N, 4): left, top, width, height of each patch in level-0 pixels."""
        sides = np.asarray(self.size_px0, dtype=np.int64)[self.scale]
        return np.column_stack([self.coords_xy0, sides, sides])

    @property
    def counts(self) -> dict[str, int]:
        """Number of patches of each scale by name, `{"20x": n, …}`."""
        found = np.bincount(self.scale, minlength=len(self.spec.scales))
        return {s.name: int(n) for s, n in zip(self.spec.scales, found, strict=True)}


@dataclass(frozen=True)
class _Cells:
    """Candidate patches of all scales: corners (M, 2), scale (M,), share (M,) of the mask that decides."""

    xy0: NDArray[np.int64]
    scale: NDArray[np.int8]
    share: NDArray[np.float64]

    def take(self, index: NDArray[np.intp]) -> _Cells:
        return _Cells(self.xy0[index], self.scale[index], self.share[index])


def patch_sizes_px0(spec: PatchSpec, mpp: float) -> tuple[int, ...]:
    """Side of a patch of each scale in level-0 pixels.

    The finest side is rounded once; a scale whose physical side is a whole multiple of the finest gets
    that multiple of it, so that one 5x patch holds exactly four 10x and sixteen 20x patches.

    Args:
        spec: The scales.
        mpp: µm per level-0 pixel.
    """
    finest_um = spec.scales[0].size_um
    finest = max(1, round(finest_um / mpp))
    sides = []
    for scale in spec.scales:
        ratio = scale.size_um / finest_um
        nested = abs(ratio - round(ratio)) < 1e-6 * ratio
        sides.append(
            finest * round(ratio) if nested else max(1, round(scale.size_um / mpp))
        )
    return tuple(sides)


def box_fractions(
    mask: SlideMask, boxes_xywh0: NDArray[np.generic]
) -> NDArray[np.float32]:
    """Share of each box that is marked: the exact area average, with fractional edges, also where s1 ≠ s2.

    Args:
        mask: Mask over the whole slide.
        boxes_xywh0: (N, 4) left, top, width, height in level-0 pixels; whole or not. What lies outside the
            slide counts as unmarked.

    Returns:
        float32 (N,), 0 … 1.
    """
    return area_shares(mask, boxes_xywh0).astype(np.float32)


def paper_order(
    coords_xy0: NDArray[np.int64], sizes_px0: Sequence[int], scale: NDArray[np.int8]
) -> NDArray[np.intp]:
    """Indices that sort patches as the paper prints them: A1 A2 A3 A4 B1 B2 … A12 … B4 (section 3.3.1).

    The sequence is a sort by patch centre, x before y, ties from the finest scale on. Centres are compared
    as whole numbers (twice the centre), so the order never depends on rounding.

    Args:
        coords_xy0: (N, 2) top-left corners.
        sizes_px0: Side of a patch of each scale in level-0 pixels.
        scale: (N,) scale index of each patch.
    """
    sides = np.asarray(sizes_px0, dtype=np.int64)[scale]
    twice_x = 2 * coords_xy0[:, 0] + sides
    twice_y = 2 * coords_xy0[:, 1] + sides
    return np.lexsort((scale, twice_y, twice_x))


def make_grid(
    info: SlideInfo,
    spec: PatchSpec,
    mask: SlideMask,
    *,
    tissue: SlideMask | None = None,
) -> PatchGrid:
    """Select the patches of a slide.

    Strategy `lesion` keeps patches whose share of `mask` is strictly above the threshold; `tissue` and
    `random` work on `tissue` (on `mask` where no tissue mask is given). Only full patches count.

    Args:
        info: The slide.
        spec: Scales, strategy, thresholds, caps and fallback.
        mask: The lesion mask.
        tissue: The tissue mask, for the tissue strategies and for the fallback.

    Raises:
        ResolutionError: The slide has no known pixel size, or is coarser than the model's finest scale.
        SelectionError: No full patch fits, or nothing passes and the fallback finds nothing either.
    """
    mpp = require_scale(info, spec.scales[0].mpp)
    sides = patch_sizes_px0(spec, mpp)
    xy0, scale, warnings = _full_patches(info, spec, sides)
    lengths = np.asarray(sides, dtype=np.int64)[scale]
    boxes = np.column_stack([xy0, lengths, lengths])
    deciding = mask if spec.strategy is Strategy.LESION else tissue or mask
    cells = _Cells(xy0, scale, area_shares(deciding, boxes))
    kept = cells.take(np.flatnonzero(cells.share > _threshold(spec) + _TIE))
    if not len(kept.share):
        tissue_share = None if tissue is None else area_shares(tissue, boxes)
        rank, words = _second_rank(mask, boxes, tissue_share, spec)
        kept, sentence = _fall_back(info, spec, cells, tissue_share, rank, words)
        warnings.append(sentence)
    elif spec.strategy is Strategy.RANDOM:
        kept = kept.take(_drawn(kept, spec))
    if spec.max_patches is not None:
        kept = kept.take(_largest(kept, spec.max_patches, len(spec.scales)))
    kept = kept.take(paper_order(kept.xy0, sides, kept.scale))
    share = kept.share.astype(np.float32)
    return PatchGrid(
        spec,
        info.size_wh0,
        mpp,
        sides,
        kept.xy0,
        kept.scale,
        share,
        warnings=tuple(warnings),
    )


def _threshold(spec: PatchSpec) -> float:
    lesion = spec.strategy is Strategy.LESION
    return spec.lesion_threshold if lesion else spec.tissue_threshold


def _full_patches(
    info: SlideInfo, spec: PatchSpec, sides: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int8], list[str]]:
    """Corners and scale of every full patch of the grid, and a sentence per scale that does not fit."""
    width, height = info.size_wh0
    corners, scales, missing = [], [], []
    for index, side in enumerate(sides):
        step = max(1, round(side * spec.stride))
        x, y = (
            np.arange(0, width - side + 1, step),
            np.arange(0, height - side + 1, step),
        )
        if not (len(x) and len(y)):
            missing.append(f"{spec.scales[index].name} ({side} px)")
            continue
        corners.append(
            np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
        )
        scales.append(np.full(len(x) * len(y), index, dtype=np.int8))
    if not corners:
        raise SelectionError(
            f"{info.path.name} is {width} × {height} px; no full patch fits into it: {', '.join(missing)}. "
            "Use a larger slide or a model with smaller patches."
        )
    warnings = (
        [f"Patches too large for this slide were left out: {', '.join(missing)}."]
        if missing
        else []
    )
    return (
        np.concatenate(corners).astype(np.int64),
        np.concatenate(scales),
        warnings,
    )


def _second_rank(
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


def _fall_back(
    info: SlideInfo,
    spec: PatchSpec,
    cells: _Cells,
    tissue_share: NDArray[np.float64] | None,
    second_rank: NDArray[np.float64],
    second_words: str,
) -> tuple[_Cells, str]:
    """What is taken when no patch passes the threshold, and the sentence that says so."""
    lesion = spec.strategy is Strategy.LESION
    nothing = (
        f"None of the {len(cells.share)} patches of {info.path.name} has more than {_threshold(spec):.0%} "
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
            rank, words = second_rank, second_words
            nothing += " and no lesion was found at all"
        top = _top(cells, rank, spec)
        if len(top):
            return cells.take(
                top
            ), f"{nothing}; the {len(top)} with the {words} were used."
    raise SelectionError(
        f"{nothing}. Edit the mask, lower the threshold, or allow a fallback."
    )


def _top(cells: _Cells, rank: NDArray[np.float64], spec: PatchSpec) -> NDArray[np.intp]:
    """Indices of the best-ranked patches per scale, only those that have any share at all."""
    some = np.flatnonzero(rank > _TIE)
    ranked = _Cells(cells.xy0[some], cells.scale[some], rank[some])
    return some[_largest(ranked, spec.fallback_count, len(spec.scales))]


def _largest(cells: _Cells, count: int, scales: int) -> NDArray[np.intp]:
    """Indices of at most `count` patches per scale with the largest share; equal shares go by x, then y."""
    order = np.lexsort((cells.xy0[:, 1], cells.xy0[:, 0], -cells.share.round(9)))
    return np.concatenate(
        [order[cells.scale[order] == s][:count] for s in range(scales)]
    )


def _drawn(cells: _Cells, spec: PatchSpec) -> NDArray[np.intp]:
    """Indices of the seeded random choice, per scale; all of a scale where there are fewer than asked for."""
    if len(spec.random_counts) < len(spec.scales):
        raise ConfigError(
            f"random_counts has {len(spec.random_counts)} numbers for {len(spec.scales)} scales; give one per scale."
        )
    rng = np.random.default_rng(spec.seed)
    chosen = []
    for index in range(len(spec.scales)):
        here = np.flatnonzero(cells.scale == index)
        count = min(spec.random_counts[index], len(here))
        chosen.append(rng.choice(here, size=count, replace=False))
    return np.concatenate(chosen)
