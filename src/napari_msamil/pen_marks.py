"""Marks that people draw on the glass, told from stained tissue by the colours they absorb.

Haematoxylin, eosin and DAB all absorb green most or nearly most, and none spares one colour fully. Inks do: a red
pen lets red through and takes green and blue alike, a blue one spares blue, a green one spares green. The ratios
of the optical densities of the three channels say which it is, whatever the thickness of the mark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DENSE = 0.5
"""Optical density (natural logarithm) of a stroke; its soft rim is thinner and is found by growing."""
_THICK = 0.85
"""Density of ink that lets tissue shine through: as much as nuclei alone reach, but over the area of a stroke."""
_FAINT = 0.12
_BLACK_LEVEL = 90
_GREY_RANGE = 0.18


def pen_marks(
    density: NDArray[np.float32], pixels: NDArray[np.uint8], min_pixels: int
) -> NDArray[np.bool_]:
    """Pixels covered by pen.

    Args:
        density: float32 (H, W, 3), natural-log optical density against the glass, slightly smoothed.
        pixels: uint8 (H, W, 3), the picture itself.
        min_pixels: A stroke has at least this many pixels; smaller ones are blood cells or dust.

    Returns:
        bool (H, W).
    """
    found = np.zeros(density.shape[:2], dtype=np.bool_)
    for core, rim in _inks(density):
        seeds = _large_parts(core, min_pixels)
        if seeds.any():
            grown: NDArray[np.bool_] = ndimage.binary_propagation(
                seeds, mask=rim | seeds
            )
            found |= ndimage.binary_dilation(grown, iterations=2)
    return found | _black(pixels, min_pixels)


def _inks(
    density: NDArray[np.float32],
) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """A strict and a lenient rule per ink: green, teal, red, blue, yellow, grey.

    The bounds of thick ink lie between measured colours: the lesser of green and blue is 0.72 of the greater in H&E at
    most and 0.80 in red ink over tissue at least; haematoxylin with any eosin takes 0.91 as much red as green at most,
    blue ink 0.93 at least; the least channel is 0.71 of the greatest in stained tissue at most, in black ink 0.78.
    """
    red, green, blue = (density[..., i] for i in range(3))
    most = density.max(2)
    dense, thick, faint = most > _DENSE, most > _THICK, most > _FAINT
    others = np.minimum(red, blue)
    even = np.minimum(green, blue) / np.maximum(np.maximum(green, blue), 1e-6)
    neutral = density.min(2) / np.maximum(most, 1e-6)
    red_ink = dense & (red < 0.15 * most) & (even > 0.85)
    blue_ink = dense & (blue < 0.22 * most) & (red > 0.9 * green)
    return [
        (dense & (green < 0.8 * others), faint & (green < 0.92 * others)),
        # A green pen over tissue adds to what haematoxylin takes; what is left takes red above all.
        (
            dense & (red > 1.15 * green) & (blue > 0.5 * red),
            faint & (red > green) & (blue > 0.42 * red),
        ),
        (
            red_ink | (thick & (red < 0.31 * most) & (even > 0.77)),
            faint & (red < 0.33 * most) & (even > 0.75),
        ),
        (
            blue_ink | (thick & (blue < 0.38 * most) & (red > 0.93 * green)),
            faint & (blue < 0.35 * most) & (red > green),
        ),
        (
            dense & (red < 0.2 * blue) & (green < 0.2 * blue),
            faint & (red < 0.3 * blue) & (green < 0.3 * blue),
        ),
        (thick & (neutral > 0.77), dense & (neutral > 0.75)),
    ]


def _black(pixels: NDArray[np.uint8], min_pixels: int) -> NDArray[np.bool_]:
    """Dark and without colour: black pen, slide edges, the frame around a scan."""
    brightest, darkest = pixels.max(2).astype(np.float32), pixels.min(2)
    grey = (brightest - darkest) <= _GREY_RANGE * np.maximum(brightest, 40)
    core = _large_parts(grey & (brightest < _BLACK_LEVEL), min_pixels)
    grown: NDArray[np.bool_] = ndimage.binary_dilation(core, iterations=2)
    return grown


def _large_parts(mask: NDArray[np.bool_], min_pixels: int) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes >= min_pixels)[labels]
    return kept
