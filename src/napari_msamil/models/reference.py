"""A fixed input for every model: a checkpoint stores its logits, `msamil selftest` compares.

The pixels come from integer arithmetic alone, so that they are the same on every machine and in every version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.config import PatchSpec
    from napari_msamil.models.msamil import MsamilModel

REFERENCE_PATCHES = 7
"""Patches of the fixed input: a few of every scale, cheap enough for a paper-sized encoder on a CPU."""


def reference_pixels(size_px: int, count: int = REFERENCE_PATCHES) -> NDArray[np.uint8]:
    """Coloured waves and a hash of the place: uint8 (count, 3, size_px, size_px)."""
    y, x = np.mgrid[:size_px, :size_px].astype(np.int64)
    patches = []
    for i in range(count):
        waves = [np.abs((x * (i + 2) + y * (c + 1)) % 256 - 128) + 64 for c in range(3)]
        noise = (x * 7919 + y * 104_729 + x * y * (i + 31)) % 48
        patches.append(np.stack([np.clip(w + noise, 0, 255) for w in waves]))
    return np.stack(patches).astype(np.uint8)


def reference_places(spec: PatchSpec) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Coords (N, 2) in 0 … 1 and scale (N,) of the fixed input: coarse patches over a row of fine ones."""
    index = np.arange(REFERENCE_PATCHES)
    coords = np.stack([index / 8, (index % 3) / 4], axis=1).astype(np.float32)
    scale = np.minimum(index[::-1] // 3, len(spec.scales) - 1)
    return coords, scale.astype(np.int64)


@torch.inference_mode()
def reference_logits(model: MsamilModel) -> list[float]:
    """Logits for the fixed input in float32, in evaluation mode, where the model lies now.

    Patches go through the encoder one by one, so that no batch size changes a rounding.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    size_px = model.config.patches.scales[0].size_px
    pixels = torch.from_numpy(reference_pixels(size_px)).to(device)
    coords, scale = (
        torch.from_numpy(a).to(device)[None]
        for a in reference_places(model.config.patches)
    )
    features = torch.cat([model.encoder(p[None]).float() for p in pixels])[None]
    logits = model.aggregator(features, coords, scale).logits[0]
    model.train(was_training)
    return [float(value) for value in logits]
