"""Synthetic H&E slides with planted truth: pure numpy, seeded, the same pixels everywhere.

A slide is planned at `PLAN_MPP` (tissue, lesion, mimics, epithelial bands), then painted as two planes, haematoxylin
and eosin, that a table turns into RGB. Tumour classes are a pair of words, `<architecture>-<nuclei>`:

* `glandular` and `trabecular` hold the same bands of nuclei, lumens and stroma in the same shares and with the same
  curvature; closed in rings or running on as waves. One 20x patch (128 µm) sees a piece of band, 5x sees which.
* `smooth` and `vesicular` nuclei differ at 20x and match in mean colour and density at 5x.

`normal` slides have no lesion. Nothing here has any medical meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.synthetic_cells import mean_haematoxylin_um2, nucleus_bank
from napari_msamil.synthetic_plan import (
    PLAN_MPP,
    LesionSize,
    SlideRecipe,
    TissuePlan,
    plan_tissue,
    smooth_noise,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LesionSize", "SlideRecipe", "SynthSlide", "paint_slide"]

HAEMATOXYLIN_OD = np.array([1.30, 1.72, 0.82])
EOSIN_OD = np.array([0.22, 1.02, 0.60])
BAND_SPACING_UM = 10.5
"""Distance of nuclei in epithelial bands."""


@dataclass(frozen=True, eq=False)
class SynthSlide:
    """A painted slide with its truth.

    Attributes:
        pixels: uint8 (H, W, 3), level 0.
        mask: bool (h, w), the lesion over the whole slide at 2 µm per pixel.
        label: Class name.
        mpp: µm per level-0 pixel.
        objective: Nominal lens magnification.
    """

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    label: str
    mpp: float
    objective: float


def paint_slide(recipe: SlideRecipe) -> SynthSlide:
    """Paint one slide; the same recipe gives the same pixels."""
    rng = np.random.default_rng([recipe.seed, 1])
    plan = plan_tissue(recipe, rng)
    haematoxylin, eosin = _stroma(recipe, plan, rng)
    if not recipe.blank:
        _stamp_cells(recipe, plan, haematoxylin, rng)
        _stamp_blood(recipe, plan, eosin, rng)
    pixels = _stain(haematoxylin, eosin, recipe.stain_seed)
    if recipe.pen:
        _draw_pen(pixels, rng)
    size_wh = round(recipe.size_um_wh[0] / 2), round(recipe.size_um_wh[1] / 2)
    mask = (
        np.asarray(
            Image.fromarray(plan.lesion_field).resize(
                size_wh, Image.Resampling.BILINEAR
            )
        )
        > 0
    )
    return SynthSlide(
        pixels, mask, recipe.label, recipe.mpp, 40.0 if recipe.mpp < 0.35 else 20.0
    )


def _stroma(
    recipe: SlideRecipe, plan: TissuePlan, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    size = recipe.size_wh0
    eosin = _enlarged(plan.eosin, size).astype(np.int16)
    strength = _enlarged(plan.fibre, size).astype(np.int16)
    eosin += (strength * _tiled(_fibres(recipe.mpp), size, rng)) >> 7
    grain = _tiled(_grain(), size, rng)
    np.clip(eosin + (grain >> 2), 0, 255, out=eosin)
    haematoxylin = np.maximum(
        _enlarged(plan.haematoxylin, size).astype(np.int16) + (grain >> 3), 0
    )
    return haematoxylin.astype(np.uint8), eosin.astype(np.uint8)


def _stamp_cells(
    recipe: SlideRecipe,
    plan: TissuePlan,
    haematoxylin: NDArray[np.uint8],
    rng: np.random.Generator,
) -> None:
    nuclei = recipe.label.partition("-")[2] or "smooth"
    in_band = 0.43 * mean_haematoxylin_um2("smooth", recipe.mpp) / BAND_SPACING_UM**2
    # The mimic gets as much haematoxylin per µm² as the lesion: darkness alone must not find the lesion.
    lymph = float(np.sqrt(mean_haematoxylin_um2("lymphocyte", recipe.mpp) / in_band))
    layers = (
        (nuclei, BAND_SPACING_UM, plan.band),
        ("lymphocyte", lymph, plan.inflamed),
        ("smooth", 7.5, plan.duct * 0.5),
        ("vesicular", 7.5, plan.duct * 0.5),
        ("spindle", 24.0, plan.stroma),
        ("lymphocyte", 42.0, plan.stroma),
    )
    for kind, spacing_um, density in layers:
        _stamp(haematoxylin, kind, _scatter(density, spacing_um, rng), recipe.mpp, rng)


def _scatter(
    density: NDArray[np.float32], spacing_um: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Points (N, 2) as x, y in µm on a jittered grid, kept with the local density 0 … 1."""
    height, width = density.shape
    nx, ny = int(width * PLAN_MPP / spacing_um), int(height * PLAN_MPP / spacing_um)
    x, y = np.meshgrid(np.arange(nx), np.arange(ny))
    points = np.stack([x + (y % 2) * 0.5, y], axis=-1).reshape(-1, 2) + rng.uniform(
        0.15, 0.85, (nx * ny, 2)
    )
    points *= spacing_um
    column = np.minimum((points[:, 0] / PLAN_MPP).astype(int), width - 1)
    row = np.minimum((points[:, 1] / PLAN_MPP).astype(int), height - 1)
    kept = rng.random(len(points)) < density[row, column]
    return np.asarray(points[kept])


