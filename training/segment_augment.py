"""Changes of thumbnails during training: stain in the haematoxylin–eosin–DAB space, position, size.

Stain: the optical density is taken apart into three dyes (Ruifrok and Johnston 2001), each is scaled and shifted, and
put together again (Tellez et al. 2018). Geometry: one of eight positions, then stretched and moved; what comes in
from outside is unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from skimage.color import hed_from_rgb, rgb_from_hed
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from .segment_task import SegmentSpec

_LOWEST = 1.0 / 255


def changed(
    pixels: Tensor,
    positive: Tensor,
    known: Tensor,
    spec: SegmentSpec,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Change one thumbnail and what is known of it in the same way.

    Args:
        pixels: float (3, S, S), values 0 … 255.
        positive: bool (C, S, S).
        known: bool (C, S, S).
        spec: How much.
        rng: Generator of this visit.

    Returns:
        The three, changed.
    """
    if spec.stain:
        pixels = stain_jitter(pixels, spec.stain, rng)
    if spec.geometry:
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        pixels, positive, known = (
            _turned(plane, turns, flip) for plane in (pixels, positive, known)
        )
    if spec.stretch or spec.shift:
        pixels, positive, known = _warped(pixels, positive, known, spec, rng)
    return pixels, positive, known


def stain_jitter(pixels: Tensor, amount: float, rng: np.random.Generator) -> Tensor:
    """Scale and shift the amount of each dye.

    Args:
        pixels: float (3, H, W), values 0 … 255.
        amount: Largest relative change of a dye; shifts are a fifth of it.
        rng: Draws three factors and three shifts.

    Returns:
        float (3, H, W), values 0 … 255.
    """
    factor = 1 + rng.uniform(-amount, amount, 3)
    shift = rng.uniform(-amount, amount, 3) / 5 * np.log(1 / _LOWEST) / 10
    mixing = hed_from_rgb @ np.diag(factor) @ rgb_from_hed
    matrix = torch.as_tensor(mixing.T, dtype=pixels.dtype, device=pixels.device)
    offset = torch.as_tensor(
        shift @ rgb_from_hed, dtype=pixels.dtype, device=pixels.device
    )
    density = -torch.log((pixels / 255).clamp(_LOWEST, 1.0))
    mixed = torch.einsum("dc,chw->dhw", matrix, density) + offset[:, None, None]
    return (torch.exp(-mixed) * 255).clamp(0, 255)


def _turned(plane: Tensor, turns: int, flip: bool) -> Tensor:
    plane = torch.rot90(plane, turns, (1, 2))
    return plane.flip(2) if flip else plane


def _warped(
    pixels: Tensor,
    positive: Tensor,
    known: Tensor,
    spec: SegmentSpec,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Stretch each axis by its own factor and move; nearest neighbour for what is known."""
    stretch = np.exp(rng.uniform(-1, 1, 2) * np.log1p(spec.stretch))
    shift = rng.uniform(-spec.shift, spec.shift, 2) * 2
    theta = torch.tensor(
        [[1 / stretch[0], 0, shift[0]], [0, 1 / stretch[1], shift[1]]],
        dtype=torch.float32,
        device=pixels.device,
    )[None]
    size = [1, 1, *pixels.shape[1:]]
    field = functional.affine_grid(theta, size, align_corners=False)
    moved = functional.grid_sample(
        pixels[None].float(), field, padding_mode="border", align_corners=False
    )[0]
    planes = torch.cat([positive, known]).float()[None]
    sampled = functional.grid_sample(
        planes, field, mode="nearest", padding_mode="zeros", align_corners=False
    )[0]
    inside = sampled > 0.5
    return moved, inside[: len(positive)], inside[len(positive) :]
