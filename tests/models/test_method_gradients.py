"""What each parameter of each method learns from: in float64, where a gradient below 1e-13 is a rounding error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_msamil.config import AggregatorSpec
from napari_msamil.models import AGGREGATORS, build_aggregator

from .test_aggregators import CLASSES, IN_DIM, bag

if TYPE_CHECKING:
    from napari_msamil.models.base import Aggregator

NOTHING = 1e-13
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "abmil": ("abmil", {}),
    "abmil of mhim": ("abmil", {"gated": False, "activation": "relu", "bias": False}),
    "clam_sb": ("clam_sb", {}),
    "clam_mb subtyping svm": ("clam_mb", {"subtyping": True, "instance_loss": "svm"}),
    "csmil": ("csmil", {}),
    "csmil softmax": ("csmil", {"scale_softmax": True}),
    "dasmil": ("dasmil", {"hidden": 20, "distill": 0.5}),
    "dsmil": ("dsmil", {}),
    "dsmil values": ("dsmil", {"hidden": 32, "value": True}),
    "dtfd": ("dtfd", {}),
    "dtfd maxs": ("dtfd", {"distill": "maxs"}),
    "dtfd maxmins": ("dtfd", {"distill": "maxmins"}),
    "iaam": ("iaam", {}),
    "iaam residual": ("iaam", {"residual": True, "layers": 2, "dim": 16, "heads": 4}),
    "iaam normalised": ("iaam", {"gate": "normalised"}),
    "iaam softmax": ("iaam", {"gate": "softmax"}),
    "mambamil": ("mambamil", {"hidden": 16, "state": 4}),
    "milbooster": ("milbooster", {}),
    "transmil": ("transmil", {"hidden": 64}),
    "transmil of mhim": ("transmil", {"hidden": 64, "square": "ppeg"}),
    "transmil segments": ("transmil", {"hidden": 64, "landmark_kind": "segments"}),
}

# the same number on all scores, or on all gates, changes no softmax
BEFORE_A_SOFTMAX: dict[str, set[str]] = {
    "abmil": {"scores.w.bias"},
    "clam_sb": {"scores.w.bias"},
    "clam_mb subtyping svm": {"scores.w.bias"},
    "csmil": {"cluster_scores.2.bias"},
    "csmil softmax": {"cluster_scores.2.bias", "scale_scores.2.bias"},
    "dtfd": {"tier1.scores.w.bias", "tier2.scores.w.bias"},
    "dtfd maxs": {"tier1.scores.w.bias", "tier2.scores.w.bias"},
    "dtfd maxmins": {"tier1.scores.w.bias", "tier2.scores.w.bias"},
    "iaam softmax": {"dmq.gate.bias"},
    "mambamil": {"scores.w.bias"},
    "milbooster": {f"scores.{s}.w.bias" for s in range(3)},
}


def build(variant: str) -> Aggregator:
    name, args = VARIANTS[variant]
    torch.manual_seed(0)
    spec = AggregatorSpec(name=name, in_dim=IN_DIM, args=args)
    return build_aggregator(spec, CLASSES).double().train()


def whole_loss(model: Aggregator, features: Tensor, seed: int) -> Tensor:
    _, coords, scale = bag(features.shape[1], seed)
    label = torch.tensor([seed % CLASSES])
    out = model(features, coords.double(), scale, label=label)
    loss = model.bag_loss_weight * F.cross_entropy(out.logits, label)
    for extra in (out.losses or {}).values():
        loss = loss + extra
    return loss


def learn(model: Aggregator, seed: int) -> Tensor:
    """Backward of the whole loss of one bag; the gradient of each instance's features."""
    features: Tensor = bag(63 if seed % 2 else 41, seed)[0].double().requires_grad_()
    torch.autograd.backward(whole_loss(model, features, seed))
    assert features.grad is not None
    return features.grad[0]


def test_every_method_is_looked_at() -> None:
    assert {name for name, _ in VARIANTS.values()} == set(AGGREGATORS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_unless_a_softmax_forgets_it(variant: str) -> None:
    model = build(variant)
    for seed in range(4):
        learn(model, seed)
    still = set()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if parameter.grad.abs().max() < NOTHING:
            still.add(name)
    assert still == BEFORE_A_SOFTMAX.get(variant, set())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_instance_of_a_bag_has_a_say_in_the_loss(variant: str) -> None:
    gradient = learn(build(variant), 1)
    assert gradient.shape == (63, IN_DIM)
    assert gradient.abs().amax(1).min() > NOTHING


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"dasmil"}))
def test_gradient_of_all_parameters_is_the_slope_of_the_loss(variant: str) -> None:
    """With large weights, so that no path is too weak to be seen; DAS-MIL's teacher is constant by design."""
    model = build(variant).eval()
    generator = torch.Generator().manual_seed(8)
    parameters = list(model.parameters())
    ways = [torch.randn(p.shape, generator=generator).double() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    features = bag(41, 2)[0].double()
    gradients = torch.autograd.grad(whole_loss(model, features, 2), parameters)
    step, found = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, way in zip(parameters, ways, strict=True):
                p.add_(way, alpha=sign * step)
            found.append(float(whole_loss(model, features, 2)))
            for p, way in zip(parameters, ways, strict=True):
                p.sub_(way, alpha=sign * step)
    slope = (found[0] - found[1]) / (2 * step)
    total = sum(float((g * way).sum()) for g, way in zip(gradients, ways, strict=True))
    assert abs(slope) > 1e-3
    assert total == pytest.approx(slope, rel=1e-4)
