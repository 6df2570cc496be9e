"""Sprites of nuclei for synthetic H&E: small haematoxylin images that the painter stamps.

Two kinds of tumour nuclei differ only in what 20x shows: `smooth` nuclei are round and evenly stained, `vesicular`
ones vary in size, are irregular and pale with a dark rim and nucleoli. Their banks let through the same light, and the
radii are chosen so that the grain matches too where a pixel is 2 µm wide: mean colour and texture at 5x cannot tell
them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANK_SIZE = 48
OPTICAL_DEPTH = 1.5
"""Optical depth (base e) of haematoxylin 255 in the mean of the three channels."""


@dataclass(frozen=True)
class NucleusKind:
    """How one kind of nucleus looks; lengths in µm, shares 0 … 1.

    Attributes:
        radius_um: Mean radius.
        size_spread: Standard deviation of the radius as a share of it.
        stretch: Largest ratio of long to short axis.
        wobble: Irregularity of the outline as a share of the radius.
        interior: Staining of the interior relative to the rim.
        rim_um: Width of the dark rim; 0 is none.
        nucleoli: Largest number of nucleoli.
        darkness: Haematoxylin of the darkest part, 0 … 255.
        match: Kind whose transmitted light this bank is scaled to, or empty.
    """

    radius_um: float
    size_spread: float
    stretch: float
    wobble: float
    interior: float
    rim_um: float
    nucleoli: int
    darkness: float
    match: str = ""


KINDS = {
    "smooth": NucleusKind(4.0, 0.08, 1.2, 0.012, 1.0, 0.0, 0, 170.0),
    "vesicular": NucleusKind(3.7, 0.18, 1.5, 0.05, 0.5, 0.8, 2, 220.0, match="smooth"),
    "lymphocyte": NucleusKind(2.9, 0.08, 1.1, 0.03, 1.0, 0.0, 0, 205.0),
    "spindle": NucleusKind(2.6, 0.15, 4.0, 0.03, 1.0, 0.0, 0, 150.0),
}


@lru_cache(maxsize=16)
def nucleus_bank(kind: str, mpp: float) -> tuple[NDArray[np.uint8], ...]:
    """Sprites of one kind at one resolution.

    Args:
        kind: Key of `KINDS`.
        mpp: µm per pixel of the slide.

    Returns:
        `BANK_SIZE` square uint8 images of odd side; 0 is no haematoxylin.
    """
    spec = KINDS[kind]
    rng = np.random.default_rng([20261121, sorted(KINDS).index(kind)])
    raw = [_draw(spec, rng, mpp) for _ in range(BANK_SIZE)]
    if spec.match:
        target = _light_lost(nucleus_bank(spec.match, mpp))
        raw = _scaled_to(raw, target)
    return tuple(np.clip(s, 0, 255).astype(np.uint8) for s in raw)


def mean_haematoxylin_um2(kind: str, mpp: float) -> float:
    """Haematoxylin of one nucleus summed over its area, in units · µm²."""
    return (
        float(np.mean([s.sum(dtype=np.float64) for s in nucleus_bank(kind, mpp)]))
        * mpp**2
    )


def _draw(
    spec: NucleusKind, rng: np.random.Generator, mpp: float
) -> NDArray[np.float64]:
    radius = spec.radius_um * float(np.clip(rng.normal(1, spec.size_spread), 0.5, 1.6))
    stretch = float(rng.uniform(1, spec.stretch))
    axes = radius * np.sqrt(stretch), radius / np.sqrt(stretch)
    half = int(np.ceil((axes[0] * (1 + 2 * spec.wobble) + 1.0) / mpp))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * mpp
    turn = rng.uniform(0, np.pi)
    u, v = (
        (x * np.cos(turn) + y * np.sin(turn)) / axes[0],
        (y * np.cos(turn) - x * np.sin(turn)) / axes[1],
    )
    angle = np.arctan2(v, u)
    waves = sum(
        rng.normal(0, spec.wobble) * np.cos(k * angle + rng.uniform(0, 6.3))
        for k in (2, 3, 5)
    )
    inside_um = (1 + waves - np.hypot(u, v)) * radius
    body = _step(inside_um)
    stain = np.full_like(body, spec.interior)
    if spec.rim_um:
        stain += (1 - spec.interior) * (1 - _step(inside_um - spec.rim_um))
    for _ in range(int(rng.integers(1, spec.nucleoli + 1)) if spec.nucleoli else 0):
        centre = rng.uniform(-0.4, 0.4, 2) * radius
        spot = _step(rng.uniform(0.9, 1.3) - np.hypot(x - centre[0], y - centre[1]))
        stain = np.maximum(stain, spot)
    grain = 1 + rng.normal(0, 0.06, body.shape)
    return np.asarray(body * stain * grain * spec.darkness * rng.uniform(0.9, 1.1))


def _step(distance_um: NDArray[np.float64]) -> NDArray[np.float64]:
    """Soft edge 0.8 µm wide: 0 outside, 1 inside."""
    return np.clip(distance_um / 0.8 + 0.5, 0, 1)


def _light_lost(
    bank: tuple[NDArray[np.uint8], ...] | list[NDArray[np.float64]],
) -> float:
    return float(
        np.mean([(1 - np.exp(s * (-OPTICAL_DEPTH / 255))).sum() for s in bank])
    )


def _scaled_to(
    bank: list[NDArray[np.float64]], target: float
) -> list[NDArray[np.float64]]:
    low, high = 0.2, 3.0
    for _ in range(30):
        gain = (low + high) / 2
        if _light_lost([np.clip(s * gain, 0, 255) for s in bank]) < target:
            low = gain
        else:
            high = gain
    return [s * low for s in bank]
