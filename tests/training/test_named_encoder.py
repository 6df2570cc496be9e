"""Encoders by timm name: the supplementary's features."""

from __future__ import annotations

import pytest
import torch

from napari_msamil.errors import ConfigError
from training.config import read_recipe
from training.named_encoder import is_named_encoder, load_named_encoder


def test_supplementary_features_are_1024_values_of_the_third_stage() -> None:
    raw = read_recipe("mhim-abmil-camelyon16")
    loaded = load_named_encoder("timm:", raw, pretrained=False)
    spec = loaded.config.patches.scales
    assert [(s.mpp, s.size_px) for s in spec] == [(0.5, 256)]
    assert loaded.config.patches.strategy == "tissue"
    pixels = torch.full((2, 3, 64, 64), 128.0)
    with torch.inference_mode():
        assert loaded.model.encoder(pixels).shape == (2, 1024)
    names = {k.split(".")[1] for k in loaded.model.encoder.state_dict()}
    assert not any("layer4" in k for k in loaded.model.encoder.state_dict()), names


def test_another_backbone_needs_its_width() -> None:
    raw = read_recipe(
        "mhim-abmil-camelyon16",
        ["model.encoder.dim=128", "model.aggregator.in_dim=128"],
    )
    with pytest.raises(ConfigError, match="256 values"):
        load_named_encoder("timm:resnet18", raw, pretrained=False)


def test_only_timm_names_are_taken() -> None:
    assert is_named_encoder("timm:resnet50")
    assert not is_named_encoder("model.safetensors")
    with pytest.raises(ConfigError, match="kind"):
        load_named_encoder(
            "timm:resnet18", {"model": {"preset": "small"}}, pretrained=False
        )
