"""Lesion masks from a model: what the network sees, the threshold, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_msamil.config import SegmenterSpec, TissueSpec
from napari_msamil.device import Precision, Runtime
from napari_msamil.lesion import (
    find_lesion,
    lesion_probability,
    lesion_thumbnail,
    painted_over,
)
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


class BluenessNet(nn.Module):
    """Logit 0 is how much more blue than red a pixel is; it also keeps what it saw."""

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen = pixels
        return (pixels[:, 2:] - pixels[:, :1].float() - 60) / 5


def marked_slide() -> ArraySlide:
    """Pink tissue on glass, 3840 × 2560 µm, with a blue stroke half on the tissue, half on glass."""
    array = np.full((160, 240, 3), (243, 241, 244), dtype=np.uint8)
    array[20:140, 20:150] = (222, 160, 200)
    array[70:80, 100:220] = (28, 58, 160)
    return ArraySlide(array, mpp=16.0)


def test_a_pen_stroke_is_painted_over_and_never_lesion() -> None:
    network = BluenessNet()
    spec = TINY.model_copy(update={"size_px": 128})
    found = find_lesion(marked_slide(), network, spec, CPU)  # type: ignore[arg-type]
    assert not found.mask.any()
    assert found.probability is not None
    assert (found.probability[56:64, 54:117] == 0).all()
    seen = network.seen[0].permute(1, 2, 0).numpy()
    assert np.abs(seen[58:62, 60:70] - np.array((222, 160, 200))).max() <= 3
    assert np.abs(seen[58:62, 95:115] - np.array((243, 241, 244))).max() <= 3
    stays = TissueSpec(remove_pen=False)
    raw = find_lesion(marked_slide(), network, spec, CPU, tissue=stays)  # type: ignore[arg-type]
    assert raw.mask[57:63, 55:115].all()


def test_a_slide_that_is_mostly_ink_coloured_is_a_stain_not_a_pen() -> None:
    array = np.full((160, 240, 3), (243, 241, 244), dtype=np.uint8)
    array[10:150, 10:230] = (28, 58, 160)
    spec = TINY.model_copy(update={"size_px": 128})
    found = find_lesion(ArraySlide(array, mpp=16.0), BluenessNet(), spec, CPU)  # type: ignore[arg-type]
    assert found.fraction == pytest.approx(140 * 220 / (160 * 240), abs=0.02)


def test_painting_over_takes_the_nearest_colour_and_leaves_the_rest() -> None:
    pixels = np.zeros((3, 7, 3), dtype=np.uint8)
    pixels[:] = np.arange(7)[None, :, None] * 10
    pen = np.zeros((3, 7), dtype=np.bool_)
    pen[:, 2:5] = True
    found = painted_over(pixels, pen)
    assert found[1, :, 0].tolist()[:3] == [0, 10, 10]
    assert found[1, :, 0].tolist()[4:] == [50, 50, 60]
    assert painted_over(pixels, np.zeros_like(pen)) is pixels


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
