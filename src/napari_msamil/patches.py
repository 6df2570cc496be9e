"""Which patches of a slide are used, and where they lie: pure geometry, no file is read here.

Paper section 3.1: a fixed grid per scale with stride d_k on the 20x frame, the lesion share of every
cell measured on the anisotropic 1024 × 1024 mask, cells above 0.7 kept, and the rest of the network
sees them sorted by position.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.config import Strategy
from napari_msamil.errors import SelectionError
from napari_msamil.masks import area_shares, lattice_shares
from napari_msamil.patch_choice import (
    Cells,
    count_passing,
    draw_counts,
    drawn,
    fall_back,
    largest,
    passing,
    second_rank,
)
from napari_msamil.slide.levels import require_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from napari_msamil.config import PatchSpec
    from napari_msamil.masks import SlideMask
    from napari_msamil.slide.base import SlideInfo


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
class PatchCounts:
    """What a person reads of a selection while painting.

    Attributes:
        by_scale: Number of patches of each scale by name, `{"20x": n, …}`.
        warnings: Those of the selection.
    """

    by_scale: dict[str, int]
    warnings: tuple[str, ...] = ()


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
    if not len(coords_xy0):
        return np.zeros(0, dtype=np.intp)
    # One whole number instead of three keys: the lattices come sorted, and a stable sort only merges them.
    rank = (twice_x * (int(twice_y.max()) + 1) + twice_y) * (int(scale.max()) + 1)
    return np.argsort(rank + scale, kind="stable")


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
    lattices, warnings = _full_patches(info, spec, sides)
    xy0 = np.concatenate([lattice.corners() for lattice in lattices])
    scale = np.concatenate([lattice.codes() for lattice in lattices])
    deciding = mask if spec.strategy is Strategy.LESION else tissue or mask
    cells = Cells(xy0, scale, _shares(deciding, lattices))
    kept = cells.take(passing(cells, spec))
    if not len(kept.share):
        lengths = np.asarray(sides, dtype=np.int64)[scale]
        boxes = np.column_stack([xy0, lengths, lengths])
        tissue_share = None if tissue is None else _shares(tissue, lattices)
        rank, words = second_rank(mask, boxes, tissue_share, spec)
        kept, sentence = fall_back(info, spec, cells, tissue_share, rank, words)
        warnings.append(sentence)
    elif spec.strategy is Strategy.RANDOM:
        kept = kept.take(drawn(kept, spec))
    if spec.max_patches is not None:
        kept = kept.take(largest(kept, spec.max_patches, len(spec.scales)))
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


def count_patches(
    info: SlideInfo,
    spec: PatchSpec,
    mask: SlideMask,
    *,
    tissue: SlideMask | None = None,
) -> PatchCounts:
    """How many patches `make_grid` selects; they are neither placed nor sorted unless a fallback is needed.

    Half a million candidates are counted several times a second, while somebody paints.

    Args:
        info: The slide.
        spec: Scales, strategy, thresholds, caps and fallback.
        mask: The lesion mask.
        tissue: The tissue mask.

    Raises:
        ResolutionError: As `make_grid`.
        SelectionError: As `make_grid`.
    """
    mpp = require_scale(info, spec.scales[0].mpp)
    lattices, warnings = _full_patches(info, spec, patch_sizes_px0(spec, mpp))
    deciding = mask if spec.strategy is Strategy.LESION else tissue or mask
    found = np.zeros(len(spec.scales), dtype=np.int64)
    for a in lattices:
        shares = lattice_shares(deciding, a.x0, a.y0, a.side)
        found[a.scale] = count_passing(shares, spec)
    if not found.any():
        grid = make_grid(info, spec, mask, tissue=tissue)
        return PatchCounts(grid.counts, grid.warnings)
    if spec.strategy is Strategy.RANDOM:
        found = np.minimum(found, draw_counts(spec))
    if spec.max_patches is not None:
        found = np.minimum(found, spec.max_patches)
    names = (scale.name for scale in spec.scales)
    counts = {name: int(n) for name, n in zip(names, found, strict=True)}
    return PatchCounts(counts, tuple(warnings))


@dataclass(frozen=True, eq=False)
class _Lattice:
    """All full patches of one scale: every left edge (X,) with every top edge (Y,), in level-0 pixels."""

    scale: int
    side: int
    x0: NDArray[np.int64]
    y0: NDArray[np.int64]

    def corners(self) -> NDArray[np.int64]:
        """int64 (X · Y, 2), top-left corners, x before y."""
        corners = np.empty((len(self.x0), len(self.y0), 2), dtype=np.int64)
        corners[..., 0], corners[..., 1] = self.x0[:, None], self.y0
        return corners.reshape(-1, 2)

    def codes(self) -> NDArray[np.int8]:
        """int8 (X · Y,), the scale."""
        return np.full(len(self.x0) * len(self.y0), self.scale, dtype=np.int8)


def _shares(mask: SlideMask, lattices: Sequence[_Lattice]) -> NDArray[np.float64]:
    """Share of the mask in every patch, float64 (M,)."""
    return np.concatenate(
        [lattice_shares(mask, a.x0, a.y0, a.side).ravel() for a in lattices]
    )


def _full_patches(
    info: SlideInfo, spec: PatchSpec, sides: tuple[int, ...]
) -> tuple[list[_Lattice], list[str]]:
    """Every full patch of the grid, and a sentence on the scales that do not fit."""
    width, height = info.size_wh0
    lattices, missing = [], []
    for index, side in enumerate(sides):
        step = max(1, round(side * spec.stride))
        x = np.arange(0, width - side + 1, step, dtype=np.int64)
        y = np.arange(0, height - side + 1, step, dtype=np.int64)
        if len(x) and len(y):
            lattices.append(_Lattice(index, side, x, y))
        else:
            missing.append(f"{spec.scales[index].name} ({side} px)")
    if not lattices:
        raise SelectionError(
            f"{info.path.name} is {width} × {height} px; no full patch fits into it: {', '.join(missing)}. "
            "Use a larger slide or a model with smaller patches."
        )
    warnings = (
        [f"Patches too large for this slide were left out: {', '.join(missing)}."]
        if missing
        else []
    )
    return lattices, warnings