def _stamp(
    plane: NDArray[np.uint8],
    kind: str,
    points_um: NDArray[np.float64],
    mpp: float,
    rng: np.random.Generator,
) -> None:
    bank = nucleus_bank(kind, mpp)
    height, width = plane.shape
    centres = np.round(points_um / mpp).astype(int)
    choice = rng.integers(0, len(bank), len(centres))
    for (x, y), index in zip(centres.tolist(), choice.tolist(), strict=True):
        sprite = bank[index]
        half = sprite.shape[0] // 2
        left, top = x - half, y - half
        if (
            left < 0
            or top < 0
            or left + 2 * half + 1 > width
            or top + 2 * half + 1 > height
        ):
            continue
        window = plane[top : top + 2 * half + 1, left : left + 2 * half + 1]
        np.maximum(window, sprite, out=window)


def _stamp_blood(
    recipe: SlideRecipe,
    plan: TissuePlan,
    eosin: NDArray[np.uint8],
    rng: np.random.Generator,
) -> None:
    """A few vessels with red cells, drawn into the eosin plane."""
    rows, columns = np.nonzero(plan.stroma > 0.8)
    if not len(rows):
        return
    radius_um = 3.4
    half = int(np.ceil(radius_um / recipe.mpp))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * recipe.mpp
    cell = (190 * np.clip((radius_um - np.hypot(x, y)) / 0.8, 0, 1)).astype(np.uint8)
    for vessel in rng.integers(0, len(rows), 6):
        centre = np.array([columns[vessel], rows[vessel]]) * PLAN_MPP
        around = rng.normal(0, (18.0, 7.0), (40, 2))
        for px, py in np.round((centre + around) / recipe.mpp).astype(int):
            window = eosin[
                max(py - half, 0) : py + half + 1, max(px - half, 0) : px + half + 1
            ]
            if window.shape == cell.shape:
                np.maximum(window, cell, out=window)


def _stain(
    haematoxylin: NDArray[np.uint8], eosin: NDArray[np.uint8], stain_seed: int
) -> NDArray[np.uint8]:
    """Beer-Lambert with the patient's stain, through a table over both planes."""
    rng = np.random.default_rng([stain_seed, 2])
    h_od = HAEMATOXYLIN_OD * rng.uniform(0.82, 1.18) * np.exp(rng.normal(0, 0.07, 3))
    e_od = EOSIN_OD * rng.uniform(0.75, 1.25) * np.exp(rng.normal(0, 0.09, 3))
    light = np.array([243.0, 242.0, 245.0]) + rng.normal(0, 3, 3)
    amount = np.arange(256)[:, None] / 255
    depth = (amount * h_od)[:, None, :] + (amount * e_od)[None, :, :]
    table = np.zeros((65536, 4), np.uint8)
    table[:, :3] = np.clip(light * np.exp(-depth), 0, 255).reshape(-1, 3)
    index = haematoxylin.astype(np.uint16)
    index <<= 8
    index |= eosin
    rgbx = np.take(table.view(np.uint32)[:, 0], index)
    return np.ascontiguousarray(rgbx.view(np.uint8).reshape(*index.shape, 4)[..., :3])


