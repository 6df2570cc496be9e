"""Changes of patches during training, on the device, on uint8: stain per slide visit, the rest per patch.

Stain is changed where it is made: in optical density, one factor per colour channel for the whole visit, so that the
patches of one slide keep one stain as they do in life (Beer-Lambert: density is proportional to the dye).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .config import AugmentSpec

_ALL = slice(None)


def augment(
    pixels: Tensor,
    spec: AugmentSpec,
    generator: torch.Generator,
    count: int | None = None,
    part: slice = _ALL,
) -> Tensor:
    """Change the patches of one visit.

    Args:
        pixels: uint8 (M, 3, H, W), the patches `part` of a draw.
        spec: What and how much.
        generator: A generator on the CPU; it alone decides, whatever the device.
        count: Patches of the whole draw; None: these are all.
        part: Which of them these are. A patch is changed alike whatever else is given.

    Returns:
        uint8 (M, 3, H, W) on the same device.
    """
    count = len(pixels) if count is None else count
    if spec.geometry:
        position = torch.randint(0, 8, (count,), generator=generator)
        pixels = turn_and_flip(pixels, position[part])
    if spec.stain or spec.brightness:
        channel = _around_one((1, 3, 1, 1), spec.stain, generator)
        patch = _around_one((count, 1, 1, 1), spec.brightness, generator)
        pixels = change_density(pixels, channel * patch[part])
    if spec.noise:
        noise = torch.randn((count, *pixels.shape[1:]), generator=generator)[part]
        noisy = pixels.float() + spec.noise * noise.to(pixels.device)
        pixels = noisy.round_().clamp_(0, 255).to(torch.uint8)
    return pixels


def turn_and_flip(pixels: Tensor, position: Tensor) -> Tensor:
    """Each patch (M, 3, H, W) in one of its eight positions: int64 (M,), 0 … 7."""
    turned = torch.empty_like(pixels)
    for kind in range(8):
        index = (position == kind).nonzero().squeeze(1).to(pixels.device)
        if len(index):
            part = torch.rot90(pixels[index], kind % 4, (2, 3))
            turned[index] = part.flip(3) if kind >= 4 else part
    return turned


def change_density(pixels: Tensor, factor: Tensor) -> Tensor:
    """Scale the optical density of uint8 pixels (M, 3, H, W) by factors (M, 3, 1, 1)."""
    changed = 256 * ((pixels.float() + 1) / 256) ** factor.to(pixels.device) - 1
    return changed.round_().clamp_(0, 255).to(torch.uint8)


def _around_one(
    shape: tuple[int, ...], reach: float, generator: torch.Generator
) -> Tensor:
    return 1 + reach * (2 * torch.rand(shape, generator=generator) - 1)
