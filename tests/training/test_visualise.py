"""Pictures of MHIM: what is drawn is what the networks say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from napari_msamil.models import build_aggregator
from training.bag_dataset import BagDataset
from training.visualise import (
    InstanceView,
    PatchMap,
    attention_shades,
    draw_columns,
    draw_progress,
    view_instances,
)

from .test_mil import abmil, spec_of, toy_bags

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("spec", [abmil(), spec_of("dsmil", hidden=8)])
def test_view_has_the_networks_own_attention_and_probabilities(spec: object) -> None:
    torch.manual_seed(0)
    data = BagDataset(*toy_bags([5, 3]))
    network = build_aggregator(spec, 2).train()  # type: ignore[arg-type]
    view = view_instances(network, data.one(0), 1)
    assert network.training
    network.eval()
    bag = data.one(0)
    output = network(bag.features, bag.coords, bag.scale)
    np.testing.assert_allclose(view.attention, output.attention[0].detach(), rtol=1e-6)
    assert view.bag_probability == pytest.approx(
        output.logits.softmax(-1)[0, 1].item(), rel=1e-6
    )
    if output.instance_logits is None:
        alone = network(bag.features[:, 2:3]).logits.softmax(-1)[0, 1].item()
        assert view.probability[2] == pytest.approx(alone, rel=1e-5)


def test_many_instances_are_classified_alone_whatever_they_are_cut_into() -> None:
    torch.manual_seed(0)
    data = BagDataset(*toy_bags([71, 3]))
    network = build_aggregator(spec_of("transmil", hidden=16, heads=2), 2)
    view = view_instances(network, data.one(0), 1)
    network.eval()
    bag = data.one(0)
    for i in (0, 31, 32, 70):
        alone = network(bag.features[:, i : i + 1]).logits.softmax(-1)[0, 1].item()
        assert view.probability[i] == pytest.approx(alone, rel=1e-4)
    assert view.probability.shape == (71,)


def test_shades_are_ranks() -> None:
    shades = attention_shades(np.array([0.9, 0.01, 0.05, 0.04], np.float32))
    assert shades.tolist() == pytest.approx([1.0, 0.0, 2 / 3, 1 / 3])
    assert attention_shades(np.ones(1, np.float32)).tolist() == [0.0]


def _view(n: int) -> InstanceView:
    values = np.linspace(0, 1, n, dtype=np.float32)
    return InstanceView(values / values.sum(), values, 0.7)


def test_masked_instances_are_dark_at_their_place(tmp_path: Path) -> None:
    bags, _ = toy_bags([2])
    bag = bags[0]
    bag.coords_xy0[:] = torch.tensor([[0, 0], [60, 60]])
    bag.scale[:] = 0
    bag = type(bag)(**{**vars(bag), "size_px0": (40, 80)})
    masked = np.array([True, False])
    path = draw_columns(PatchMap(bag), _view(2), masked, _view(2), tmp_path / "a/f.png")
    pixels = np.asarray(Image.open(path).convert("L")).astype(int)
    middle = pixels[:, pixels.shape[1] // 3 : 2 * pixels.shape[1] // 3]
    inside = middle[middle.shape[0] // 6 :]
    rows, columns = np.nonzero(inside < 110)
    # the dark square is the upper left one
    assert len(rows) > 500
    assert rows.mean() < inside.shape[0] / 2
    assert columns.mean() < inside.shape[1] / 2
    assert [p.name for p in path.parent.iterdir()] == ["f.png"]


def test_progress_has_one_column_per_stage(tmp_path: Path) -> None:
    bags, _ = toy_bags([4])
    lesion = np.zeros((9, 11), bool)
    lesion[2:5, 3:7] = True
    ground = np.full((9, 11, 3), 200, np.uint8)
    places = PatchMap(bags[0], ground, lesion)
    views = [(f"epoch {e}", _view(4)) for e in (1, 5, 9, 20)]
    wide = Image.open(draw_progress(places, views, tmp_path / "p.png", "slide"))
    narrow = Image.open(draw_progress(places, views[:2], tmp_path / "q.png"))
    assert wide.width == pytest.approx(2 * narrow.width, rel=0.05)
