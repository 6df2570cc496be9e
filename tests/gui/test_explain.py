"""Questions that need no patch to be encoded again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.checkpoint import load_checkpoint
from napari_msamil.errors import MsamilError
from napari_msamil.gui.explain import (
    answer_for,
    contribution_steps,
    instance_probability_steps,
    mhim_masked,
    patches_inside,
    trust_steps,
    what_if_steps,
)
from napari_msamil.progress import finish

pytestmark = pytest.mark.gui


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint)


def test_all_patches_give_the_answer_itself(loaded, answered):
    everything = np.ones(len(answered.grid), bool)
    found = answer_for(loaded, answered, everything)
    np.testing.assert_allclose(found, answered.probabilities, atol=1e-5)
    nothing = answer_for(loaded, answered, ~everything)
    assert np.isnan(nothing).all()


def test_leaving_patches_out_equals_classifying_without_them(
    loaded, answered, painted_svs
):
    """The same answer as a run whose mask never had the patches."""
    from napari_msamil import classify, open_slide
    from napari_msamil.masks import MaskSource, SlideMask

    with open_slide(painted_svs) as slide:
        half = np.zeros((64, 96), bool)
        half[:, :48] = True
        mask = SlideMask(half, slide.info.size_wh0, MaskSource.USER)
        again = classify(slide, loaded, mask=mask, cache=False)
    rows = {
        tuple(r) for r in np.column_stack([again.grid.scale, again.grid.coords_xy0])
    }
    both = np.column_stack([answered.grid.scale, answered.grid.coords_xy0])
    keep = np.array([tuple(row) in rows for row in both])
    found = answer_for(loaded, answered, keep)
    np.testing.assert_allclose(found, again.probabilities, atol=2e-3)


def test_what_if_refuses_a_region_without_patches_or_with_all(loaded, answered):
    everything = np.ones(len(answered.grid), bool)
    for inside in (everything, ~everything):
        with pytest.raises(MsamilError):
            finish(what_if_steps(loaded, answered, inside))


def test_an_answer_without_features_asks_to_classify_again(loaded, answered):
    with pytest.raises(MsamilError, match="classify again"):
        answer_for(
            loaded,
            replace(answered, features=answered.features[:0]),
            np.ones(len(answered.grid), bool),
        )


def test_contributions_are_changes_of_the_predicted_class(loaded, answered):
    found = finish(contribution_steps(loaded, answered))
    best = int(np.argmax(answered.probabilities))
    without = answer_for(loaded, answered, answered.grid.scale != 2)
    assert list(found) == ["20x", "10x", "5x"]
    assert found["5x"] == pytest.approx(
        float(without[best] - answered.probabilities[best])
    )


def test_faithfulness_starts_at_the_answer_and_is_seeded(loaded, answered):
    one = finish(trust_steps(loaded, answered, repeats=2, seed=4))
    two = finish(trust_steps(loaded, answered, repeats=2, seed=4))
    np.testing.assert_array_equal(one.random, two.random)
    assert one.attended[0] == pytest.approx(
        float(answered.probabilities.max()), abs=1e-5
    )
    assert one.random.shape == (2, len(one.deleted))


def test_patches_inside_a_polygon_are_those_with_their_centre_in_it(answered):
    grid = answered.grid
    side = grid.size_px0[0]
    box = np.array([[0, 0], [2 * side, 0], [2 * side, side], [0, side]], float)
    inside = patches_inside(answered, [box])
    fine = inside[grid.scale == 0]
    assert fine.sum() == 2
    assert not patches_inside(answered, [box + 1e6]).any()


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 90),
    heads=st.integers(1, 5),
    high=st.floats(0, 1),
    low=st.floats(0, 1),
    random=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_mhim_masks_the_shares_it_is_told(count, heads, high, low, random, seed):
    attention = np.random.default_rng(seed).random((heads, count))
    masked = mhim_masked(attention, high, low, random, seed)
    for chosen, share in zip(
        (masked.high, masked.low, masked.random), (high, low, random), strict=True
    ):
        assert chosen.sum() == min(int(np.ceil(share * count - 1e-9)), count)
    np.testing.assert_array_equal(masked.any, masked.high | masked.low | masked.random)


def test_mhim_view_masks_what_training_masks():
    """The same high and low sets as the training package's own selection."""
    torch = pytest.importorskip("torch")
    masking = pytest.importorskip("training.masking")
    attention = np.random.default_rng(5).random((3, 77)).astype(np.float32)
    ratios = masking.MaskRatios(high=0.1, low=0.2)
    wanted = masking.select_masked(
        torch.from_numpy(attention), ratios, torch.Generator().manual_seed(0)
    ).numpy()
    np.testing.assert_array_equal(mhim_masked(attention, 0.1, 0.2, 0.0).any, wanted)


def test_instance_probability_is_that_of_the_predicted_class(loaded, answered):
    logits = np.zeros((len(answered.grid), 3), np.float32)
    logits[:, int(np.argmax(answered.probabilities))] = np.log(2)
    scored = replace(answered, instance_logits=logits)
    found = finish(instance_probability_steps(loaded, scored))
    np.testing.assert_allclose(found, 0.5, rtol=1e-6)


def test_without_scores_and_features_there_is_no_instance_probability(loaded, answered):
    empty = replace(
        answered, instance_logits=None, features=np.zeros((0, 0), np.float32)
    )
    with pytest.raises(MsamilError, match="classify again"):
        finish(instance_probability_steps(loaded, empty))
