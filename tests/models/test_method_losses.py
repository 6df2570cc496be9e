"""Whole training losses of the methods against their formulas, and what each parameter learns from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_msamil.config import AggregatorSpec
from napari_msamil.models.dtfd import DTFD, DTFDArgs
from napari_msamil.models.transmil import TransMIL, TransMILArgs
from training.bag_dataset import BagDataset
from training.bags import StoredBag
from training.loop import Visit
from training.mil_task import MilSpec, MilTask

DIM, CLASSES = 6, 3
# two coarse patches of 20 × 20 with five and two of their children, all in pixels of a slide of 101 × 99
COARSE = [(0, 0), (40, 20)]
FINE = [(0, 0), (10, 0), (0, 10), (10, 10), (40, 20), (50, 30), (80, 80)]
PARENT = {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1}


def slide(seed: int, corners: list[tuple[int, int]], scale: list[int]) -> StoredBag:
    generator = torch.Generator().manual_seed(seed)
    return StoredBag(
        features=torch.randn(len(corners), DIM, generator=generator),
        coords_xy0=torch.tensor(corners),
        scale=torch.tensor(scale, dtype=torch.int8),
        valid=torch.ones(len(corners), dtype=torch.bool),
        size_px0=(10, 20),
        size_wh0=(101, 99),
        mpp=0.5,
        scale_names=("20x", "10x"),
        encoder_id="toy",
        slide=f"s{seed}",
    )


def task_of(name: str, *, label: int, **args: Any) -> MilTask:
    """The training of one bag of nine instances by this method, with weights far from zero."""
    bag = slide(4, [*FINE, *COARSE], [0] * len(FINE) + [1] * len(COARSE))
    data = BagDataset([bag], [label])
    torch.manual_seed(13)
    spec = AggregatorSpec(name=name, in_dim=DIM, args=args)
    task = MilTask(spec, MilSpec(), data, None, ("a", "b", "c"))
    with torch.no_grad():
        for parameter in task.aggregator.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape))
    return task


def trained(task: MilTask) -> float:
    """The loss a training step works with."""
    loss = task.backward(Visit(0, 0, 0, 1.0))
    assert loss is not None
    return loss


def weights(task: MilTask) -> dict[str, np.ndarray[Any, Any]]:
    state = task.aggregator.state_dict()
    return {k: v.detach().double().numpy() for k, v in state.items()}


def features(task: MilTask) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = task.train.one(0).features[0].double().numpy()
    return found


def linear(w: dict[str, Any], name: str, x: np.ndarray[Any, Any]) -> Any:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def relu(x: np.ndarray[Any, Any]) -> Any:
    return np.maximum(x, 0)


def softmax(x: np.ndarray[Any, Any], axis: int = -1) -> Any:
    shifted = np.exp(x - x.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def entropy(logits: np.ndarray[Any, Any], label: int) -> float:
    """Cross-entropy of one row."""
    return float(-np.log(softmax(logits)[label]))


def gated(w: dict[str, Any], name: str, x: np.ndarray[Any, Any]) -> Any:
    """Scores (N, out) of the gated attention network."""
    gate = 1 / (1 + np.exp(-linear(w, f"{name}.u", x)))
    return linear(w, f"{name}.w", np.tanh(linear(w, f"{name}.v", x)) * gate)


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
@pytest.mark.parametrize("share", [None, 0.45])
def test_clam_weighs_bag_and_instances_to_one(name: str, share: float | None) -> None:
    given = {} if share is None else {"instance_weight": share}
    sizes = {"hidden": 7, "attention_dim": 4, "dropout": 0.0, "k": 2}
    task = task_of(name, label=2, **sizes, **given)
    w = weights(task)
    h = relu(linear(w, "projection.0", features(task)))
    attention = softmax(gated(w, "scores", h), axis=0)
    if name == "clam_sb":
        logits = linear(w, "classifier", attention[:, 0] @ h)
        own = attention[:, 0]
    else:
        rows = w["classifier.weight"]
        logits = np.array([attention[:, c] @ h @ rows[c] for c in range(CLASSES)])
        logits = logits + w["classifier.bias"]
        own = attention[:, 2]
    order = np.argsort(-own)
    scores = linear(w, "instance_classifiers.2", h)
    sets = [(i, 1) for i in order[:2]] + [(i, 0) for i in order[-2:]]
    instances = float(np.mean([entropy(scores[i], y) for i, y in sets]))
    part = 0.3 if share is None else share
    expected = (1 - part) * entropy(logits, 2) + part * instances
    assert trained(task) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("label", [0, 1])
def test_dsmil_is_half_bag_and_half_largest_instance(label: int) -> None:
    task = task_of("dsmil", label=label, query_dim=5)
    w, x = weights(task), features(task)
    scores = linear(w, "streams.instance", x)
    query = np.tanh(linear(w, "streams.query.2", relu(linear(w, "streams.query.0", x))))
    asked = query[scores.argmax(0)]
    attention = softmax(asked @ query.T / np.sqrt(5))
    bags = attention @ x
    logits = np.einsum("cd,kcd->k", bags, w["streams.bag.weight"])
    logits = logits + w["streams.bag.bias"]
    expected = 0.5 * entropy(logits, label) + 0.5 * entropy(scores.max(0), label)
    assert trained(task) == pytest.approx(expected, rel=1e-4)


GROUPS = [[7, 2, 4, 0], [1, 8, 3], [6, 5]]


def dtfd_by_hand(task: MilTask, kind: str) -> tuple[Any, list[Any], Any]:
    """Tier 2's logits, tier 1's logits, attention of the instances."""
    w = weights(task)
    h = relu(linear(w, "projection.0", features(task)))
    vectors, shares, tier1 = [], [], []
    for group in GROUPS:
        members = h[group]
        inner = softmax(gated(w, "tier1.scores", members)[:, 0])
        pooled = inner @ members
        logits = linear(w, "tier1.classifier", pooled)
        tier1.append(logits)
        activation = softmax(linear(w, "tier1.classifier", members))
        activation = activation[:, logits.argmax()]
        chosen = [int(activation.argmax()), int(activation.argmin())]
        taken = {"afs": [], "maxs": chosen[:1], "maxmins": chosen}[kind]
        vectors += [pooled] if kind == "afs" else [members[i] for i in taken]
        rows = [inner] if kind == "afs" else [np.eye(len(group))[i] for i in taken]
        for row in rows:
            share = np.zeros(len(h))
            share[group] = row
            shares.append(share)
    stacked = np.stack(vectors)
    outer = softmax(gated(w, "tier2.scores", stacked)[:, 0])
    logits = linear(w, "tier2.classifier", outer @ stacked)
    return logits, tier1, outer @ np.stack(shares)


@pytest.mark.parametrize("kind", ["afs", "maxs", "maxmins"])
def test_dtfd_adds_the_mean_of_its_first_tier_to_the_second(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden": 5, "attention_dim": 4, "groups": 3}
    task = task_of("dtfd", label=1, **sizes, distill=kind)
    groups = [torch.tensor(group) for group in GROUPS]
    monkeypatch.setattr(task.aggregator, "split", lambda _: groups)
    logits, tier1, attention = dtfd_by_hand(task, kind)
    batch = task.train.one(0)
    out = task.aggregator(batch.features, label=batch.labels)
    np.testing.assert_allclose(out.logits[0].detach(), logits, rtol=1e-4)
    np.testing.assert_allclose(out.attention[0].detach(), attention, atol=1e-6)
    first = float(np.mean([entropy(row, 1) for row in tier1]))
    assert first > 0.3
    assert trained(task) == pytest.approx(entropy(logits, 1) + first, rel=1e-4)


@pytest.mark.parametrize(
    ("theirs", "ours", "groups"), [("max", "maxs", 8), ("maxmin", "maxmins", 4)]
)
def test_dtfd_equals_torchmil_where_a_group_has_nothing_to_leave_out(
    theirs: str, ours: str, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchmil hands on all instances of a group, by order of activation; so groups of one and of two are alike."""
    models = pytest.importorskip("torchmil.models")
    torch.manual_seed(3)
    other = models.DTFDMIL((DIM,), att_dim=5, n_groups=groups, distill_mode=theirs)
    other = other.double().eval()
    args = DTFDArgs(hidden=DIM, attention_dim=5, groups=groups, distill=ours)
    model = DTFD(DIM, 2, args).double().eval()
    model.projection = nn.Identity()
    tiers = (
        (other.attention_pool, other.classifier, model.tier1),
        (other.u_attention_pool, other.u_classifier, model.tier2),
    )
    for pool, classifier, tier in tiers:
        for parameter in tier.parameters():
            nn.init.zeros_(parameter)
        lazy = (pool.fc1, pool.fc2, classifier)
        source = [getattr(layer, "module", layer) for layer in lazy]
        target = (tier.scores.v, tier.scores.w, tier.classifier)
        with torch.no_grad():
            for a, b in zip(source, target, strict=True):
                b.weight[-len(a.weight) :] = a.weight
                if a.bias is not None:
                    b.bias[-len(a.bias) :] = a.bias
            # our gate stands open at a half
            tier.scores.w.weight.mul_(2)
    split = np.array_split(np.arange(8), groups)
    monkeypatch.setattr(np.random, "shuffle", lambda _: None)
    monkeypatch.setattr(model, "split", lambda _: [torch.tensor(p) for p in split])
    x = torch.randn(1, 8, DIM, dtype=torch.float64)
    expected = other(x, torch.ones(1, 8, dtype=torch.bool))
    logits = model(x).logits[0]
    torch.testing.assert_close(logits[1, None] - logits[0, None], expected)