def _draw_pen(pixels: NDArray[np.uint8], rng: np.random.Generator) -> None:
    from PIL import ImageDraw

    height, width = pixels.shape[:2]
    step = 4
    canvas = Image.new("L", (width // step, height // step))
    colours = ((28, 58, 160), (24, 112, 70), (34, 32, 40), (170, 36, 44))
    colour = np.array(colours[int(rng.integers(len(colours)))], np.uint16)
    side = rng.uniform(0.02, 0.12) * canvas.width
    y = np.linspace(rng.uniform(0, 0.3), rng.uniform(0.6, 1), 12) * canvas.height
    x = side + rng.normal(0, 0.01, 12).cumsum() * canvas.width
    if rng.random() < 0.5:
        x = canvas.width - x
    ImageDraw.Draw(canvas).line(
        list(zip(x, y, strict=True)),
        fill=190,
        width=max(canvas.width // 48, 2),
        joint="curve",
    )
    left, top, right, bottom = (v * step for v in (canvas.getbbox() or (0, 0, 1, 1)))
    alpha = np.asarray(canvas.resize((width, height), Image.Resampling.BILINEAR))[
        top:bottom, left:right, None
    ].astype(np.uint16)
    window = pixels[top:bottom, left:right]
    window[:] = (window * (255 - alpha) + colour * alpha) >> 8


def _enlarged(
    plane: NDArray[np.float32], size_wh: tuple[int, int]
) -> NDArray[np.uint8]:
    image = Image.fromarray(np.clip(plane, 0, 255).astype(np.uint8))
    return np.asarray(image.resize(size_wh, Image.Resampling.BILINEAR))


def _tiled(
    tile: NDArray[np.int16], size_wh: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.int16]:
    """A periodic tile, turned and shifted at random, repeated over the slide."""
    if rng.random() < 0.5:
        tile = tile.T
    tile = np.roll(tile, rng.integers(0, tile.shape[0], 2), axis=(0, 1))
    side = tile.shape[0]
    repeats = -(-size_wh[1] // side), -(-size_wh[0] // side)
    return np.tile(tile, repeats)[: size_wh[1], : size_wh[0]]


@lru_cache(maxsize=4)
def _fibres(mpp: float) -> NDArray[np.int16]:
    """Periodic collagen texture, int16 about −128 … 128."""
    rng = np.random.default_rng(7)
    side = 1024
    ky, kx = np.fft.fftfreq(side)[:, None] / mpp, np.fft.rfftfreq(side)[None, :] / mpp
    spectrum = np.fft.rfft2(rng.normal(size=(side, side)))
    total = np.zeros((side, side))
    for turn in (0.2, 0.45):
        u, v = (
            kx * np.cos(turn) + ky * np.sin(turn),
            ky * np.cos(turn) - kx * np.sin(turn),
        )
        band = np.exp(-((u / 0.012) ** 2) - ((np.abs(v) - 0.09) / 0.07) ** 2)
        total += np.fft.irfft2(spectrum * band, s=(side, side))
    return np.asarray(np.clip(total / total.std() * 45, -128, 128), np.int16)


@lru_cache(maxsize=1)
def _grain() -> NDArray[np.int16]:
    """Sensor and section grain, periodic, int16 with a spread of about 12."""
    field = smooth_noise(
        np.random.default_rng(11), (512, 512), 2
    ) + np.random.default_rng(12).normal(0, 0.5, (512, 512))
    return np.clip(field * 12, -40, 40).astype(np.int16)
