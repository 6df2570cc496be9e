"""Norms folded into convolutions: the features stay, and where they would not, the network stays."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.config import EncoderSpec
from napari_msamil.models import build_encoder
from napari_msamil.models.folding import ready_for_inference

SIZE = 40
Net = TypeVar("Net", bound=nn.Module)


def trained(net: Net, seed: int = 0) -> Net:
    """Statistics and weights of norms as after a training, so that leaving one out changes the answer."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.7, 1.4),
                (module.bias.data, -0.3, 0.3),
            ):
                assert value is not None
                value.uniform_(low, high)
    return net.eval()


def norms(net: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())


def pixels(count: int = 2) -> Tensor:
    made = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=made).byte()


@pytest.mark.parametrize(
    ("backbone", "dim"),
    [
        ("test_byobnet", 256),
        ("test_efficientnet", 256),
        ("resnet10t", 512),
        ("lcnet_035", 1280),
    ],
)
def test_all_norms_are_folded_and_the_features_stay(backbone: str, dim: int) -> None:
    spec = EncoderSpec(kind="timm", backbone=backbone, dim=dim)
    net = trained(build_encoder(spec))
    ready = ready_for_inference(net, SIZE, None)
    assert norms(net) > 0
    assert norms(ready) == 0
    with torch.no_grad():
        expected, found = net(pixels()), ready(pixels())
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)


def test_weights_cast_once_give_the_bits_of_autocast() -> None:
    spec = EncoderSpec(backbone="test_byobnet", out_stage=2, dim=32, heads=4, ffn=64)
    net = build_encoder(spec).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    ready = ready_for_inference(net, SIZE, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ready(pixels()), net(pixels()))
    weights = [m.weight for m in ready.modules() if type(m) in (nn.Conv2d, nn.Linear)]
    assert weights
    assert all(w.dtype == torch.bfloat16 for w in weights)


class ConvNorm(nn.Module):
    """One convolution and one norm, with what the subclass does between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.conv(images.float() / 255)).mean((2, 3))

    def after(self, made: Tensor) -> Tensor:
        found: Tensor = self.norm(made)
        return found


class UsesTheMapBetween(ConvNorm):
    def after(self, made: Tensor) -> Tensor:
        found: Tensor = made + self.norm(made)
        return found


class AsksItsNorm(ConvNorm):
    def after(self, made: Tensor) -> Tensor:
        found: Tensor = self.norm(made) * self.norm.eps
        return found


class SharesTheNorm(ConvNorm):
    def after(self, made: Tensor) -> Tensor:
        found: Tensor = self.norm(made) + self.norm(made.relu())
        return found


class ChangesItsWeights(ConvNorm):
    def __init__(self) -> None:
        super().__init__()

        class Standardised(nn.Conv2d):
            def forward(self, images: Tensor) -> Tensor:
                return F.conv2d(images, self.weight / self.weight.std(), self.bias)

        self.conv = Standardised(3, 5, 3)


class NormFirst(ConvNorm):
    def forward(self, images: Tensor) -> Tensor:
        x = images.float() / 255
        found: Tensor = self.norm(self.conv(x).relu()).mean((2, 3))
        return found


@pytest.mark.parametrize(
    "kind",
    [UsesTheMapBetween, AsksItsNorm, SharesTheNorm, ChangesItsWeights, NormFirst],
)
def test_a_network_that_cannot_be_folded_is_left_as_it_is(
    kind: type[ConvNorm],
) -> None:
    net = trained(kind())
    ready = ready_for_inference(net, SIZE, None)
    assert norms(ready) == 1
    with torch.no_grad():
        assert torch.equal(ready(pixels()), net(pixels()))


def test_the_copy_is_kept_until_a_weight_changes() -> None:
    net = trained(ConvNorm())
    first = ready_for_inference(net, SIZE, None)
    assert ready_for_inference(net, SIZE, None) is first
    with torch.no_grad():
        net.conv.weight.add_(1)
    second = ready_for_inference(net, SIZE, None)
    assert second is not first
    with torch.no_grad():
        torch.testing.assert_close(second(pixels()), net(pixels()))


def test_the_original_is_not_touched() -> None:
    net = trained(ConvNorm())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    ready_for_inference(net, SIZE, torch.bfloat16)
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert norms(net) == 1
