"""Classic bags, digit bags, and many small networks trained at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.nn import functional

from napari_msamil.config import AggregatorSpec
from napari_msamil.errors import CohortError
from napari_msamil.models import build_aggregator
from training.datasets.classic_mil import ClassicSet, read_classic_set
from training.stacked_networks import StackedNetworks, StackedSettings, length_groups

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from napari_msamil.models.base import Aggregator
    from napari_msamil.models.outputs import MILOutput

SETS = {
    "musk1": (92, 47, 476, 166),
    "elephant": (200, 100, 1391, 230),
    "fox": (200, 100, 1320, 230),
}


@pytest.mark.parametrize("name", SETS)
def test_published_sets_have_the_published_counts_and_folds(
    shared_data: Path, name: str
) -> None:
    data = read_classic_set(shared_data / f"mil/{name}.npz")
    bags, positive, instances, dim = SETS[name]
    assert (len(data), int(data.labels.sum())) == (bags, positive)
    assert data.features.shape == (instances, dim)
    assert data.folds.shape == (5, bags)
    for repeat in data.folds:
        assert set(repeat.tolist()) == set(range(10))
        assert np.bincount(repeat).min() >= 9


def toy() -> ClassicSet:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 5, (11, 4)).astype(np.float32)
    features[:, 2] = 7
    bag_id = np.array([0, 0, 1, 2, 2, 2, 3, 3, 4, 4, 4])
    return ClassicSet(
        "toy", features, bag_id, np.array([1, 0, 1, 0, 0]), np.arange(5)[None]
    )


def test_standardisation_knows_training_bags_only() -> None:
    data = toy()
    train = np.array([True, True, False, True, False])
    scaled = data.standardised(train)
    rows = train[data.bag_id]
    assert scaled.shape == (11, 3)
    np.testing.assert_allclose(scaled[rows].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled[rows].std(0), 1, atol=1e-5)
    changed = ClassicSet(
        "t", data.features.copy(), data.bag_id, data.labels, data.folds
    )
    changed.features[~rows] += 100
    np.testing.assert_array_equal(changed.standardised(train)[rows], scaled[rows])
    whole = data.standardised(train, drop=False)
    assert (whole[:, 2] == 0).all()
    np.testing.assert_array_equal(whole[:, [0, 1, 3]], scaled)


def test_bags_keep_their_instances() -> None:
    data = toy()
    bags = data.bags(data.features)
    assert [len(b) for b in bags] == [2, 1, 3, 2, 3]
    np.testing.assert_array_equal(bags[2].features.numpy(), data.features[3:6])


def test_broken_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="no bag file"):
        read_classic_set(tmp_path / "x.npz")
    np.savez(tmp_path / "a.npz", X=np.ones((2, 2)))
    with pytest.raises(CohortError, match="no array bag_id"):
        read_classic_set(tmp_path / "a.npz")
    np.savez(
        tmp_path / "b.npz",
        X=np.ones((2, 2)),
        bag_id=[1, 0],
        bag_label=[0, 1],
        folds=[[0, 1]],
    )
    with pytest.raises(CohortError, match="ascending order"):
        read_classic_set(tmp_path / "b.npz")


def test_groups_hold_every_instance_once() -> None:
    lengths = [2, 1, 3, 2, 3]
    groups = length_groups(lengths)
    assert [rows.shape for _, rows in groups] == [(1, 1), (2, 2), (2, 3)]
    assert sorted(i for _, rows in groups for i in rows.flatten().tolist()) == list(
        range(11)
    )
    bags = {
        b: rows[i].tolist() for ids, rows in groups for i, b in enumerate(ids.tolist())
    }
    assert bags[2] == [3, 4, 5]


TINY = {
    "abmil": {"hidden": 6, "dropout": 0.0},
    "dsmil": {"hidden": 6},
    "clam_mb": {"hidden": 6, "attention_dim": 3, "dropout": 0.0, "subtyping": True},
    "dtfd": {"hidden": 6, "attention_dim": 3, "groups": 1},
    "iaam": {"dim": 8, "heads": 2, "rank": 2, "mlp_dim": 6, "dropout": 0.0},
    "mambamil": {"hidden": 6, "attention_dim": 3, "layers": 1, "dropout": 0.0},
    "transmil": {"hidden": 8, "heads": 2, "landmarks": 2, "dropout": 0.0},
}


@pytest.mark.parametrize("method", TINY)
def test_a_member_takes_the_steps_it_would_take_alone(method: str) -> None:
    data = toy()
    spec = AggregatorSpec(name=method, in_dim=4, args=TINY[method])
    train = torch.tensor(
        [[True, True, False, True, True], [True, False, True, True, True]]
    )
    features = torch.as_tensor(
        np.stack([data.standardised(t.numpy(), drop=False) for t in train])
    )
    lengths = np.bincount(data.bag_id).tolist()
    labels = torch.as_tensor(data.labels)
    ensemble = StackedNetworks(spec, 2, features, lengths, labels, train, seed=3)
    torch.manual_seed(3)
    networks = [build_aggregator(spec, 2) for _ in range(2)]
    found = ensemble.fit(StackedSettings(1e-2, 1e-2, 1.0, (1, 4)))[4]
    for member, network in enumerate(networks):
        bags = features[member].split(lengths)
        chosen = train[member].nonzero().flatten().tolist()
        train_alone(network, bags, labels, chosen)
        network.eval()
        alone = torch.cat([outputs(network, bag).logits.softmax(-1) for bag in bags])
        torch.testing.assert_close(found[member], alone, rtol=1e-3, atol=1e-4)


def outputs(
    network: Aggregator, bag: torch.Tensor, label: torch.Tensor | None = None
) -> MILOutput:
    places = torch.zeros(1, len(bag), 2)
    return network(bag[None], places, places[..., 0].long(), label=label)


def train_alone(
    network: Aggregator,
    bags: Sequence[torch.Tensor],
    labels: torch.Tensor,
    chosen: list[int],
) -> None:
    """Four steps over all chosen bags, one bag after the other."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(4):
        terms = []
        for b in chosen:
            output = outputs(network, bags[b], labels[b, None])
            loss = functional.cross_entropy(output.logits, labels[b, None])
            terms.append(network.bag_loss_weight * loss)
            terms[-1] = terms[-1] + sum((output.losses or {}).values())
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(terms).mean())
        optimizer.step()


def test_digit_bags_know_their_positive_instances() -> None:
    pytest.importorskip("sklearn")
    from training.datasets.digits import DigitBagSpec, digit_parts

    spec = DigitBagSpec(size=30, spread=5, positives=0.1)
    parts = digit_parts(spec, seed=1, bags=(6, 4, 4))
    for data in parts:
        for label, positive in zip(data.label_list, data.truth, strict=True):
            expected = max(round(len(positive) * 0.1), 1) if label else 0
            assert int(positive.sum()) == expected
    again = digit_parts(spec, seed=1, bags=(6, 4, 4))
    assert torch.equal(parts[2].features, again[2].features)
