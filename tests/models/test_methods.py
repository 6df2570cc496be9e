"""Closed-form cases and mechanisms of single methods; what all share is in `test_aggregators`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from napari_msamil.errors import ConfigError, SelectionError
from napari_msamil.models.abmil import ABMIL, ABMILArgs
from napari_msamil.models.clam import CLAMArgs, CLAMMulti, CLAMSingle, smooth_top1_svm
from napari_msamil.models.csmil import CSMIL, CSMILArgs
from napari_msamil.models.dasmil import DASMIL, DASMILArgs
from napari_msamil.models.dsmil import DSMIL
from napari_msamil.models.dtfd import DTFD, DTFDArgs
from napari_msamil.models.graph_attention import GraphAttention, edge_softmax
from napari_msamil.models.kmeans import farthest_points, kmeans
from napari_msamil.models.mambamil import reorder, restore
from napari_msamil.models.milbooster import BagFilter, MILBooster, MILBoosterArgs
from napari_msamil.models.nystrom import NystromAttention, iterative_pinv
from napari_msamil.models.selective_scan import scan_reference, selective_scan
from napari_msamil.models.transmil import TransMIL, TransMILArgs, fill_to_square


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(11)


# AB-MIL


def test_abmil_by_hand() -> None:
    """Two instances of width 1, everything written out."""
    model = ABMIL(
        1, 2, ABMILArgs(hidden=1, attention_dim=1, gated=True, dropout=0)
    ).eval()
    linear = (model.projection[0], model.scores.v, model.scores.u, model.scores.w)
    values = ((2.0, 0.5), (0.7, 0.1), (-0.3, 0.2), (1.5, 0.0))
    with torch.no_grad():
        for layer, (weight, bias) in zip(linear, values, strict=True):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
        model.classifier.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.classifier.bias.copy_(torch.tensor([0.0, 0.25]))
    h = [2 * x + 0.5 for x in (0.3, 1.0)]
    score = [
        1.5 * math.tanh(0.7 * v + 0.1) / (1 + math.exp(-(-0.3 * v + 0.2))) for v in h
    ]
    share = math.exp(score[0]) / (math.exp(score[0]) + math.exp(score[1]))
    z = share * h[0] + (1 - share) * h[1]
    out = model(torch.tensor([[[0.3], [1.0]]]))
    assert out.attention[0, 0].item() == pytest.approx(share, rel=1e-5)
    assert out.logits[0].tolist() == pytest.approx([z, 0.25 - z], rel=1e-5)


@settings(deadline=None, max_examples=20)
@given(copies=st.integers(2, 5), n=st.integers(1, 9))
def test_abmil_does_not_care_how_often_the_whole_bag_is_repeated(
    copies: int, n: int
) -> None:
    model = ABMIL(5, 2, ABMILArgs(hidden=7)).eval()
    bag = torch.randn(1, n, 5)
    repeated = model(bag.repeat(1, copies, 1))
    torch.testing.assert_close(repeated.logits, model(bag).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gated", [True, False])
def test_abmil_gradients_are_right_in_float64(gated: bool) -> None:
    model = ABMIL(
        3, 2, ABMILArgs(hidden=4, attention_dim=3, gated=gated, dropout=0)
    ).double()
    bag = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: model(b).logits, (bag,))


# CLAM


def test_clam_trains_the_strongest_as_positive_and_the_weakest_as_negative() -> None:
    model = CLAMSingle(4, 3, CLAMArgs(k=2))
    scores, attention = (
        torch.randn(7, 2),
        torch.tensor([0.1, 0.3, 0.05, 0.25, 0.02, 0.18, 0.1]),
    )
    chosen, target = torch.tensor([1, 3, 2, 4]), torch.tensor([1, 1, 0, 0])
    expected = F.cross_entropy(scores[chosen], target)
    found = model._clustering(scores[None], attention[None])
    torch.testing.assert_close(found, expected[None])


@pytest.mark.parametrize(
    ("n", "positive", "negative"),
    [(1, 1, 0), (2, 1, 1), (3, 1, 1), (15, 7, 7), (40, 8, 8)],
)
def test_clam_never_puts_an_instance_in_both_sets(
    n: int, positive: int, negative: int
) -> None:
    model = CLAMSingle(4, 2)
    seen: list[torch.Tensor] = []
    model._loss = lambda scores, target: seen.append(target) or scores.sum()  # type: ignore[method-assign, func-returns-value]
    model._clustering(torch.randn(1, n, 2), torch.rand(1, n))
    assert seen[0].sum() == positive
    assert seen[0].shape == (1, positive + negative)


def test_clam_subtyping_adds_the_other_classes_and_divides_by_their_number() -> None:
    plain, sub = CLAMMulti(6, 3), CLAMMulti(6, 3, CLAMArgs(subtyping=True))
    sub.load_state_dict(plain.state_dict())
    bag, label = torch.randn(1, 30, 6), torch.tensor([1])
    plain.eval(), sub.eval()
    one, all_ = plain(bag, label=label).losses, sub(bag, label=label).losses
    scored = torch.stack([c(plain.project(bag)[0]) for c in plain.instance_classifiers])
    branches = plain.scores(plain.project(bag)).softmax(1)[0].T
    out = [
        F.cross_entropy(scored[c][branches[c].topk(8).indices], torch.zeros(8).long())
        for c in (0, 2)
    ]
    torch.testing.assert_close(all_["instance"], (one["instance"] + 0.3 * sum(out)) / 3)


def test_clam_losses_of_a_batch_are_the_mean_of_its_bags() -> None:
    model = CLAMMulti(6, 3, CLAMArgs(subtyping=True, instance_loss="svm", k=3)).eval()
    bags, labels = torch.randn(4, 9, 6), torch.tensor([2, 0, 1, 2])
    alone = [
        model(b[None], label=y[None]).losses["instance"]
        for b, y in zip(bags, labels, strict=True)
    ]
    together = model(bags, label=labels).losses["instance"]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_smooth_top1_svm_is_zero_margin_log_two_and_large_when_wrong() -> None:
    right = smooth_top1_svm(torch.tensor([[0.0, 50.0]]), torch.tensor([1]))
    tie = smooth_top1_svm(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    wrong = smooth_top1_svm(torch.tensor([[9.0, 0.0]]), torch.tensor([1]))
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert tie.item() == pytest.approx(math.log(1 + math.e))
    assert wrong.item() == pytest.approx(math.log(1 + math.exp(10)))


# DSMIL


def test_swapping_two_non_critical_instances_leaves_dsmil_equal() -> None:
    model = DSMIL(6, 2).eval()
    bag = torch.randn(1, 9, 6)
    critical = set(model.streams.instance(bag).argmax(1).flatten().tolist())
    i, j = [n for n in range(9) if n not in critical][:2]
    swapped = bag.clone()
    swapped[0, [i, j]] = bag[0, [j, i]]
    torch.testing.assert_close(model(swapped).logits, model(bag).logits)


def test_dsmil_mines_by_its_largest_instance_logit() -> None:
    out = DSMIL(6, 3).eval()(torch.randn(2, 9, 6))
    torch.testing.assert_close(out.mining_attention[:, 0], out.instance_logits.amax(-1))


# DTFD


def test_dtfd_splits_anew_in_training_and_always_alike_in_evaluation() -> None:
    model = DTFD(4, 2, DTFDArgs(groups=3))
    assert any(
        not torch.equal(model.split(50)[0], model.split(50)[0]) for _ in range(3)
    )
    model.eval()
    first, second = model.split(50), model.split(50)
    assert [len(g) for g in first] == [17, 17, 16]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert sorted(torch.cat(first).tolist()) == list(range(50))
    assert len(model.split(2)) == 2


def test_dtfd_evaluation_leaves_the_global_random_numbers_alone() -> None:
    model = DTFD(4, 2).eval()
    before = torch.get_rng_state()
    model(torch.randn(1, 9, 4, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_dtfd_maxmins_gives_tier_two_the_extremes_of_each_group() -> None:
    model = DTFD(4, 2, DTFDArgs(groups=1, distill="maxmins")).eval()
    bag = torch.randn(1, 9, 4)
    out = model(bag)
    h = model.project(bag)[0]
    _, logits, _ = model.tier1(h)
    activation = model.tier1.classifier(h).log_softmax(-1)[:, logits.argmax()]
    chosen = {int(activation.argmax()), int(activation.argmin())}
    assert set(out.attention[0].nonzero().flatten().tolist()) == chosen


# TransMIL and Nyström


def test_iterated_inverse_inverts_each_matrix_by_itself() -> None:
    a = torch.softmax(4 * torch.randn(2, 3, 6, 6, dtype=torch.float64), dim=-1)
    found = iterative_pinv(a, 60)
    torch.testing.assert_close(found, torch.linalg.pinv(a), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(
        iterative_pinv(a, 3)[1], iterative_pinv(a[1], 3), atol=0, rtol=0
    )


@pytest.mark.parametrize("kind", ["padded", "segments"])
def test_nystrom_with_a_landmark_per_token_is_ordinary_attention(kind: str) -> None:
    layer = (
        NystromAttention(12, heads=3, landmarks=8, iterations=60, kind=kind)
        .double()
        .eval()
    )
    with torch.no_grad():
        layer.qkv.weight.mul_(5)
    x = torch.randn(2, 8, 12, dtype=torch.float64)
    q, k, v = (
        t.reshape(2, 8, 3, 4).transpose(1, 2) for t in layer.qkv(x).chunk(3, dim=-1)
    )
    weights = torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1)
    attended = weights @ v + layer.value_conv(v)
    expected = layer.out(attended.transpose(1, 2).flatten(2))
    out, row = layer(x, with_row=True)
    torch.testing.assert_close(out, expected, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(row, weights[:, :, 0], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", ["padded", "segments"])
def test_asking_for_the_row_changes_no_answer(kind: str) -> None:
    layer = NystromAttention(12, heads=3, landmarks=4, kind=kind).double().eval()
    x = torch.randn(1, 11, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x, with_row=True)[0], layer(x)[0])


def test_sequence_is_squared_by_its_head_and_then_zeros() -> None:
    x = torch.arange(1.0, 6.0).reshape(1, 5, 1)
    assert fill_to_square(x, 3).flatten().tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert fill_to_square(x[:, :1], 2).flatten().tolist() == [1, 1, 0, 0]


def test_transmil_adds_the_attention_of_copies_to_their_instance() -> None:
    model = TransMIL(6, 2, TransMILArgs(hidden=8, heads=2)).eval()
    out = model(torch.randn(1, 5, 6))
    assert out.mining_attention.shape == (1, 2, 5)
    positive = out.mining_attention.mean(1).clamp_min(0)
    torch.testing.assert_close(out.attention, positive / positive.sum())


def test_transmil_landmarks_default_to_half_its_width() -> None:
    assert TransMIL(4, 2).layer1.attention.landmarks == 256


# MambaMIL


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 40), channels=st.integers(1, 4), states=st.integers(1, 3))
def test_chunked_scan_is_the_recurrence(
    length: int, channels: int, states: int
) -> None:
    x = torch.randn(2, length, channels, dtype=torch.float64)
    delta = 3 * torch.rand(2, length, channels, dtype=torch.float64)
    a = -3 * torch.rand(channels, states, dtype=torch.float64)
    b, c = torch.randn(2, 2, length, states, dtype=torch.float64).unbind()
    d = torch.randn(channels, dtype=torch.float64)
    torch.testing.assert_close(
        selective_scan(x, delta, a, b, c, d),
        scan_reference(x, delta, a, b, c, d),
        atol=1e-11,
        rtol=1e-11,
    )


def test_segmented_scan_has_the_answer_and_gradients_of_the_recurrence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_msamil.models.selective_scan.SEGMENT", 7)
    leaves = [
        torch.randn(1, 23, 3, dtype=torch.float64),
        torch.rand(1, 23, 3, dtype=torch.float64),
    ]
    leaves += [-torch.rand(3, 2, dtype=torch.float64)]
    leaves += [torch.randn(1, 23, 2, dtype=torch.float64) for _ in range(2)]
    leaves += [torch.randn(3, dtype=torch.float64)]
    for leaf in leaves:
        leaf.requires_grad_()
    weight = torch.randn(1, 23, 3, dtype=torch.float64)
    fast = torch.autograd.grad((selective_scan(*leaves) * weight).sum(), leaves)
    slow = torch.autograd.grad((scan_reference(*leaves) * weight).sum(), leaves)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-10)


def test_strong_decay_over_a_long_sequence_neither_overflows_nor_vanishes_wrongly() -> (
    None
):
    """Forms that divide by a product of decays give inf or nan here."""
    x, delta = torch.ones(1, 3000, 1), torch.full((1, 3000, 1), 5.0)
    b = c = torch.ones(1, 3000, 1)
    y = selective_scan(x, delta, torch.tensor([[-16.0]]), b, c, torch.zeros(1))
    torch.testing.assert_close(y, torch.full_like(y, 5.0))


def test_reordering_takes_every_rate_th_token_and_is_undone() -> None:
    x = torch.arange(7.0).reshape(1, 7, 1)
    assert reorder(x, 3).flatten().tolist() == [0, 3, 6, 1, 4, 0, 2, 5, 0]
    assert torch.equal(restore(reorder(x, 3), 3, 7), x)


# CS-MIL and k-means


def test_kmeans_finds_separate_groups_whatever_their_order() -> None:
    points = torch.cat(
        [torch.randn(20, 3) * 0.1 + centre for centre in (0.0, 5.0, -7.0)]
    )
    truth = torch.arange(3).repeat_interleave(20)
    order = torch.randperm(60)
    cluster, centres = kmeans(points[order], 3)
    assert (
        len({(int(a), int(b)) for a, b in zip(cluster, truth[order], strict=True)}) == 3
    )
    assert sorted(centres.mean(1).round().tolist()) == [-7, 0, 5]


def test_kmeans_with_fewer_points_than_clusters_gives_each_its_own() -> None:
    cluster, centres = kmeans(torch.randn(3, 2), 8)
    assert sorted(cluster.tolist()) == [0, 1, 2]
    assert len(centres) == 3
    assert len(farthest_points(torch.zeros(4, 2), 4)) == 4


def test_csmil_of_one_place_is_its_weighted_sum_of_scales() -> None:
    model = CSMIL(5, 2, CSMILArgs(hidden=4, attention_dim=3)).eval()
    features = torch.randn(1, 3, 5)
    coords = torch.zeros(1, 3, 2)
    out = model(features, coords, torch.tensor([[0, 1, 2]]))
    h = model.embed(features[0])
    bag = (model.scale_scores(h) * h).sum(0)
    torch.testing.assert_close(out.embedding[0], bag)
    torch.testing.assert_close(out.logits[0], model.classifier(bag))


def test_csmil_leaves_out_the_scales_a_place_lacks() -> None:
    model = CSMIL(5, 2, CSMILArgs(scale_softmax=True)).eval()
    features = torch.randn(1, 1, 5)
    out = model(features, torch.zeros(1, 1, 2), torch.tensor([[1]]))
    torch.testing.assert_close(out.embedding[0], model.embed(features[0, 0]))


# DAS-MIL


def test_edge_softmax_sums_to_one_per_target() -> None:
    target = torch.tensor([0, 2, 2, 0, 2, 1])
    share = edge_softmax(50 * torch.randn(6, 2), target, 4)
    totals = torch.zeros(4, 2).index_add(0, target, share)
    torch.testing.assert_close(totals, torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 0.0]]))


def test_graph_attention_is_dense_masked_attention() -> None:
    layer = GraphAttention(5, 3, heads=2).double().eval()
    x = torch.randn(6, 5, dtype=torch.float64)
    edges = torch.tensor([[0, 1, 2, 5, 4], [1, 0, 1, 4, 2]])
    linked = torch.eye(6, dtype=torch.bool)
    linked[edges[1], edges[0]] = True
    mapped = layer.weight(x).reshape(6, 2, 3)
    heads = []
    for h in range(2):
        scores = (mapped[:, h] @ layer.target[h])[:, None] + (
            mapped[:, h] @ layer.source[h]
        )[None]
        scores = F.leaky_relu(scores, 0.2).masked_fill(~linked, float("-inf"))
        heads.append(scores.softmax(1) @ mapped[:, h])
    torch.testing.assert_close(layer(x, edges), sum(heads) / 2 + layer.bias)


def test_dasmil_answers_from_the_finest_scale_and_its_message_passing() -> None:
    model = DASMIL(5, 2, DASMILArgs(hidden=6)).eval()
    coords = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [0.1, 0.0]]])
    scale = torch.tensor([[1, 0, 0]])
    features = torch.randn(1, 3, 5)
    out = model(features, coords, scale)
    assert out.attention[0, 0] == 0
    features[0, 0] += 1
    changed = model(features, coords, scale)
    assert (changed.logits - out.logits).abs().max() > 1e-6


def test_dasmil_distils_only_into_the_coarse_scale() -> None:
    model = DASMIL(5, 2, DASMILArgs(hidden=6, align=0.0))
    coords, scale = torch.rand(1, 8, 2), torch.tensor([[0] * 5 + [1] * 3])
    losses = model(torch.randn(1, 8, 5), coords, scale, label=torch.tensor([1])).losses
    assert set(losses) == {"max_instance", "coarse", "distill"}
    losses["distill"].backward()
    assert model.streams[0].bag.weight.grad is None
    assert model.streams[1].bag.weight.grad is not None


def test_dasmil_aligns_a_parent_with_the_largest_of_its_children() -> None:
    model = DASMIL(5, 2)
    scores = torch.tensor([[1.0, 0.0], [3.0, -1.0], [2.0, 5.0], [9.0, 9.0]])
    child, parent = torch.tensor([1, 2]), torch.tensor([0, 0])
    expected = ((1.0 - 3.0) ** 2 + (0.0 - 5.0) ** 2) / 2
    assert model._align(scores, child, parent).item() == pytest.approx(expected)


def test_a_scale_too_many_is_refused() -> None:
    bag = torch.randn(1, 2, 5), torch.zeros(1, 2, 2), torch.tensor([[0, 3]])
    for model in (DASMIL(5, 2), MILBooster(5, 2)):
        with pytest.raises(ConfigError, match="scales"):
            model(*bag)


# MILBooster


def test_bag_filter_distance_is_mahalanobis() -> None:
    args = MILBoosterArgs(clusters=1, shrinkage=0.0)
    spread = torch.tensor([[3.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 2.0]])
    negatives = torch.randn(500, 3) @ spread + 4
    bag_filter = BagFilter(3, args)
    bag_filter.fit(negatives)
    x = torch.randn(7, 3) * 5
    centred = (x - negatives.mean(0)).double()
    covariance = torch.cov(negatives.T.double(), correction=0)
    expected = (centred @ torch.linalg.inv(covariance) * centred).sum(1).sqrt()
    torch.testing.assert_close(
        bag_filter.distance(x).double(), expected, atol=1e-3, rtol=1e-3
    )


def test_bag_filter_keeps_what_no_negative_looks_like() -> None:
    negatives = torch.cat([torch.randn(200, 4) + c for c in (0.0, 8.0)])
    model = MILBooster(4, 2, MILBoosterArgs(clusters=2, keep=0.1)).eval()
    bag = torch.cat([torch.randn(27, 4), torch.randn(9, 4) - 20])[None]
    assert (model(bag).attention > 0).all()
    model.fit(negatives)
    kept = model.filter.keep(bag[0])
    assert set(range(27, 36)) <= set(kept.tolist())
    assert len(kept) < 25
    assert (model(bag).attention[0] > 0).nonzero().flatten().tolist() == kept.tolist()


def test_bag_filter_never_empties_a_bag() -> None:
    model = MILBooster(4, 2, MILBoosterArgs(clusters=1, quantile=1.0, keep=0.25)).eval()
    negatives = torch.randn(300, 4)
    model.fit(negatives)
    assert len(model.filter.keep(torch.zeros(10, 4))) == 3
    assert len(model.filter.keep(torch.zeros(1, 4))) == 1


def test_bag_filter_needs_enough_negatives() -> None:
    with pytest.raises(SelectionError, match="negative"):
        MILBooster(4, 2).fit(torch.randn(3, 4))
