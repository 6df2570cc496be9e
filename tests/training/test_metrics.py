"""Figures against scikit-learn and hand-made cases; intervals against their promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import intervals, metrics


def draw(rng, n=61, classes=4, skill=1.0):
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + skill * np.eye(classes)[labels]
    return metrics.softmax(logits), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_figures_equal_scikit_learn(rng, classes):
    from sklearn import metrics as reference

    probabilities, labels = draw(rng, classes=classes)
    predicted = probabilities.argmax(1)
    assert metrics.accuracy(probabilities, labels) == pytest.approx(
        reference.accuracy_score(labels, predicted)
    )
    assert metrics.balanced_accuracy(probabilities, labels) == pytest.approx(
        reference.balanced_accuracy_score(labels, predicted)
    )
    assert metrics.macro_f1(probabilities, labels) == pytest.approx(
        reference.f1_score(labels, predicted, average="macro")
    )
    assert metrics.log_loss(probabilities, labels) == pytest.approx(
        reference.log_loss(labels, probabilities)
    )
    expected = (
        reference.roc_auc_score(labels, probabilities[:, 1])
        if classes == 2
        else reference.roc_auc_score(
            labels, probabilities, multi_class="ovr", average="macro"
        )
    )
    assert metrics.macro_auc(probabilities, labels) == pytest.approx(expected)
    assert (
        metrics.confusion(predicted, labels, classes)
        == reference.confusion_matrix(labels, predicted)
    ).all()


def test_roc_curve_equals_scikit_learn_with_ties(rng):
    from sklearn.metrics import roc_curve

    scores = rng.integers(0, 9, 71) / 8
    positive = rng.random(71) < 0.4
    fpr, tpr, thresholds = metrics.roc_curve(scores, positive)
    expected = roc_curve(positive, scores, drop_intermediate=False)
    for found, wanted in zip((fpr, tpr, thresholds), expected, strict=True):
        np.testing.assert_allclose(found, wanted)
    assert np.trapezoid(tpr, fpr) == pytest.approx(metrics.binary_auc(scores, positive))


def test_a_class_without_slides_is_left_out_and_nothing_is_invented():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1]])
    labels = np.array([0, 1, 1])
    assert np.isnan(metrics.class_aucs(probabilities, labels)[2])
    assert metrics.macro_auc(probabilities, labels) == 1.0
    assert np.isnan(metrics.macro_auc(probabilities[:1], labels[:1]))
    assert metrics.macro_f1(probabilities, labels) == 1.0


def test_calibration_error_of_a_case_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    labels = np.array([0, 1, 0, 1])
    # bin of 0.9: confidence 0.9, accuracy 0.5; bin of 0.6: confidence 0.6, accuracy 1.0
    assert metrics.calibration_error(probabilities, labels, bins=10) == pytest.approx(
        0.5 * 0.4 + 0.5 * 0.4
    )


def test_calibration_error_equals_a_loop_over_bins(rng):
    probabilities, labels = draw(rng, n=173)
    top, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (top > low) & (top <= high)
        if inside.any():
            expected += inside.mean() * abs(top[inside].mean() - right[inside].mean())
    assert metrics.calibration_error(probabilities, labels) == pytest.approx(expected)


def test_threshold_separates_where_it_can():
    scores = np.array([0.1, 0.2, 0.35, 0.6, 0.9])
    positive = np.array([False, False, True, True, True])
    assert metrics.best_threshold(scores, positive) == pytest.approx(0.275)
    assert metrics.best_threshold(-scores, ~positive) == pytest.approx(-0.275)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_ordered_pairs(pairs):
    scores = np.array([p[0] for p in pairs], float)
    positive = np.array([p[1] for p in pairs])
    if positive.all() or not positive.any():
        assert np.isnan(metrics.binary_auc(scores, positive))
        return
    gaps = scores[positive][:, None] - scores[~positive][None]
    expected = ((gaps > 0) + 0.5 * (gaps == 0)).mean()
    assert metrics.binary_auc(scores, positive) == pytest.approx(expected)
    assert metrics.binary_auc(-scores, positive) == pytest.approx(1 - expected)


def brute_delong(scores, positive):
    placed = (scores[positive][:, None] > scores[~positive][None]) + 0.5 * (
        scores[positive][:, None] == scores[~positive][None]
    )
    return placed.mean(), placed.mean(1), placed.mean(0)


def test_delong_equals_the_definition_by_placement_values(rng):
    positive = rng.random(57) < 0.4
    first = rng.normal(size=57) + positive
    second = np.round(first + rng.normal(size=57), 1)
    areas, covariance = intervals.delong_covariance(np.stack([first, second]), positive)
    for area, scores in zip(areas, (first, second), strict=True):
        assert area == pytest.approx(brute_delong(scores, positive)[0])
    (_, a10, a01), (_, b10, b01) = (
        brute_delong(first, positive),
        brute_delong(second, positive),
    )
    expected = (
        np.cov(np.stack([a10, b10])) / positive.sum()
        + np.cov(np.stack([a01, b01])) / (~positive).sum()
    )
    np.testing.assert_allclose(covariance, expected)


def test_delong_test_sees_a_difference_and_no_difference(rng):
    positive = rng.random(400) < 0.5
    good = rng.normal(size=400) + 2.0 * positive
    poor = rng.normal(size=400) + 0.4 * positive
    assert intervals.delong_test(good, poor, positive).p_value < 1e-6
    assert intervals.delong_test(good, good, positive).p_value == 1.0


@pytest.mark.parametrize("positives", [0, 1, 5, 6])
def test_delong_claims_nothing_with_fewer_than_two_slides_of_a_class(rng, positives):
    positive = np.arange(6) < positives
    first, second = rng.normal(size=(2, 6))
    found = intervals.delong_test(first, second, positive)
    assert np.isnan([found.p_value, found.difference.low, found.difference.high]).all()
    alone = intervals.delong_interval(first, positive)
    assert np.isnan([alone.low, alone.high]).all()


def test_delong_claims_nothing_where_areas_differ_without_spread():
    positive = np.array([False, False, True, True])
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    found = intervals.delong_test(scores, -scores, positive)
    assert found.difference.value == 1
    assert np.isnan([found.p_value, found.difference.low]).all()


def test_a_paired_bootstrap_of_an_undefined_figure_claims_nothing(rng):
    probabilities, labels = draw(rng, n=9)[0], np.zeros(9, int)
    found = intervals.paired_bootstrap(
        metrics.macro_auc, probabilities, probabilities, labels, draws=20
    )
    assert np.isnan([found.p_value, found.difference.value]).all()


def test_wilson_interval_is_honest_when_all_are_right():
    found = intervals.wilson_interval(60, 60)
    assert found.high == pytest.approx(1.0)
    assert found.low == pytest.approx(0.9398, abs=1e-3)


def coverage(draw_data, interval_of, truth, repeats):
    inside = 0
    for seed in range(repeats):
        found = interval_of(*draw_data(np.random.default_rng(seed)))
        inside += found.low <= truth <= found.high
    return inside / repeats


def test_delong_interval_covers_the_true_auc():
    from scipy.stats import norm

    def data(rng):
        positive = np.arange(90) < 40
        return rng.normal(size=90) + 1.2 * positive, positive

    truth = norm.cdf(1.2 / np.sqrt(2))
    assert 0.91 <= coverage(data, intervals.delong_interval, truth, 200) <= 0.985


def test_bootstrap_interval_covers_the_true_accuracy_with_slides_of_one_patient_alike():
    def data(rng):
        patients = np.repeat(np.arange(50), 3)
        right = (rng.random(50) < 0.75)[patients] ^ (rng.random(150) < 0.05)
        labels = rng.integers(0, 2, 150)
        return np.eye(2)[np.where(right, labels, 1 - labels)], labels, patients

    truth = 0.75 * 0.95 + 0.25 * 0.05

    def by_patient(probabilities, labels, patients):
        return intervals.bootstrap_interval(
            metrics.accuracy, probabilities, labels, patients, draws=120
        )

    def by_slide(probabilities, labels, _):
        return intervals.bootstrap_interval(
            metrics.accuracy, probabilities, labels, draws=120
        )

    assert 0.88 <= coverage(data, by_patient, truth, 100) <= 0.99
    assert coverage(data, by_slide, truth, 100) < 0.85


def test_paired_bootstrap_uses_the_same_slides_for_both(rng):
    probabilities, labels = draw(rng, n=120, skill=1.5)
    worse = probabilities.copy()
    worse[:60] = worse[:60, ::-1]
    found = intervals.paired_bootstrap(
        metrics.accuracy, probabilities, worse, labels, draws=400
    )
    assert found.difference.low > 0
    assert found.p_value < 0.05
    same = intervals.paired_bootstrap(
        metrics.accuracy, probabilities, probabilities, labels, draws=50
    )
    assert (same.difference.low, same.difference.high, same.p_value) == (0, 0, 1)


def test_resamples_draw_whole_patients():
    groups = np.array([0, 1, 1, 2, 2, 2])
    for rows in intervals.resamples(groups, 20, 3):
        counts = np.bincount(rows, minlength=6)
        assert counts[1] == counts[2]
        assert counts[3] == counts[4] == counts[5]
        assert counts[0] + counts[1] + counts[3] == 3


def test_mcnemar_and_holm_by_hand():
    first = np.array([True] * 9 + [False])
    second = np.array([True] * 4 + [False] * 5 + [True])
    assert intervals.mcnemar_test(first, second) == pytest.approx(2 * (1 + 6) / 64)
    assert intervals.mcnemar_test(first, first) == 1.0
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
