"""Where things lie on a synthetic slide: fields on a coarse grid that the painter of `synthetic` fills."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


PLAN_MPP = 4.0
RING_STEP_UM = 225.0
"""Distance of gland centres; with these radii bands cover 43 % and lumens 22 % of a lesion."""
RING_OUTER_UM = 95.0
RING_INNER_UM = 55.0
BAND_UM, LUMEN_UM, SEPTUM_UM = 40.0, 40.0, 66.0
"""Widths of the waves of a trabecular lesion: the same shares as the rings."""
WAVE_UM, SWING_UM = 400.0, 40.0
"""Length and swing of the waves: they bend as sharply (radius 101 µm) as the rings."""


class LesionSize(StrEnum):
    """How much of the slide the lesion covers."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


@dataclass(frozen=True)
class SlideRecipe:
    """What one synthetic slide shows.

    Attributes:
        label: `normal`, or `<glandular|trabecular>-<smooth|vesicular>`.
        size_um_wh: Width and height of the scanned area in µm.
        mpp: µm per pixel of level 0.
        lesion_size: How large the lesion is.
        seed: Seed of everything but the stain.
        stain_seed: Seed of the stain: slides of one patient share it.
        pen: Whether there are pen marks.
        blank: Whether the glass is empty.
        cell_um: Side of the coarsest patch; medium and large lesions are placed to hold whole ones.
    """

    label: str
    size_um_wh: tuple[float, float] = (1536.0, 1280.0)
    mpp: float = 0.5
    lesion_size: LesionSize = LesionSize.LARGE
    seed: int = 0
    stain_seed: int = 0
    pen: bool = False
    blank: bool = False
    cell_um: float = 512.0

    @property
    def size_wh0(self) -> tuple[int, int]:
        """Width and height of level 0 in pixels."""
        return round(self.size_um_wh[0] / self.mpp), round(
            self.size_um_wh[1] / self.mpp
        )


@dataclass(frozen=True, eq=False)
class TissuePlan:
    """Fields over the whole slide at `PLAN_MPP`, all float32 (h, w).

    Attributes:
        lesion_field: Above 0 inside the lesion.
        band: Share 0 … 1 of places for tumour nuclei.
        inflamed: The same for the lymphocytes of the lesion's mimic.
        duct: The same for small normal ducts.
        stroma: The same for stromal nuclei.
        eosin, haematoxylin: Plain staining 0 … 255 without nuclei.
        fibre: Strength of the fibre texture 0 … 255.
    """

    lesion_field: NDArray[np.float32]
    band: NDArray[np.float32]
    inflamed: NDArray[np.float32]
    duct: NDArray[np.float32]
    stroma: NDArray[np.float32]
    eosin: NDArray[np.float32]
    haematoxylin: NDArray[np.float32]
    fibre: NDArray[np.float32]


