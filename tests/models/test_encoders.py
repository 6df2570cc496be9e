from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from napari_msamil.config import EncoderSpec, paper_config, small_config
from napari_msamil.errors import ConfigError
from napari_msamil.models import build_encoder
from napari_msamil.models.msfem import MSFEM

if TYPE_CHECKING:
    from napari_msamil.models.patch_encoder import PatchEncoder

SMALL = EncoderSpec(backbone="lcnet_050", dim=24, layers=2, heads=3, ffn=32, grid=3)


def encoder(spec: EncoderSpec = SMALL) -> PatchEncoder:
    torch.manual_seed(0)
    return build_encoder(spec).eval()


def pixels(height: int = 96, width: int = 96, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator
    )


def test_uint8_and_float_pixels_give_the_same_feature() -> None:
    model = encoder()
    torch.testing.assert_close(model(pixels()), model(pixels().float()), rtol=0, atol=0)


def test_normalisation_is_that_of_the_configuration_and_not_part_of_the_state() -> None:
    model = encoder()
    red = model.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))[0, 0, 0, 0]
    assert red.item() == pytest.approx((1 - 0.485) / 0.229, rel=1e-5)
    assert not any(
        k.endswith(("mean", "std")) and "bn" not in k for k in model.state_dict()
    )


def test_a_patch_has_the_same_feature_alone_and_in_a_batch() -> None:
    model = encoder()
    together = model(pixels())
    torch.testing.assert_close(
        together[1:2], model(pixels()[1:2]), atol=1e-5, rtol=1e-4
    )


def test_channels_last_gives_the_same_feature() -> None:
    model = encoder()
    exact = model(pixels())
    model = model.to(memory_format=torch.channels_last)
    last = model(pixels().contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, exact, atol=1e-4, rtol=1e-3)


def test_bfloat16_autocast_keeps_the_direction_of_the_feature() -> None:
    model = encoder()
    exact = model(pixels())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(pixels())
    assert torch.cosine_similarity(exact, rough.float()).min() > 0.99


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (100, 70)])
def test_positions_are_interpolated_for_other_patch_sizes(
    height: int, width: int
) -> None:
    assert encoder()(pixels(height, width)).shape == (3, 24)


def test_positions_are_untouched_at_the_size_they_were_made_for() -> None:
    model = encoder()
    assert isinstance(model, MSFEM)
    assert model._positions_for(3, 3) is model.positions
    wide = model._positions_for(3, 5)
    assert wide.shape == (1, 16, 24)
    torch.testing.assert_close(wide[:, 0], model.positions[:, 0])


def test_token_order_matters_through_the_positions() -> None:
    model = encoder()
    assert isinstance(model, MSFEM)
    images = pixels()
    feature_map = torch.randn(3, model.backbone.channels, 3, 3)
    model.backbone.forward = lambda _: feature_map
    plain = model(images)
    feature_map = feature_map.flip(-1)
    assert (model(images) - plain).abs().max() > 1e-3
    torch.nn.init.zeros_(model.positions)
    unplaced = model(images)
    feature_map = feature_map.flip(-1)
    torch.testing.assert_close(model(images), unplaced)


@pytest.mark.parametrize("project", ["before", "after"])
def test_gradients_reach_every_parameter(project: str) -> None:
    spec = SMALL.model_copy(update={"project": project, "heads": 2})
    model = encoder(spec).train()
    model(pixels(64, 64, 4)).square().sum().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


def test_the_paper_preset_has_the_papers_sizes() -> None:
    model = build_encoder(paper_config("p", ("a", "b")).encoder)
    assert isinstance(model, MSFEM)
    assert model.backbone.channels == 1536
    assert model.positions.shape == (1, 257, 512)
    assert sum(p.numel() for p in model.backbone.parameters()) == 10_696_232
    assert sum(p.numel() for p in model.layers.parameters()) == 2 * 3_152_384


def test_the_small_preset_differs_only_in_sizes() -> None:
    paper, small = (
        build_encoder(f("p", ("a", "b")).encoder) for f in (paper_config, small_config)
    )
    parts = {k.split(".")[0] for k, _ in paper.named_parameters()}
    assert parts == {k.split(".")[0] for k, _ in small.named_parameters()}


def test_resnet50_cut_behind_its_third_stage_gives_the_mean_of_a_1024_channel_map() -> (
    None
):
    model = encoder(
        EncoderSpec(kind="timm", backbone="resnet50", out_stage=3, dim=1024)
    )
    x = pixels(64, 64, 2)
    feature_map = model.backbone(model.normalise(x))
    assert feature_map.shape == (2, 1024, 4, 4)
    torch.testing.assert_close(model(x), feature_map.mean((2, 3)))
    assert not any("layer4" in k for k in model.state_dict())


def test_pooled_features_of_networks_and_transformers() -> None:
    convolutional = encoder(EncoderSpec(kind="timm", backbone="lcnet_050", dim=1280))
    assert convolutional(pixels(64, 64)).shape == (3, 1280)
    vit = EncoderSpec(kind="timm", backbone="test_vit", dim=64)
    assert encoder(vit)(pixels(160, 160, 2)).shape == (2, 64)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (EncoderSpec(kind="timm", backbone="resnet18", dim=77), "dim = 512"),
        (
            EncoderSpec(kind="timm", backbone="resnet18", out_stage=2, dim=77),
            "dim = 128",
        ),
        (EncoderSpec(backbone="efficientnet_b99"), "timm knows no network"),
        (SMALL.model_copy(update={"heads": 5}), "heads"),
        (SMALL.model_copy(update={"out_stage": 17}), "timm cannot build"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(
    spec: EncoderSpec, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        build_encoder(spec)


def test_pixels_of_another_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match="B, 3, H, W"):
        encoder()(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))


def test_a_network_without_a_map_is_refused_by_msfem() -> None:
    spec = SMALL.model_copy(update={"backbone": "test_vit"})
    with pytest.raises(ConfigError, match="kind 'timm'"):
        build_encoder(spec)(pixels(160, 160))
