"""Four memory modes, one gradient: equal to the un-chunked step in float64 to 1e-12."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from napari_msamil.errors import ConfigError
from training.gradients import (
    MODES,
    StepPlan,
    backward,
    check_batchnorm,
    early_stages,
    encode,
    set_batchnorm,
)


class ToyNet(nn.Module):
    """A small CNN with BatchNorm, laid out in stages like timm's."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 4, 3, 2)
        widths = (4, 6, 5, 7)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, padding=1),
                    nn.BatchNorm2d(b),
                    nn.SiLU(),
                    nn.Dropout(dropout),
                )
                for a, b in itertools.pairwise(widths)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.blocks(self.conv_stem(x)).mean((2, 3)))


def _toy(dropout: float = 0.0) -> ToyNet:
    torch.manual_seed(3)
    net = ToyNet(dropout).double()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.3)
            layer.running_mean.normal_()  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return net.train()


def _loss_of(head: nn.Linear) -> Any:
    """A loss that mixes all instances, so that chunks cannot be independent by luck."""

    def loss(features: Tensor) -> Tensor:
        share = torch.softmax(features.sum(1), 0)
        return torch.nn.functional.cross_entropy(
            head((share[:, None] * features).sum(0)[None]), torch.tensor([1])
        )

    return loss


def _run(
    mode: str, chunk: int, *, dropout: float = 0.0, frozen: bool = True
) -> tuple[Tensor, list[Tensor], ToyNet]:
    net = _toy(dropout)
    set_batchnorm(net, frozen=frozen)
    torch.manual_seed(11)
    head = nn.Linear(7, 3).double()
    pixels = torch.randn(13, 3, 11, 9, dtype=torch.float64)
    torch.manual_seed(5)
    loss = backward(net, pixels, _loss_of(head), StepPlan(mode, chunk))
    grads = [p.grad for p in (*net.parameters(), *head.parameters())]
    assert all(g is not None for g in grads)
    return loss, [g for g in grads if g is not None], net


@pytest.mark.parametrize("mode", [m for m in MODES if m != "none"])
@pytest.mark.parametrize("chunk", [1, 4, 13, 50])
def test_every_mode_gives_the_direct_gradient(mode: str, chunk: int) -> None:
    wanted_loss, wanted, _ = _run("none", 4)
    loss, grads, _ = _run(mode, chunk)
    assert abs(float(loss - wanted_loss)) < 1e-12
    for found, right in zip(grads, wanted, strict=True):
        assert float((found - right).abs().max()) < 1e-12


@pytest.mark.parametrize("mode", ["chunked", "two-pass"])
def test_dropout_is_replayed_when_a_chunk_is_encoded_again(mode: str) -> None:
    loss, grads, _ = _run(mode, 4, dropout=0.5)
    net = _toy(0.5)
    set_batchnorm(net, frozen=True)
    torch.manual_seed(11)
    head = nn.Linear(7, 3).double()
    pixels = torch.randn(13, 3, 11, 9, dtype=torch.float64)
    torch.manual_seed(5)
    plan = StepPlan("none")
    features = torch.cat([encode(net, part, plan) for part in torch.split(pixels, 4)])
    direct = _loss_of(head)(features)
    direct.backward()
    assert abs(float(loss - direct.detach())) < 1e-12
    for found, p in zip(grads, (*net.parameters(), *head.parameters()), strict=True):
        assert p.grad is not None
        assert float((found - p.grad).abs().max()) < 1e-12


def test_recomputing_leaves_the_generator_where_the_direct_step_does() -> None:
    after = []
    for mode in ("chunked", "two-pass"):
        _run(mode, 4, dropout=0.5)
        after.append(torch.rand(1))
    assert torch.equal(after[0], after[1])


def test_batch_statistics_break_chunks_and_running_averages() -> None:
    """The documented trap: another gradient, and running statistics moved once per chunk and pass."""
    _, wanted, direct = _run("none", 4, frozen=False)
    _, grads, chunked = _run("chunked", 4, frozen=False)
    assert (
        max(float((a - b).abs().max()) for a, b in zip(grads, wanted, strict=True))
        > 1e-6
    )
    counts = [m.blocks[0][1].num_batches_tracked.item() for m in (direct, chunked)]  # type: ignore[union-attr,index]
    assert counts[0] == 1
    assert counts[1] == 8


def test_frozen_statistics_do_not_move() -> None:
    _, _, net = _run("chunked", 4)
    assert torch.equal(net.blocks[0][1].running_mean, _toy().blocks[0][1].running_mean)  # type: ignore[index,union-attr]


def test_the_trap_is_refused_unless_confirmed() -> None:
    with pytest.raises(ConfigError, match="allow_batchnorm_trap"):
        check_batchnorm("batch", "chunked", allowed=False)
    check_batchnorm("batch", "chunked", allowed=True)
    check_batchnorm("batch", "none", allowed=False)
    check_batchnorm("frozen", "two-pass", allowed=False)


def test_selective_mode_puts_the_forwards_back() -> None:
    _, _, net = _run("selective", 4)
    assert all("forward" not in vars(stage) for stage in net.blocks)
    assert len(early_stages(net)) == 2


def test_selective_mode_needs_known_stages() -> None:
    with pytest.raises(ConfigError, match="two-pass"):
        early_stages(nn.Linear(2, 2))


def test_recomputing_modes_save_less_than_the_direct_step() -> None:
    saved = {}
    for mode in MODES:
        total = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal total
            total += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            _run(mode, 4)
        saved[mode] = total
    assert saved["selective"] != saved["none"]


@pytest.mark.parametrize("backbone", ["lcnet_050", "resnet10t", "convnext_atto"])
def test_real_backbones_give_the_same_gradient_selectively(backbone: str) -> None:
    from napari_msamil.config import EncoderSpec
    from napari_msamil.models import build_encoder

    spec = EncoderSpec(
        backbone=backbone, dim=8, layers=1, heads=2, ffn=8, grid=2, dropout=0.0
    )
    pixels = torch.rand(5, 3, 64, 64, dtype=torch.float64) * 255
    found = {}
    for mode in MODES:
        torch.manual_seed(0)
        encoder = build_encoder(spec).double().train()
        set_batchnorm(encoder, frozen=True)
        backward(
            encoder, pixels, lambda f: f.square().mean(0).log().sum(), StepPlan(mode, 2)
        )
        found[mode] = torch.cat(
            [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        )
    for mode in MODES:
        scale = found["none"].abs().max()
        assert float((found[mode] - found["none"]).abs().max() / scale) < 1e-12
