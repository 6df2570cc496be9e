"""Folds keep patients whole and classes even; a broken split file is refused before anything is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.errors import CohortError, ConfigError
from training.cohort import Cohort, CohortRow, read_cohort, write_cohort
from training.splits import (
    Splits,
    check_splits,
    count_parts,
    make_splits,
    read_splits,
    splits_of_column,
    write_splits,
)


def cohort_of(patients_per_class: dict[str, list[int]]) -> Cohort:
    rows = [
        CohortRow(
            f"{label}-{p}-{s}", Path(f"{label}-{p}-{s}.tiff"), f"{label}-{p}", label
        )
        for label, counts in patients_per_class.items()
        for p, slides in enumerate(counts)
        for s in range(slides)
    ]
    return Cohort(Path("cohort.csv"), tuple(rows), tuple(sorted(patients_per_class)))


EVEN = cohort_of({"a": [1, 2, 3] * 6, "b": [2, 1, 1] * 6})


@settings(deadline=None, max_examples=15)
@given(
    st.integers(2, 4),
    st.integers(0, 99),
    st.lists(
        st.lists(st.integers(1, 4), min_size=9, max_size=15), min_size=2, max_size=3
    ),
)
def test_folds_partition_the_cohort_and_keep_patients_whole(n_folds, seed, classes):
    cohort = cohort_of({f"c{i}": counts for i, counts in enumerate(classes)})
    splits = make_splits(cohort, n_folds, seed=seed)
    patient = {r.slide_id: r.patient_id for r in cohort.rows}
    tested = [name for fold in splits.folds for name in fold["test"]]
    assert sorted(tested) == sorted(patient)
    for fold in splits.folds:
        parts = [{patient[n] for n in fold[p]} for p in ("train", "val", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert sum(len(fold[p]) for p in fold) == len(cohort)


def test_classes_are_even_across_folds():
    table = [
        row
        for row in count_parts(EVEN, make_splits(EVEN, 3, seed=1))
        if row[1] == "test"
    ]
    shares = np.array([row[3] for row in table]) / np.array([[row[2]] for row in table])
    whole = np.array([36, 24]) / 60
    assert np.abs(shares - whole).max() < 0.12


def test_the_same_seed_draws_the_same_folds_and_another_seed_others():
    assert make_splits(EVEN, 3, seed=4).sha256 == make_splits(EVEN, 3, seed=4).sha256
    assert make_splits(EVEN, 3, seed=4).sha256 != make_splits(EVEN, 3, seed=5).sha256


def test_a_class_with_too_few_patients_is_named():
    with pytest.raises(
        CohortError,
        match=r"class b has 3 patients; 3 folds with validation need at least 4",
    ):
        make_splits(cohort_of({"a": [1] * 9, "b": [5, 5, 5]}), 3)


def test_splits_survive_the_file_and_an_edited_file_is_refused(tmp_path):
    splits = make_splits(EVEN, 3)
    path = write_splits(tmp_path / "splits.json", splits)
    assert read_splits(path) == splits
    content = json.loads(path.read_text())
    content["folds"][0]["train"].append(content["folds"][0]["test"].pop())
    path.write_text(json.dumps(content))
    with pytest.raises(CohortError, match="changed after they were drawn"):
        read_splits(path)
    path.write_text("[]")
    with pytest.raises(CohortError, match="cannot be read"):
        read_splits(path)


def leaking(splits: Splits) -> Splits:
    fold = dict(splits.folds[0])
    moved = fold["test"][0]
    fold["train"], fold["test"] = (*fold["train"], moved), fold["test"][1:]
    return replace(splits, folds=(fold, *splits.folds[1:]))


def test_a_leak_is_found_and_all_problems_are_listed():
    cohort = cohort_of({"a": [3] * 9, "b": [3] * 9})
    splits = make_splits(cohort, 3)
    broken = leaking(splits)
    fold = dict(broken.folds[1])
    fold["val"] = (*fold["val"], fold["train"][0], "ghost")
    broken = replace(broken, folds=(broken.folds[0], fold, broken.folds[2]))
    with pytest.raises(CohortError) as found:
        check_splits(cohort, broken)
    text = str(found.value)
    for part in (
        "fold 0: patient",
        "lies in test and train",
        "is tested in no fold",
        "lies in two parts",
        "ghost is not in the cohort",
    ):
        assert part in text


def test_splits_of_another_cohort_are_refused(tmp_path):
    splits = make_splits(EVEN, 3)
    other = replace(EVEN, rows=(replace(EVEN.rows[0], label="b"), *EVEN.rows[1:]))
    with pytest.raises(CohortError, match="another cohort"):
        check_splits(other, splits)


def test_reading_a_cohort_with_a_fold_sets_its_splits(tmp_path):
    table = write_cohort(tmp_path / "cohort.csv", EVEN.rows)
    path = write_splits(tmp_path / "splits.json", make_splits(EVEN, 3))
    cohort = read_cohort(table, splits=path, fold=2, need_files=False)
    assert {r.slide_id for r in cohort.part("test")} == set(
        read_splits(path).folds[2]["test"]
    )
    with pytest.raises(CohortError, match=r"folds 0 … 2, not 3"):
        read_cohort(table, splits=path, fold=3, need_files=False)


def test_the_data_hash_knows_the_fold_but_not_the_folder(tmp_path):
    table = write_cohort(tmp_path / "cohort.csv", EVEN.rows)
    path = write_splits(tmp_path / "splits.json", make_splits(EVEN, 3))
    hashes = {
        read_cohort(table, splits=path, fold=k, need_files=False).data_hash
        for k in range(3)
    }
    assert len(hashes) == 3
    moved = replace(
        EVEN,
        rows=tuple(replace(r, path=Path("elsewhere") / r.path.name) for r in EVEN.rows),
    )
    assert moved.identity == EVEN.identity


def test_a_patient_with_slides_of_two_classes_stays_whole():
    rows = []
    for p in range(12):
        for s in range(3):
            label = "ab"[p % 2] if s < 2 else "ab"[(p // 2) % 2]
            rows.append(CohortRow(f"{p}-{s}", Path(f"{p}-{s}.tiff"), f"p{p}", label))
    cohort = Cohort(Path("cohort.csv"), tuple(rows), ("a", "b"))
    both = {
        p: {r.label for r in rows if r.patient_id == p}
        for p in {r.patient_id for r in rows}
    }
    assert sum(len(labels) == 2 for labels in both.values()) == 6
    splits = make_splits(cohort, 3, seed=2)
    check_splits(cohort, splits, Path("splits.json"))
    for fold in splits.folds:
        parts = [{n.split("-")[0] for n in fold[p]} for p in ("train", "val", "test")]
        assert sum(map(len, parts)) == 12
        assert len(fold["test"]) == 12


def with_column(cohort: Cohort, folds: list[int | None]) -> Cohort:
    patients = sorted({r.patient_id for r in cohort.rows})
    fold_of = dict(zip(patients, folds, strict=True))
    rows = tuple(replace(r, fold=fold_of[r.patient_id]) for r in cohort.rows)
    return replace(cohort, rows=rows)


def test_the_column_fold_gives_the_test_parts_in_ascending_order():
    cohort = with_column(EVEN, [4, 1, 9] * 12)
    splits = splits_of_column(cohort, seed=3)
    fold_of = {r.slide_id: r.fold for r in cohort.rows}
    tested = [{fold_of[n] for n in fold["test"]} for fold in splits.folds]
    assert tested == [{1}, {4}, {9}]
    assert all(len(fold["val"]) > 0 for fold in splits.folds)
    check_splits(cohort, splits)


def test_a_column_fold_that_cannot_be_used_is_refused_with_all_reasons():
    with pytest.raises(CohortError, match="line 0: no fold"):
        splits_of_column(with_column(EVEN, [0, None, 1] * 12))
    torn = with_column(EVEN, [0, 1] * 18)
    lost = next(i for i, r in enumerate(torn.rows) if r.slide_id == "a-1-0")
    rows = list(torn.rows)
    rows[lost] = replace(rows[lost], fold=0)
    with pytest.raises(CohortError, match="patient a-1 lies in several folds"):
        splits_of_column(replace(torn, rows=tuple(rows)))
    with pytest.raises(CohortError) as found:
        splits_of_column(with_column(EVEN, [0] * 18 + [1] * 18))
    assert "class a has 0 patients outside of fold 0" in str(found.value)
    assert "class b has 0 patients outside of fold 1" in str(found.value)


@pytest.mark.parametrize("share", [0.0, -0.1, 0.6, 1.0, float("nan")])
def test_a_share_that_leaves_no_validation_or_little_training_is_refused(share):
    with pytest.raises(ConfigError, match=r"not above 0 and at most 0\.5"):
        make_splits(EVEN, 3, val_share=share)
