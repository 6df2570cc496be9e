"""Lesion masks from a model: what the network sees, the threshold, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_msamil.config import SegmenterSpec
from napari_msamil.device import Precision, Runtime
from napari_msamil.lesion import find_lesion, lesion_probability, lesion_thumbnail
from napari_msamil.masks import MaskSource
from napari_msamil.models.segmenter import Segmenter
from napari_msamil.slide.array_slide import ArraySlide

CPU = Runtime("cpu", Precision.FP32, channels_last=False)
TINY = SegmenterSpec(
    encoder="tu-lcnet_035", decoder_channels=(16, 12, 8, 8, 8), size_px=64
)


class RednessNet(nn.Module):
    """Logit 0 is how red a pixel is, in steps of 255; logits 1 and 2 say yes everywhere."""

    def forward(self, pixels: Tensor) -> Tensor:
        logit = (pixels[:, :1].float() - 100) / 10
        return torch.cat(
            [logit, torch.full_like(logit, 9), torch.full_like(logit, 9)], 1
        )


def slide() -> ArraySlide:
    array = np.zeros((96, 160, 3), dtype=np.uint8)
    array[:48, :40, 0] = 255
    return ArraySlide(array, mpp=0.5)


def test_the_thumbnail_is_the_whole_slide_squeezed_into_a_square() -> None:
    seen = lesion_thumbnail(slide(), 32)
    assert seen.shape == (32, 32, 3)
    assert (seen[:15, :7, 0] > 250).all()
    assert (seen[17:, :, 0] < 5).all()


def test_the_first_channel_above_the_threshold_is_the_mask() -> None:
    spec = TINY.model_copy(update={"size_px": 64})
    found = find_lesion(slide(), RednessNet(), spec, CPU)  # type: ignore[arg-type]
    assert found.source is MaskSource.MODEL
    assert found.size_wh0 == (160, 96)
    assert found.mask[:31, :15].all()
    assert not found.mask[33:].any()
    assert found.fraction == pytest.approx(1 / 8, abs=0.02)
    assert found.probability is not None
    assert found.probability.dtype == np.float32
    assert found.probability[0, 0] == pytest.approx(1 / (1 + np.exp(-15.5)), rel=1e-5)
    strict = spec.model_copy(update={"threshold": 0.9999999})
    none = find_lesion(slide(), RednessNet(), strict, CPU)  # type: ignore[arg-type]
    assert not none.mask.any()


def test_a_network_in_training_stays_in_training_and_unchanged() -> None:
    network = Segmenter(TINY).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    pixels = lesion_thumbnail(slide(), 64)
    first = lesion_probability(pixels, network, CPU)
    again = lesion_probability(pixels, network, CPU)
    assert network.training
    assert np.array_equal(first, again)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_half_precision_gives_nearly_the_same() -> None:
    torch.manual_seed(0)
    network = Segmenter(TINY).eval()
    pixels = lesion_thumbnail(slide(), 64)
    full = lesion_probability(pixels, network, CPU)
    half = lesion_probability(
        pixels, network, Runtime("cpu", Precision.BF16, channels_last=True)
    )
    assert half.dtype == np.float32
    assert np.abs(full - half).max() < 0.03
