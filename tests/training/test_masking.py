"""Which instances are masked: counts against the published logs, order, ties, spared instances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.masking import (
    Fusion,
    MaskRatios,
    high_counts,
    rank_instances,
    select_masked,
    share_count,
    survivors,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _kept(n: int, ratios: MaskRatios, seed: int, heads: int = 1) -> int:
    attention = torch.rand(heads, n, generator=_generator(seed + 1000))
    return int((~select_masked(attention, ratios, _generator(seed))).sum())


@pytest.mark.parametrize(
    ("n", "ratios", "logged"),
    [
        (15702, MaskRatios(high=0.01, random=0.5, high_randomness=0.5), 7763),
        (4911, MaskRatios(high=0.02, low=0.2, random=0.7), 1136),
    ],
    ids=["abmil-camelyon16", "abmil-tcga"],
)
def test_kept_count_agrees_with_union_expectation_and_published_log(
    n: int, ratios: MaskRatios, logged: int
) -> None:
    random = share_count(n, ratios.random)
    ranked = share_count(n, ratios.low) + high_counts(n, ratios)[1]
    # survivors of the ranked sets are thinned by a uniform draw without replacement: hypergeometric
    left = n - ranked
    mean = left * (n - random) / n
    sd = math.sqrt(left * (random / n) * (1 - random / n) * (n - left) / (n - 1))
    for seed in range(5):
        assert abs(_kept(n, ratios, seed) - mean) <= 4 * sd
    assert abs(logged - mean) <= 4 * sd


def test_low_and_high_of_transmil_camelyon_are_disjoint_and_counted() -> None:
    n = 15702
    ratios = MaskRatios(high=0.03, low=0.8, high_randomness=0.5)
    assert share_count(n, 0.8) == 12562
    assert high_counts(n, ratios) == (943, 472)
    # one head: the two sets cannot meet; eight noisy heads: votes may (the published log has 8 in common)
    assert _kept(n, ratios, 3) == n - 12562 - 472
    overlap = _kept(n, ratios, 3, heads=8) - (n - 12562 - 472)
    assert 0 <= overlap < 200


def test_ceiling_ignores_binary_rounding() -> None:
    assert share_count(100, 0.07) == 7
    assert share_count(100, 0.071) == 8
    assert share_count(7, 0.0) == 0
    assert share_count(7, 2.0) == 7


def test_high_share_above_all_candidates_masks_the_share_of_the_bag() -> None:
    assert high_counts(10, MaskRatios(high=0.6, high_randomness=0.5)) == (10, 6)
    assert high_counts(10, MaskRatios(high=0.2, high_randomness=0.5)) == (4, 2)
    assert high_counts(10, MaskRatios(high=0.2, high_randomness=1.0)) == (2, 2)


def test_high_masks_the_largest_and_low_the_smallest() -> None:
    attention = torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2]])
    masked = select_masked(attention, MaskRatios(high=0.4, low=0.2), _generator())
    assert masked.tolist() == [True, True, False, True, False]
    assert survivors(masked).tolist() == [2, 4]


def test_randomly_high_masks_half_of_twice_as_many_candidates() -> None:
    attention = torch.arange(40.0)[None]
    seen: set[int] = set()
    for seed in range(50):
        masked = select_masked(
            attention, MaskRatios(high=0.1, high_randomness=0.5), _generator(seed)
        )
        chosen = masked.nonzero().flatten().tolist()
        assert len(chosen) == 4
        seen.update(chosen)
    assert seen == set(range(32, 40))


def test_voting_outvotes_an_invalid_head() -> None:
    good = torch.tensor([0.0, 5.0, 4.0, 0.0, 1.0, 0.0])
    useless = torch.full((6,), 0.5)
    attention = torch.stack([good, good + 0.1, useless])
    assert sorted(rank_instances(attention, 2, largest=True).tolist()) == [1, 2]


def test_votes_are_counted_before_means() -> None:
    attention = torch.tensor([[9.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    # instance 0 has the highest mean (3.0) but one vote; instance 2 has two votes
    assert rank_instances(attention, 1, largest=True).tolist() == [2]


def test_ties_in_votes_go_to_the_higher_mean_then_to_the_lower_index() -> None:
    attention = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 4.0]])
    assert rank_instances(attention, 1, largest=True).tolist() == [3]
    flat = torch.zeros(4, 7)
    assert rank_instances(flat, 3, largest=True).tolist() == [0, 1, 2]
    assert rank_instances(flat, 3, largest=False).tolist() == [0, 1, 2]


def test_averaging_gives_the_union_of_each_heads_share() -> None:
    attention = torch.tensor([[5.0, 4.0, 0.0, 0.0, 1.0], [5.0, 0.0, 4.0, 0.0, 1.0]])
    picked = rank_instances(attention, 4, largest=True, fusion=Fusion.AVERAGING)
    assert picked.tolist() == [0, 1, 2]  # 4 // 2 per head, instance 0 in both


def test_one_instance_always_survives() -> None:
    attention = torch.tensor([[0.3, 0.2, 0.9]])
    ratios = MaskRatios(high=0.3, low=0.6, random=1.0)
    masked = select_masked(attention, ratios, _generator())
    # instance 2 is the high set; the best of the others is spared
    assert survivors(masked).tolist() == [0]
    lone = select_masked(torch.ones(1, 1), MaskRatios(high=1.0), _generator())
    assert survivors(lone).tolist() == [0]


def test_groups_keep_every_scale_alive() -> None:
    attention = torch.cat([torch.full((20,), 9.0), torch.zeros(5), torch.zeros(2)])
    scale = torch.tensor([0] * 20 + [1] * 5 + [2] * 2)
    groups = [(scale == s).nonzero().flatten() for s in range(3)]
    ratios = MaskRatios(low=0.9)
    together = survivors(select_masked(attention, ratios, _generator()))
    assert set(scale[together].tolist()) == {0}
    apart = survivors(select_masked(attention, ratios, _generator(), groups=groups))
    assert set(scale[apart].tolist()) == {0, 1, 2}


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 60),
    heads=st.integers(1, 4),
    high=st.floats(0, 0.6),
    low=st.floats(0, 0.6),
    random=st.floats(0, 0.9),
    randomness=st.floats(0.1, 1.0),
    seed=st.integers(0, 10_000),
)
def test_survivors_are_sorted_within_bounds_and_repeatable(
    n: int,
    heads: int,
    high: float,
    low: float,
    random: float,
    randomness: float,
    seed: int,
) -> None:
    attention = torch.randint(0, 4, (heads, n), generator=_generator(seed)).float()
    ratios = MaskRatios(high, low, random, randomness)
    masked = select_masked(attention, ratios, _generator(seed))
    again = select_masked(attention, ratios, _generator(seed))
    assert torch.equal(masked, again)
    kept = survivors(masked)
    assert 1 <= len(kept) <= n
    assert kept.tolist() == sorted(set(kept.tolist()))
    asked = share_count(n, random) + share_count(n, low) + high_counts(n, ratios)[1]
    assert len(kept) >= n - asked


def test_selection_does_not_change_its_input_or_need_gradients() -> None:
    attention = torch.rand(2, 9, requires_grad=True)
    before = attention.detach().clone()
    masked = select_masked(attention, MaskRatios(high=0.2, random=0.5), _generator())
    assert not masked.requires_grad
    assert torch.equal(attention.detach(), before)