def kullback_leibler(p: np.ndarray[Any, Any], q: np.ndarray[Any, Any]) -> float:
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize(
    "given", [{}, {"distill": 0.3, "align": 0.7, "temperature": 2.5}]
)
def test_dasmil_weighs_its_terms_as_its_formula(given: dict[str, float]) -> None:
    published = {"distill": 1.0, "align": 1.0, "temperature": 1.5}
    distill, align, temperature = {**published, **given}.values()
    sizes = {"scales": 2, "hidden": 5, "heads": 2, "dropout": 0.0, "query_dim": 4}
    task = task_of("dasmil", label=1, **sizes, **given)
    seen: dict[int, tuple[Any, ...]] = {}

    def remember(scale: int) -> Any:
        def keep(_: nn.Module, __: Any, out: tuple[Tensor, ...]) -> None:
            seen[scale] = tuple(t[0].detach().double().numpy() for t in out[:2])

        return keep

    for scale, stream in enumerate(task.aggregator.streams):  # type: ignore[arg-type]
        stream.register_forward_hook(remember(scale))
    loss = trained(task)
    (fine, fine_bag), (coarse, coarse_bag) = seen[0], seen[1]
    children = {p: [c for c in PARENT if PARENT[c] == p] for p in (0, 1)}
    gaps = [coarse[p] - fine[children[p]].max(0) for p in (0, 1)]
    terms = (
        0.5 * entropy(fine_bag, 1) + 0.5 * entropy(fine.max(0), 1),
        0.5 * entropy(coarse_bag, 1) + 0.5 * entropy(coarse.max(0), 1),
        kullback_leibler(
            softmax(fine_bag / temperature), softmax(coarse_bag / temperature)
        ),
        float(np.mean(np.square(gaps))),
    )
    assert min(terms) > 0.01
    expected = np.dot((1.0, 1 - distill, distill, align), terms)
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("n", "side"), [(1, 7), (5, 7), (23, 7), (49, 7), (50, 8)])
def test_ppeg_of_mhim_lays_the_bag_on_a_square_of_seven_at_least(
    n: int, side: int
) -> None:
    """Missing places get the head of the sequence, then zeros; what stands there goes again."""
    args = TransMILArgs(hidden=6, heads=2, landmarks=3, dropout=0.0, square="ppeg")
    model = TransMIL(DIM, 2, args).eval()
    seen: dict[str, Tensor] = {}
    model.layer1.register_forward_hook(lambda _, __, out: seen.update(before=out[0]))
    model.layer2.register_forward_pre_hook(
        lambda _, inputs: seen.update(after=inputs[0])
    )
    torch.manual_seed(2)
    model(torch.randn(1, n, DIM))
    tokens = seen["before"][0, 1:]
    assert tokens.shape == (n, 6)
    filled = torch.zeros(side * side, 6)
    twice = torch.cat([tokens, tokens])[: side * side]
    filled[: len(twice)] = twice
    square = filled.T.reshape(1, 6, side, side)
    expected = square + sum(conv(square) for conv in model.ppeg.convs)
    torch.testing.assert_close(seen["after"][0, 1:], expected[0].flatten(1).T[:n])
    torch.testing.assert_close(seen["after"][0, 0], seen["before"][0, 0])
