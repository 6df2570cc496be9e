"""P_all of Algorithm 2: all non-background patches of a slide at three scales, and the draws from it.

A draw depends only on the generator it is given. Patches come in paper order, because a grid is in paper order and
drawn positions are sorted. Slides are opened once to lay out their grid and again when patches are read; decoded
patches are kept in memory within a budget, or in a folder (`patch_cache`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_msamil.config import Strategy
from napari_msamil.errors import CohortError, SelectionError
from napari_msamil.patch_reader import read_patches
from napari_msamil.patches import make_grid
from napari_msamil.slide import open_slide
from napari_msamil.tissue import find_tissue

from .patch_cache import pixels_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from napari_msamil.config import ModelConfig
    from napari_msamil.patches import PatchGrid

    from .cohort import CohortRow
    from .patch_cache import PatchCache


@dataclass(frozen=True, eq=False)
class Draw:
    """Patches of one visit.

    Attributes:
        slide: Name of the slide.
        label: Class index.
        pixels: uint8 (M, H, W, 3), the patches of `part`.
        coords: float32 (N, 2), corners as shares of the slide, x then y.
        scale: int64 (N,).
        part: Which of the N patches have pixels here: all, or a rank's share.
    """

    slide: str
    label: int
    pixels: Tensor
    coords: Tensor
    scale: Tensor
    part: slice = field(default_factory=lambda: slice(None))

    def __len__(self) -> int:
        return len(self.scale)


class PatchPool:
    """P_all of several slides, read on demand. Safe to use from several threads.

    Args:
        rows: The slides.
        config: Scales, tissue detection, classes.
        cache_gb: Decoded patches kept in memory.
        cache: Decoded patches kept on disk, which then take the place of those in memory.

    Raises:
        CohortError: A label is none of the model's classes.
    """

    def __init__(
        self,
        rows: Sequence[CohortRow],
        config: ModelConfig,
        cache_gb: float = 0.0,
        cache: PatchCache | None = None,
    ) -> None:
        unknown = sorted({r.label for r in rows} - set(config.classes))
        if unknown:
            raise CohortError(
                f"Labels {unknown} are none of the model's classes {list(config.classes)}. "
                "Add them to model.classes or take those slides out."
            )
        self.rows = list(rows)
        self.names = [row.slide_id for row in self.rows]
        self.labels = [config.classes.index(row.label) for row in self.rows]
        self._tissue = config.tissue
        self._spec = config.patches.model_copy(
            update={"strategy": Strategy.TISSUE, "max_patches": None}
        )
        self._grids: dict[int, PatchGrid] = {}
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._room = int(cache_gb * 1e9)
        self._disk = cache
        self._keys: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.rows)

    def grid(self, item: int) -> PatchGrid:
        """All non-background patches of a slide, in paper order.

        Raises:
            MsamilError: The slide cannot be opened, has no resolution, or no tissue.
        """
        if item not in self._grids:
            row = self.rows[item]
            with open_slide(row.path, mpp=row.mpp) as slide:
                tissue = find_tissue(slide, self._tissue)
                grid = make_grid(slide.info, self._spec, tissue, tissue=tissue)
                self._keys[item] = pixels_key(slide.info, grid)
            self._grids[item] = grid
        return self._grids[item]

    def draw(
        self,
        item: int,
        count: int,
        rng: np.random.Generator,
        sampling: str = "uniform",
        span: Callable[[int], slice] | None = None,
        scale: int | None = None,
    ) -> Draw:
        """Draw patches without replacement; all where there are fewer, or where `count` is 0.

        Args:
            item: The slide.
            count: How many.
            rng: Decides.
            sampling: `uniform` or `stratified`, see `choose`.
            span: Which part of N drawn patches is read; None reads all.
            scale: Index of the only scale that is drawn from; None draws from all.

        Raises:
            MsamilError: The slide, or any drawn patch, cannot be read.
        """
        grid = self.grid(item)
        those = np.arange(len(grid))
        if scale is not None:
            those = np.flatnonzero(grid.scale == scale)
            if not len(those):
                raise SelectionError(
                    f"{self.rows[item].path.name} has no tissue patch of that scale."
                )
        chosen = those[choose(grid.scale[those], count, rng, sampling)]
        part = slice(None) if span is None else span(len(chosen))
        pixels = self._read(item, grid, chosen[part])
        size = np.asarray(grid.size_wh0, np.float64)
        shares = (grid.coords_xy0[chosen] / size).astype(np.float32)
        return Draw(
            self.names[item],
            self.labels[item],
            torch.from_numpy(pixels),
            torch.from_numpy(shares),
            torch.from_numpy(grid.scale[chosen].astype(np.int64)),
            part,
        )

    def _read(
        self, item: int, grid: PatchGrid, chosen: NDArray[np.intp]
    ) -> NDArray[np.uint8]:
        kept = self._kept.get(item)
        if kept is None and self._disk is not None:
            kept = self._disk.get(self._keys[item], self._shape(grid))
        if kept is not None:
            return np.asarray(kept[chosen])
        whole = int(np.prod(self._shape(grid)))
        if not self._keep(item, whole):
            return self._decode(item, grid, chosen)
        pixels = self._decode(item, grid, np.arange(len(grid)))
        if self._disk is None:
            self._kept[item] = pixels
        else:
            self._disk.put(self._keys[item], pixels)
        return pixels[chosen]

    def _keep(self, item: int, size: int) -> bool:
        """Whether a slide of so many bytes is kept; room in memory is then taken."""
        if self._disk is not None:
            return bool(self._keys[item]) and self._disk.takes(size)
        with self._lock:
            keep = size <= self._room
            self._room -= size if keep else 0
        return keep

    def _shape(self, grid: PatchGrid) -> tuple[int, ...]:
        side = grid.spec.scales[0].size_px
        return len(grid), side, side, 3

    def _decode(
        self, item: int, grid: PatchGrid, chosen: NDArray[np.intp]
    ) -> NDArray[np.uint8]:
        row, side = self.rows[item], grid.spec.scales[0].size_px
        place = np.full(len(grid), -1)
        place[chosen] = np.arange(len(chosen))
        by_scale = chosen[np.argsort(grid.scale[chosen], kind="stable")]
        pixels = np.empty((len(chosen), side, side, 3), np.uint8)
        with open_slide(row.path, mpp=row.mpp) as slide:
            for batch in read_patches(slide, grid, order=by_scale):
                pixels[place[batch.index]] = batch.pixels
        return pixels


def choose(
    scale: NDArray[np.int8], count: int, rng: np.random.Generator, sampling: str
) -> NDArray[np.intp]:
    """Sorted positions of a draw without replacement (Algorithm 2, line 2).

    Args:
        scale: (N,) scale index of each patch of P_all.
        count: How many; 0 or at least N takes all.
        rng: Decides.
        sampling: `uniform` over P_all, or `stratified`: an equal share of each scale, the rest from what is left.
    """
    total = len(scale)
    if count == 0 or count >= total:
        return np.arange(total)
    if sampling == "uniform":
        return np.sort(rng.choice(total, size=count, replace=False))
    present = np.unique(scale)
    share = count // len(present)
    groups = [rng.permutation(np.flatnonzero(scale == s))[:share] for s in present]
    taken = np.concatenate(groups)
    rest = np.setdiff1d(np.arange(total), taken)
    more = rng.choice(rest, size=count - len(taken), replace=False)
    return np.sort(np.concatenate([taken, more]))