def plan_tissue(recipe: SlideRecipe, rng: np.random.Generator) -> TissuePlan:
    """Lay out one slide."""
    shape = (
        round(recipe.size_um_wh[1] / PLAN_MPP),
        round(recipe.size_um_wh[0] / PLAN_MPP),
    )
    tissue = _tissue(shape, rng)
    if recipe.blank:
        tissue[:] = 0
    lesion_field = _lesion(recipe, shape, rng)
    if recipe.label == "normal" or recipe.blank:
        lesion_field[:] = -1
    clefts = smooth_noise(rng, shape, 30) > 2.0
    on_glass = np.minimum(lesion_field, -0.01)
    lesion_field = np.where(tissue > 0.5, lesion_field, on_glass).astype(np.float32)
    inside = (lesion_field > 0).astype(np.float32)
    healthy = tissue * (1 - inside) * ~clefts
    inflamed = healthy * _spots(rng, shape, 55, 0.55)
    calm = healthy * (1 - inflamed)
    duct, duct_lumen = _ducts(shape, rng, calm * _spots(rng, shape, 70, 0.6))
    band, lumen = _architecture(recipe.label.partition("-")[0], shape, rng)
    band, lumen = band * inside, lumen * inside
    muscle = calm * _spots(rng, shape, 60, 0.9)
    taken = band + lumen + inflamed * 0.7 + duct + duct_lumen
    stroma = np.clip(tissue * ~clefts - taken, 0, 1)
    density = 1 + 0.25 * smooth_noise(rng, shape, 12)
    eosin = (104 + 8 * smooth_noise(rng, shape, 25)) * stroma + 42 * muscle
    eosin += 84 * (band + duct) + 26 * inflamed + 8 * (lumen + duct_lumen)
    blue = 26 * (band + duct) + 6 * stroma + 10 * inflamed
    return TissuePlan(
        lesion_field=lesion_field,
        band=band.astype(np.float32),
        inflamed=(inflamed * np.clip(density, 0.4, 1)).astype(np.float32),
        duct=duct.astype(np.float32),
        stroma=stroma.astype(np.float32),
        eosin=eosin.astype(np.float32),
        haematoxylin=blue.astype(np.float32),
        fibre=(60 * stroma + 30 * muscle).astype(np.float32),
    )


def smooth_noise(
    rng: np.random.Generator, shape_hw: tuple[int, int], cell: float
) -> NDArray[np.float32]:
    """Smooth field (h, w) with mean near 0 and spread near 1; `cell` is its grain in pixels."""
    small = max(round(shape_hw[0] / cell), 2) + 3, max(round(shape_hw[1] / cell), 2) + 3
    coarse = Image.fromarray(rng.normal(0, 1.45, small).astype(np.float32))
    box = (1.0, 1.0, small[1] - 1.0, small[0] - 1.0)
    return np.array(
        coarse.resize(shape_hw[::-1], Image.Resampling.BICUBIC, box=box), np.float32
    )


def _spots(
    rng: np.random.Generator, shape: tuple[int, int], cell: float, floor: float
) -> NDArray[np.float32]:
    """Soft islands: 0 outside, 1 inside."""
    islands = (smooth_noise(rng, shape, cell) - floor) * 6 + 0.5
    return np.asarray(np.clip(islands, 0, 1), np.float32)


