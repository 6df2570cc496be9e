"""Calibration, class sets and the model card."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.checkpoint import read_header, save_checkpoint
from napari_msamil.class_sets import conformal_set, uncertainty_warnings
from napari_msamil.config import AggregatorSpec, EncoderSpec, ModelConfig
from napari_msamil.errors import CheckpointError, CohortError
from training import metrics
from training.calibration import (
    calibrate,
    conformal_threshold,
    fit_temperature,
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
            label in conformal_set(q, threshold)
            for q, label in zip(p[60:], labels[60:], strict=True)
        ]
    assert 0.87 < np.mean(hits) < 0.94


def test_too_few_slides_promise_nothing_but_all_classes():
    p = np.array([[0.7, 0.2, 0.1]] * 5)
    assert conformal_threshold(p, np.zeros(5, int), 0.9) == 1.0
    assert conformal_set(p[0], 1.0) == (0, 1, 2)
    with pytest.raises(
        CohortError, match="at least 10 labelled validation slides; there are 5"
    ):
        calibrate(table_of(np.zeros((5, 4)), np.zeros(5, int)))


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
    doubtful, sure = np.array([0.5, 0.1, 0.4]), np.array([0.97, 0.02, 0.01])
    story = {"calibration": {"set_threshold": 0.95, "coverage": 0.9}}
    assert uncertainty_warnings(story, "abc", doubtful) == (
        "The model is not sure: with 90 % coverage the class is one of a, c.",
    )
    assert uncertainty_warnings(story, "abc", sure) == ()
    assert uncertainty_warnings({}, "abc", doubtful) == ()


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
