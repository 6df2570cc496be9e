"""Slides of another kind are named, slides of the same kind are not: limits learnt from validation slides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from napari_msamil.errors import CohortError
from training.bag_cohort import cohort_bags
from training.bag_dataset import BagDataset
from training.bags import StoredBag, save_bag
from training.cohort import read_cohort
from training.familiar import (
    fit_familiarity,
    learn_familiarity,
    lower_limit,
    slide_distances,
    upper_limit,
)

DIM = 6
RATE = 0.1


def bag(rng, count, kind="same"):
    """Features with correlations; scale 1 has another mean."""
    mix = np.linalg.cholesky(0.6 * np.ones((DIM, DIM)) + 0.4 * np.eye(DIM))
    scale = (np.arange(count) % 5 == 4).astype(np.int8)
    features = rng.normal(size=(count, DIM)) @ mix.T + 3 * scale[:, None]
    if kind == "noise":  # as large as the others, without their correlations
        features = rng.normal(size=(count, DIM)) + 3 * scale[:, None]
    if kind == "stain":  # every patch is moved in one direction
        features = features + np.array([1.5, -1.5] * (DIM // 2))
    return StoredBag(
        features=torch.tensor(features, dtype=torch.float32),
        coords_xy0=torch.zeros(count, 2, dtype=torch.int64),
        scale=torch.tensor(scale),
        valid=torch.ones(count, dtype=torch.bool),
        size_px0=(32, 64),
        size_wh0=(999, 777),
        mpp=0.5,
        scale_names=("20x", "10x"),
        encoder_id="abc-fp32",
    )


def bags(seed, counts, kind="same"):
    rng = np.random.default_rng(seed)
    return BagDataset([bag(rng, n, kind) for n in counts], [0] * len(counts))


def test_limits_are_order_statistics():
    values = np.arange(1.0, 20.0)  # 19 of them: the ⌈20 · 0.9⌉ = 18th smallest
    assert upper_limit(values, 0.1) == 18
    assert lower_limit(values, 0.1) == 2
    assert upper_limit(values[:5], 0.1) == 5  # too few: the largest
    assert lower_limit(values[:5].astype(int), 0.1) == 1


def test_limits_keep_their_rate_by_simulation():
    rng = np.random.default_rng(0)
    draws = rng.gamma(2.0, size=(4000, 40))
    above = np.mean([d[39] > upper_limit(d[:39], 0.05) for d in draws])
    below = np.mean([d[39] < lower_limit(d[:39], 0.05) for d in draws])
    # 38th of 39: exactly 2 of 40; three standard deviations of 4000 draws are 0.0103
    assert abs(above - 0.05) < 0.0104
    assert abs(below - 0.05) < 0.0104


def test_distances_are_mahalanobis_with_a_mean_per_scale():
    train = bags(1, [80, 41, 67])
    module = fit_familiarity([train], 2)
    x, scale = train.features.double().numpy(), train.scale.numpy()
    means = np.stack([x[scale == s].mean(0) for s in (0, 1)])
    reference = LedoitWolf(assume_centered=True).fit(x - means[scale])
    other = bags(2, [33])
    moved = other.features.double().numpy() - means[other.scale.numpy()]
    expected = np.sqrt(reference.mahalanobis(moved).mean() / DIM)
    assert slide_distances(module, other)[0] == pytest.approx(expected, rel=1e-3)
    assert slide_distances(module, train).mean() == pytest.approx(1, abs=0.05)


def write_bags(tmp_path, counts, splits):
    rng = np.random.default_rng(3)
    rows = ["slide_id,path,patient_id,label,mask,split,mpp"]
    for i, (count, split) in enumerate(zip(counts, splits, strict=True)):
        save_bag(tmp_path / "bags" / f"s{i}.pt", bag(rng, count))
        rows.append(f"s{i},s{i}.tiff,P{i},{'ab'[i % 2]},,{split},")
    table = tmp_path / "cohort.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return read_cohort(table, need_files=False)


def test_slides_of_another_kind_are_found_and_the_same_kind_is_not(tmp_path):
    rng = np.random.default_rng(5)
    counts = rng.integers(40, 300, 60).tolist()
    cohort = write_bags(tmp_path, counts, ["train"] * 30 + ["val"] * 30)
    learnt = learn_familiarity([cohort], tmp_path / "bags", ("20x", "10x"), RATE)
    assert (learnt.spec.patients, learnt.spec.rate) == (30, RATE)
    assert learnt.encoder_id == "abc-fp32"
    assert learnt.spec.patches == np.sort(counts[30:])[2]
    train = cohort_part(cohort, tmp_path)
    module = fit_familiarity([train], 2)
    same = slide_distances(module, bags(7, rng.integers(40, 300, 200).tolist()))
    # 28th of 30: at most 0.1 in the mean over validation sets; this set's own rate varies with sd 0.053
    assert (same > learnt.spec.distance).mean() < RATE + 2 * 0.053
    for kind in ("noise", "stain"):
        other = slide_distances(module, bags(8, [40, 77, 150], kind))
        assert (other > learnt.spec.distance).all(), kind


def cohort_part(cohort, tmp_path):
    return cohort_bags(cohort, tmp_path / "bags")["train"]


def test_too_few_validation_slides_are_refused(tmp_path):
    cohort = write_bags(tmp_path, [9] * 12, ["train"] * 3 + ["val"] * 9)
    with pytest.raises(CohortError, match=r"of at least 10 patients; there are 9"):
        learn_familiarity([cohort], tmp_path / "bags", ("20x", "10x"))


def test_few_slides_promise_only_what_they_can(tmp_path):
    cohort = write_bags(tmp_path, [9] * 14, ["train"] * 3 + ["val"] * 11)
    spec = learn_familiarity([cohort], tmp_path / "bags", ("20x", "10x")).spec
    assert spec.rate == pytest.approx(1 / 12)


def test_a_patient_counts_once_and_every_validation_slide_by_its_own_fold(tmp_path):
    rng = np.random.default_rng(11)
    counts = rng.integers(20, 90, 36).tolist()
    cohort = write_bags(tmp_path, counts, [""] * 36)
    rows = tuple(replace(r, patient_id=f"P{i // 2}") for i, r in enumerate(cohort.rows))
    cohort = replace(cohort, rows=rows)
    split = [{r.slide_id: r.split for r in rows} for _ in range(2)]
    for i, row in enumerate(rows):
        split[0][row.slide_id] = "val" if i < 18 else "train"
        split[1][row.slide_id] = "train" if i < 18 else "val"
    folds = [cohort.with_splits(s) for s in split]
    learnt = learn_familiarity(folds, tmp_path / "bags", ("20x", "10x"), RATE)
    distances = np.empty(36)
    for fold, own in zip(folds, (slice(0, 18), slice(18, 36)), strict=True):
        parts = cohort_bags(fold, tmp_path / "bags")
        module = fit_familiarity([parts["train"]], 2)
        distances[own] = slide_distances(module, parts["val"])
    of_patients = distances.reshape(18, 2).max(axis=1)
    # 18 patients: the ⌈19 · 0.9⌉ = 18th smallest
    assert learnt.spec.distance == pytest.approx(of_patients.max())
    assert learnt.spec.patches == min(counts)
    assert learnt.spec.patients == 18
    whole = fit_familiarity([parts["train"], parts["val"]], 2)
    torch.testing.assert_close(learnt.weights["mean"], whole.mean)
