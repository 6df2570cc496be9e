"""The UNet++ of SFFM: shapes, normalisation inside, any size, and clear refusals."""

from __future__ import annotations

import pytest
import torch

from napari_msamil.config import SegmenterSpec
from napari_msamil.errors import ConfigError
from napari_msamil.models import build_segmenter
from napari_msamil.models.segmenter import Segmenter

TINY = SegmenterSpec(
    encoder="tu-lcnet_035", decoder_channels=(16, 12, 8, 8, 8), size_px=64
)


@pytest.fixture(scope="module")
def tiny() -> Segmenter:
    torch.manual_seed(3)
    return build_segmenter(TINY).eval()


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("side", [(64, 64), (33, 97), (5, 31)])
def test_logits_have_one_channel_per_class_and_the_size_of_the_picture(
    tiny: Segmenter, side: tuple[int, int]
) -> None:
    with torch.inference_mode():
        logits = tiny(pixels(2, 3, *side))
    assert logits.shape == (2, 3, *side)
    assert logits.dtype == torch.float32


def test_normalisation_lies_inside(tiny: Segmenter) -> None:
    image = pixels(1, 3, 64, 64)
    mean = torch.tensor(TINY.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(TINY.std).reshape(1, 3, 1, 1)
    with torch.inference_mode():
        expected = tiny.net((image / 255 - mean) / std)
        found = tiny(image.to(torch.uint8))
    torch.testing.assert_close(found, expected)
    assert not {"mean", "std"} & set(tiny.state_dict())


def test_one_channel_models_are_accepted() -> None:
    spec = TINY.model_copy(update={"channels": ("lesion",)})
    with torch.inference_mode():
        assert build_segmenter(spec).eval()(pixels(1, 3, 32, 32)).shape[1] == 1


def test_weights_go_through_a_state_dict(tiny: Segmenter) -> None:
    other = Segmenter(TINY).eval()
    other.load_state_dict(tiny.state_dict())
    with torch.inference_mode():
        image = pixels(1, 3, 64, 64)
        assert torch.equal(other(image), tiny(image))


def test_the_decoder_is_unet_plus_plus(tiny: Segmenter) -> None:
    """Nested skip connections: node X(i, j) exists for every i + j below the depth."""
    blocks = set(dict(tiny.net.decoder.blocks.named_children()))
    assert blocks == {
        *(f"x_{i}_{j}" for j in range(4) for i in range(j + 1)),
        "x_0_4",
    }


@pytest.mark.parametrize("name", ["no-such-net", "tu-no_such_net"])
def test_an_unknown_encoder_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        build_segmenter(TINY.model_copy(update={"encoder": name}))


def test_a_wrong_shape_is_refused(tiny: Segmenter) -> None:
    with pytest.raises(ConfigError, match=r"\(1, 4, 32, 32\)"):
        tiny(torch.zeros(1, 4, 32, 32))