def _tissue(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    radius = (np.abs(x / 0.95) ** 5 + np.abs(y / 0.95) ** 5) ** 0.2
    field = 1 - radius + 0.03 * smooth_noise(rng, shape, 40)
    return np.asarray(np.clip(field * 40 + 0.5, 0, 1), np.float32)


def _lesion(
    recipe: SlideRecipe, shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float32]:
    width, height = recipe.size_um_wh
    side = min(width, height)
    axes = {
        "small": (0.12 * side,) * 2,
        "medium": (0.3 * side,) * 2,
        "large": (0.4 * width, 0.33 * height),
    }
    ax, ay = np.array(axes[recipe.lesion_size]) * rng.uniform(0.94, 1.06, 2)
    cx, cy = (
        _centre(rng, size, axis, recipe) for size, axis in ((width, ax), (height, ay))
    )
    if recipe.lesion_size == "large" and width >= 2 * recipe.cell_um:
        cx += recipe.cell_um / 2 if cx < width / 2 else -recipe.cell_um / 2
    y, x = (np.mgrid[: shape[0], : shape[1]] + 0.5) * PLAN_MPP
    edge = 0.06 * smooth_noise(rng, shape, 30)
    field = 1 - np.hypot((x - cx) / ax, (y - cy) / ay) + edge
    if recipe.lesion_size == "large" and rng.random() < 0.5:
        sx, sy, radius = (
            rng.uniform(0.12, 0.88) * width,
            rng.uniform(0.12, 0.88) * height,
            rng.uniform(70, 130),
        )
        field = np.maximum(field, 1 - np.hypot(x - sx, y - sy) / radius + edge)
    return np.asarray(field, np.float32)


def _centre(
    rng: np.random.Generator, size_um: float, axis_um: float, recipe: SlideRecipe
) -> float:
    """A coordinate of the lesion's centre: near the middle of a coarsest patch for all but small lesions."""
    if recipe.lesion_size == "small" or size_um < recipe.cell_um:
        return float(
            rng.uniform(
                min(axis_um * 1.4, size_um / 2),
                max(size_um - axis_um * 1.4, size_um / 2),
            )
        )
    cells = (
        np.arange(int(size_um // recipe.cell_um)) * recipe.cell_um + recipe.cell_um / 2
    )
    reach = np.minimum(cells, size_um - cells)
    return float(
        rng.choice(cells[reach >= min(axis_um * 0.8, reach.max())])
        + rng.uniform(-25, 25)
    )


def _architecture(
    kind: str, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bands of nuclei and lumens as shares 0 … 1 over the whole plan."""
    if kind not in ("glandular", "trabecular"):
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    scale = rng.uniform(0.93, 1.07)
    y, x = np.mgrid[: shape[0], : shape[1]] * (PLAN_MPP / scale)
    turn = rng.uniform(0, np.pi)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    u += 10 * smooth_noise(rng, shape, 25)
    v += 10 * smooth_noise(rng, shape, 25)
    if kind == "glandular":
        distance = _nearest_centre(u, v, rng)
        return _soft(distance - RING_INNER_UM, RING_OUTER_UM - distance), _soft(
            RING_INNER_UM - distance
        )
    period = SEPTUM_UM + 2 * BAND_UM + LUMEN_UM
    phase = np.mod(
        v + SWING_UM * np.sin(2 * np.pi * (u / WAVE_UM + rng.random())), period
    )
    from_lumen = np.abs(phase - period / 2)
    return _soft(from_lumen - LUMEN_UM / 2, LUMEN_UM / 2 + BAND_UM - from_lumen), _soft(
        LUMEN_UM / 2 - from_lumen
    )


def _nearest_centre(
    u: NDArray[np.float64], v: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Distance to the nearest centre of a jittered hexagonal lattice."""
    du, dv = RING_STEP_UM, RING_STEP_UM * np.sqrt(0.75)
    table = rng.uniform(-0.06, 0.06, (64, 64, 2)) * RING_STEP_UM
    row = np.floor(v / dv).astype(int)
    best = np.full(u.shape, np.inf)
    for r in (row, row + 1):
        shift = (r % 2) * 0.5
        column = np.floor(u / du - shift).astype(int)
        for c in (column, column + 1):
            jitter = table[r % 64, c % 64]
            best = np.minimum(
                best,
                np.hypot(
                    u - (c + shift) * du - jitter[..., 0], v - r * dv - jitter[..., 1]
                ),
            )
    return best


def _ducts(
    shape: tuple[int, int], rng: np.random.Generator, where: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Small normal ducts: walls and lumens as shares 0 … 1."""
    y, x = (np.mgrid[: shape[0], : shape[1]] + 0.5) * PLAN_MPP
    distance = np.full(shape, np.inf)
    rows, columns = np.nonzero(where > 0.9)
    for pick in (
        rng.integers(0, len(rows), min(len(rows) // 150, 40)) if len(rows) else ()
    ):
        radius = rng.uniform(0.8, 1.2)
        centre = (columns[pick] + 0.5) * PLAN_MPP, (rows[pick] + 0.5) * PLAN_MPP
        distance = np.minimum(distance, np.hypot(x - centre[0], y - centre[1]) / radius)
    keep = where > 0.3
    return _soft(distance - 12, 27 - distance) * keep, _soft(12 - distance) * keep


def _soft(*inside_um: NDArray[np.float64]) -> NDArray[np.float32]:
    """1 where every distance is positive, with an edge 5 µm wide."""
    nearest = np.minimum.reduce(inside_um) if len(inside_um) > 1 else inside_um[0]
    return np.clip(nearest / 5 + 0.5, 0, 1).astype(np.float32)
