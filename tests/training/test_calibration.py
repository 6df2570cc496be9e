"""Calibration, class sets and the model card."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.checkpoint import read_header, save_checkpoint
from napari_msamil.class_sets import conformal_set
from napari_msamil.config import AggregatorSpec, EncoderSpec, ModelConfig
from napari_msamil.errors import CheckpointError, CohortError
from napari_msamil.reliability import Reliability
from training import metrics
from training.calibration import (
    PENALTY,
    calibrate,
    conformal_threshold,
    fit_temperature,
    true_class_scores,
)
from training.cards import push, write_card
from training.prediction_table import Predictions


def sample(rng, n, sharpness):
    """Labels drawn from softmax(logits); the model says softmax(sharpness · logits)."""
    logits = rng.normal(scale=1.5, size=(n, 4))
    truth = metrics.softmax(logits)
    labels = np.array([rng.choice(4, p=p) for p in truth])
    return sharpness * logits, labels


def table_of(logits, labels):
    n = len(labels)
    names = tuple(f"s{i}" for i in range(n))
    return Predictions(
        tuple("abcd"),
        names,
        names,
        ("val",) * n,
        (0,) * n,
        labels,
        metrics.softmax(logits),
    )


@pytest.mark.parametrize("sharpness", [3.0, 0.5])
def test_temperature_undoes_wrong_confidence(rng, sharpness):
    logits, labels = sample(rng, 3000, sharpness)
    assert fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.12)
    found = calibrate(table_of(logits, labels))
    assert found.ece_after < found.ece_before
    assert found.ece_after < 0.05


def test_class_sets_hold_the_truth_as_often_as_promised():
    hits = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        logits, labels = sample(rng, 260, 1.0)
        p = metrics.softmax(logits)
        threshold = conformal_threshold(p[:60], labels[:60], 0.9)
        hits += [
            label in conformal_set(q, threshold, PENALTY)
            for q, label in zip(p[60:], labels[60:], strict=True)
        ]
    assert 0.87 < np.mean(hits) < 0.94


def test_too_few_slides_promise_nothing_but_all_classes():
    p = np.array([[0.7, 0.2, 0.1]] * 5)
    everything = conformal_threshold(p, np.zeros(5, int), 0.9)
    assert everything == pytest.approx(1 + 2 * PENALTY)
    assert conformal_set(p[0], everything, PENALTY) == (0, 1, 2)
    with pytest.raises(
        CohortError, match="at least 10 labelled validation slides; there are 5"
    ):
        calibrate(table_of(np.zeros((5, 4)), np.zeros(5, int)))


def test_a_model_that_is_certain_and_right_gets_sets_of_one_and_no_sharper():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 40)
    logits = 9.0 * np.eye(4)[labels] + rng.normal(scale=0.3, size=(40, 4))
    found = calibrate(table_of(logits, labels))
    assert 0.8 < found.temperature < 1.05  # without the prior it would be 0.05
    certain, torn = np.array([0.9994, 4e-4, 1e-4, 1e-4]), np.array([0.5, 0.4, 0.1, 0])
    for p, expected in ((certain, (0,)), (torn, (0, 1))):
        assert conformal_set(p, found.set_threshold, found.set_penalty) == expected


def test_scores_by_hand():
    p = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    # third class second in both rows: 0.5 + 0.3 and 0.6 + 0.3, and once the penalty
    assert true_class_scores(p, np.array([2, 2]), 0.05) == pytest.approx([0.85, 0.95])
    assert true_class_scores(p, np.array([1, 1]), 0.05) == pytest.approx([1.1, 0.6])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.floats(0, 1))
def test_a_set_grows_with_its_threshold_and_starts_with_the_likeliest(
    weights, threshold
):
    p = np.array(weights) / sum(weights)
    found = conformal_set(p, threshold)
    assert found[0] == int(np.argmax(p))
    assert len(found) <= len(conformal_set(p, min(threshold + 0.2, 1.0)))
    assert len(conformal_set(p, 1.0)) == len(p)


def test_the_plugin_says_when_a_calibrated_model_is_not_sure():
    doubtful = Reliability(None, ("a", "c"), 0.9, ())
    assert doubtful.sentences == (
        "The model is not sure: with 90 % coverage the class is one of a, c.",
    )
    assert Reliability(None, ("a",), 0.9, ()).sentences == ()
    assert Reliability(None, (), None, ()).sentences == ()


@pytest.fixture
def published(tmp_path):
    from napari_msamil.models import build_model

    config = ModelConfig(
        name="toy",
        classes=("a", "b"),
        encoder=EncoderSpec(kind="timm", backbone="lcnet_050", dim=1280),
        aggregator=AggregatorSpec(
            name="abmil", in_dim=1280, args={"hidden": 8, "attention_dim": 4}
        ),
        temperature=1.7,
        licence="bsd-3-clause",
    )
    pooled = {"acc": {"value": 0.95, "low": 0.9, "high": None}}
    story = {
        "data": "synthetic slides",
        "data_hash": "abc123",
        "command": "msamil-train publish runs/mil",
        "metrics": {"pooled": pooled, "slides": 60, "patients": 31},
        "calibration": calibrate(
            table_of(np.eye(4)[[0, 1, 2, 3] * 4] * 3, np.array([0, 1, 2, 3] * 4))
        ).as_dict(),
    }
    return save_checkpoint(
        tmp_path / "toy.safetensors", build_model(config).eval(), story
    )


def test_the_card_says_what_the_header_says(published):
    text = write_card(published).read_text(encoding="utf-8")
    assert text.startswith('---\nlicense: "bsd-3-clause"\n')
    for part in (
        "| ACC | 0.950 | 0.900 … - |",
        "60 slides of 31 patients",
        "`abc123`",
        "temperature 1.700",
        "Research only. Not for diagnosis.",
        "no medical meaning",
        f"{read_header(published).parameters:,}",
        "Calibrated on 16 validation slides",
    ):
        assert part in text


def test_uploading_is_only_tried_when_asked_and_fails_with_one_sentence(
    published, monkeypatch
):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(
        CheckpointError, match="could not be uploaded to me/toy: no network"
    ):
        push(published, "me/toy", write_card(published))


def test_what_is_learnt_multiplies_the_temperature_of_the_predictions(rng):
    logits, labels = sample(rng, 3000, 3.0)
    plain = calibrate(table_of(logits, labels))
    again = calibrate(table_of(logits / 2, labels), made_at=2.0)
    assert again.temperature == pytest.approx(plain.temperature, rel=0.01)
    final = metrics.softmax(logits, again.temperature)
    assert again.set_threshold == pytest.approx(
        conformal_threshold(final, labels), rel=1e-3
    )
    kept = calibrate(table_of(logits / 2, labels), made_at=2.0, refit=False)
    assert kept.temperature == 2.0
    assert kept.set_threshold == pytest.approx(
        conformal_threshold(metrics.softmax(logits, 2.0), labels), rel=1e-4
    )
