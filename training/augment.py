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


def augment(pixels: Tensor, spec: AugmentSpec, generator: torch.Generator) -> Tensor:
    """Change the patches of one visit.

    Args:
        pixels: uint8 (N, 3, H, W).
        spec: What and how much.
        generator: A generator on the CPU; it alone decides, whatever the device.

    Returns:
        uint8 (N, 3, H, W) on the same device.
    """
    if spec.geometry:
        pixels = turn_and_flip(pixels, generator)
    if spec.stain or spec.brightness or spec.noise:
        pixels = change_density(pixels, spec, generator)
    return pixels


def turn_and_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each patch in one of its eight positions."""
    position = torch.randint(0, 8, (len(pixels),), generator=generator)
    turned = torch.empty_like(pixels)
    for kind in range(8):
        index = (position == kind).nonzero().squeeze(1).to(pixels.device)
        if len(index):
            part = torch.rot90(pixels[index], kind % 4, (2, 3))
            turned[index] = part.flip(3) if kind >= 4 else part
    return turned


def change_density(
    pixels: Tensor, spec: AugmentSpec, generator: torch.Generator
) -> Tensor:
    """Scale the optical density: one factor per channel, one more per patch; then add noise."""
    count = len(pixels)
    channel = 1 + spec.stain * (2 * torch.rand(1, 3, 1, 1, generator=generator) - 1)
    patch = 1 + spec.brightness * (
        2 * torch.rand(count, 1, 1, 1, generator=generator) - 1
    )
    factor = (channel * patch).to(pixels.device)
    changed = 255 * ((pixels.float() + 1) / 256) ** factor
    if spec.noise:
        noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
        changed += spec.noise * noise
    return changed.round_().clamp_(0, 255).to(torch.uint8)
