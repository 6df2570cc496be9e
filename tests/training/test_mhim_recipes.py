"""The four published recipes of MHIM-MIL, value by value, as the supplementary and the authors' release have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from napari_msamil.models import build_aggregator
from training.config import model_config, read_recipe, section
from training.mhim_task import MhimSpec
from training.mil_task import MilSpec
from training.visits import schedule

PLAIN: dict[str, Any] = {
    # supplementary, section 4
    "epochs": 200,
    "optimizer": "adam",
    "lr": 2e-4,
    "weight_decay": 1e-5,
    "betas": (0.9, 0.999),
    "accumulate": 1,
    "clip_norm": 0.0,
    # cosine per epoch down to nothing, without a warm-up
    "anneal": "epoch",
    "warmup": 0.0,
    "final_lr": 0.0,
    # release: a tie restarts the patience and leaves the saved best
    "monitor": "val_auc",
    "validate_every": 1,
    "tie_resets": True,
    "tie_break": False,
    "balance": "none",
    "label_smoothing": 0.0,
    "loss_weights": {},
}
MINING: dict[str, Any] = {
    "decay": True,
    "momentum": 0.9999,
    "teacher_temperature": 0.1,
    "student_temperature": 1.0,
    "teacher_mode": "eval",
    "fusion": "voting",
    "layer": "first",
    "start": "projection",
    "per_scale": False,
}
CAMELYON = {"patience": 30, "min_epochs": 132}
"""No stop before epoch index 131, which is the 132nd."""
TCGA = {"patience": 20, "min_epochs": 72}
ABMIL = {"activation": "relu", "bias": False, "dropout": 0.25}
TRANSMIL = {"square": "ppeg", "projection_dropout": 0.25}

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "mhim-abmil-camelyon16": {
        "loop": CAMELYON,
        "mhim": {
            "alpha": 0.1,
            "random": 0.5,
            "low": 0.0,
            "high": 0.01,
            "high_randomness": 0.5,
            "momentum_schedule": "constant",
        },
        "network": {"name": "abmil", "args": {"gated": False, **ABMIL}},
    },
    "mhim-transmil-camelyon16": {
        "loop": CAMELYON,
        "mhim": {
            "alpha": 0.1,
            "random": 0.0,
            "low": 0.8,
            "high": 0.03,
            "high_randomness": 0.5,
            "momentum_schedule": "cosine",
        },
        "network": {"name": "transmil", "args": {"heads": 8, **TRANSMIL}},
    },
    "mhim-abmil-tcga": {
        "loop": TCGA,
        "mhim": {
            "alpha": 0.5,
            "random": 0.7,
            "low": 0.2,
            "high": 0.02,
            "high_randomness": 1.0,
            "momentum_schedule": "cosine",
        },
        "network": {"name": "abmil", "args": {"gated": True, **ABMIL}},
    },
    "mhim-transmil-tcga": {
        "loop": TCGA,
        "mhim": {
            "alpha": 0.5,
            "random": 0.6,
            "low": 0.2,
            "high": 0.02,
            "high_randomness": 1.0,
            "momentum_schedule": "constant",
        },
        "network": {"name": "transmil", "args": {"heads": 2, **TRANSMIL}},
    },
}


def picked(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in wanted}


@pytest.mark.parametrize("name", RECIPES)
def test_student_is_trained_as_published(name: str) -> None:
    spec = section(read_recipe(name), "mhim", MhimSpec).model_dump(mode="python")
    recipe = RECIPES[name]
    wanted = {**PLAIN, **recipe["loop"], **MINING, **recipe["mhim"]}
    assert picked(spec, wanted) == wanted
    loose = set(spec) - set(wanted)
    assert loose == {"seed", "save_every", "save_minutes", "scales", "pack", "xavier"}


@pytest.mark.parametrize("name", RECIPES)
def test_plain_network_is_trained_as_the_student_from_a_xavier_start(name: str) -> None:
    spec = section(read_recipe(name), "mil", MilSpec).model_dump(mode="python")
    wanted = {**PLAIN, **RECIPES[name]["loop"], "xavier": True}
    assert picked(spec, wanted) == wanted
    assert set(spec) - set(wanted) == {
        "seed",
        "save_every",
        "save_minutes",
        "scales",
        "pack",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_network_has_the_published_shape(name: str) -> None:
    spec = model_config(read_recipe(name), ("normal", "tumour")).aggregator
    wanted = RECIPES[name]["network"]
    assert (spec.name, spec.in_dim) == (wanted["name"], 1024)
    assert spec.args == wanted["args"]
    network: Any = build_aggregator(spec, 2)
    # reduced from 1024 to 512 by one layer, a quarter dropped behind it
    projection = list(network.projection.children())
    assert projection[0].weight.shape == (512, 1024)
    assert [layer.p for layer in projection if isinstance(layer, torch.nn.Dropout)] == [
        0.25
    ]
    if spec.name == "transmil":
        layers = [network.layer1.attention, network.layer2.attention]
        assert {layer.landmarks for layer in layers} == {256}
        assert {layer.heads for layer in layers} == {wanted["args"]["heads"]}


@pytest.mark.parametrize("name", RECIPES)
def test_patches_are_256_pixels_at_20x_of_all_tissue(name: str) -> None:
    raw = read_recipe(name)
    patches = model_config(raw, ("normal", "tumour")).patches
    assert [(s.name, s.mpp, s.size_px) for s in patches.scales] == [("20x", 0.5, 256)]
    assert (patches.strategy, patches.stride) == ("tissue", 1.0)
    assert patches.max_patches is None
    assert raw["extract"] == {"patches": "tissue"}


@pytest.mark.parametrize("name", RECIPES)
def test_features_are_those_of_a_resnet_without_its_last_stage(name: str) -> None:
    spec = model_config(read_recipe(name), ("normal", "tumour")).encoder
    assert (spec.kind, spec.backbone, spec.out_stage) == ("timm", "resnet50", 3)
    assert spec.dim == 1024


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rate_is_a_cosine_over_epochs(name: str) -> None:
    spec = section(read_recipe(name), "mhim", MhimSpec)
    # three slides, 600 steps in all, looked at where epochs 0, 100 and 150 begin
    shares = [schedule(step, 600, spec) for step in (0, 300, 450)]
    assert shares == pytest.approx([1.0, 0.5, 0.1464466], abs=1e-6)
