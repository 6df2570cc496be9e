"""Evaluation: figures, files, comparison, worst errors, and the engine run behind a checkpoint."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from napari_msamil.checkpoint import load_checkpoint, save_checkpoint
from napari_msamil.config import (
    AggregatorSpec,
    EncoderSpec,
    ModelConfig,
    PatchSpec,
    ScaleSpec,
    Strategy,
    TissueSpec,
)
from napari_msamil.device import choose_runtime
from napari_msamil.errors import CohortError
from napari_msamil.models import build_model
from napari_msamil.progress import finish
from training import metrics
from training.cli import main
from training.cohort import read_cohort
from training.engine_run import EngineSpec, predict_cohort, read_engine_run
from training.evaluate import worst_errors
from training.prediction_table import (
    Predictions,
    join_predictions,
    read_predictions,
    save_predictions,
)
from training.summary import summarise, thresholded
from training.synth import make_cohort
from training.synth_plan import SynthSpec


def predictions(rng, n=60, classes=("x", "y", "z"), skill=2.0, split="test", fold=0):
    labels = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes))) + skill * np.eye(len(classes))[labels]
    return Predictions(
        classes,
        tuple(f"s{fold}_{i}" for i in range(n)),
        tuple(f"p{i // 2}" for i in range(n)),
        (split,) * n,
        (fold,) * n,
        labels,
        np.round(metrics.softmax(logits), 6),
    )


def test_tables_survive_the_file(rng, tmp_path):
    found = predictions(rng)
    again = read_predictions(save_predictions(tmp_path / "p.csv", found))
    assert (again.slide_ids, again.patients, again.splits, again.folds) == (
        found.slide_ids,
        found.patients,
        found.splits,
        found.folds,
    )
    np.testing.assert_array_equal(again.labels, found.labels)
    np.testing.assert_allclose(again.probabilities, found.probabilities)


def test_tables_that_are_none_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("slide_id,p_x\na,1\n")
    with pytest.raises(CohortError, match="no table of predictions"):
        read_predictions(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("slide_id,label,p_x,p_y\na,q,1,0\n")
    with pytest.raises(CohortError, match="line 2: unknown label 'q'"):
        read_predictions(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_text("slide_id,label,p_x,p_y\na,x,much,0\n")
    with pytest.raises(CohortError, match="'much'"):
        read_predictions(tmp_path / "p.csv")


def test_pooled_and_fold_figures_are_those_of_the_slides(rng):
    first, second = predictions(rng, 31, fold=0), predictions(rng, 20, fold=1)
    summary = summarise(join_predictions([first, second]), draws=50)
    assert summary.folds[1]["acc"].value == metrics.accuracy(
        second.probabilities, second.labels
    )
    assert summary.mean["auc"] == pytest.approx(
        np.mean([metrics.macro_auc(p.probabilities, p.labels) for p in (first, second)])
    )
    assert summary.slides == 51


def test_all_right_is_not_certain(rng):
    summary = summarise(predictions(rng, 40, skill=50.0), draws=30)
    assert summary.pooled["acc"].value == 1
    assert 0.9 < summary.pooled["acc"].low < 1


def test_runs_are_compared_slide_by_slide_whatever_their_order(rng, tmp_path, capsys):
    good = predictions(rng, skill=4.0)
    poor = predictions(np.random.default_rng(1), skill=0.2)
    poor = Predictions(**{**vars(poor), "labels": good.labels}).take(
        rng.permutation(60)
    )
    paths = [
        str(save_predictions(tmp_path / f"{n}.csv", p))
        for n, p in (("good", good), ("poor", poor))
    ]
    words = [
        "evaluate",
        "--predictions",
        paths[0],
        "--against",
        paths[1],
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    lines = json.loads((tmp_path / "out" / "figures.json").read_text())["against"]
    assert lines[0].startswith("ACC against the other: +")
    assert "paired bootstrap" in lines[0]
    with pytest.raises(CohortError, match="same slides"):
        good.take([0, 1]).aligned_with(poor)


def test_the_report_is_one_page_with_the_worst_errors_first(rng, tmp_path):
    found = predictions(rng, skill=0.7)
    path = save_predictions(tmp_path / "p.csv", found)
    assert (
        main(["evaluate", "--predictions", str(path), "-o", str(tmp_path / "out")]) == 0
    )
    out = tmp_path / "out"
    names = {
        "figures.json",
        "figures.md",
        "predictions.csv",
        "worst.csv",
        "report.html",
        "confusion.png",
        "roc.png",
        "reliability.png",
    }
    assert {p.name for p in out.iterdir()} == names
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    with (out / "worst.csv").open() as file:
        rows = list(csv.DictReader(file))
    gaps = [float(r["p_prediction"]) - float(r["p_label"]) for r in rows]
    assert gaps == sorted(gaps, reverse=True)
    assert len(rows) == int((found.predicted != found.labels).sum())
    assert found.slide_ids[worst_errors(found)[0]] == rows[0]["slide_id"]


def test_the_threshold_comes_from_validation_slides(rng, tmp_path):
    val = predictions(rng, 80, ("x", "y"), 1.0, "val")
    test = replace(
        predictions(rng, 90, ("x", "y"), 1.0, "test"),
        slide_ids=tuple(f"t{i}" for i in range(90)),
    )
    found, why = thresholded(test, val)
    assert not why
    expected = metrics.best_threshold(val.probabilities[:, 1], val.labels == 1)
    assert found["threshold"] == expected
    assert (
        found["acc"]
        == ((test.probabilities[:, 1] >= expected) == (test.labels == 1)).mean()
    )
    path = save_predictions(tmp_path / "p.csv", join_predictions([val, test]))
    assert (
        main(["evaluate", "--predictions", str(path), "-o", str(tmp_path / "out")]) == 0
    )
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert figures["slides"] == 90
    assert figures["threshold_from_validation"]["threshold"] == pytest.approx(
        expected, abs=1e-5
    )


def folds(rng, numbers=(0, 1, 2), n=24, classes=("x", "y"), skill=1.0):
    """Tables of a cross-validation: slides that a fold tests are validated by the next."""
    whole = predictions(rng, n * len(numbers), classes, skill)
    parts = []
    for i, number in enumerate(numbers):
        test = np.arange(n * i, n * (i + 1))
        val = np.roll(np.arange(len(whole)), n)[test]
        noise = rng.normal(size=(2 * n, len(classes)))
        both = whole.take([*test, *val])
        p = metrics.softmax(np.log(both.probabilities) + 0.3 * noise)
        parts.append(
            replace(
                both,
                splits=("test",) * n + ("val",) * n,
                folds=(number,) * 2 * n,
                probabilities=np.round(p, 6),
            )
        )
    return parts


def save_folds(folder, parts):
    """`fold_<k>/predictions.csv` as `crossval` leaves them: without a column of folds."""
    paths = []
    for part in parts:
        path = folder / f"fold_{part.folds[0]}" / "predictions.csv"
        lines = save_predictions(path, part).read_text().splitlines()
        cells = [line.split(",") for line in lines]
        path.write_text("\n".join(",".join(c[:3] + c[4:]) for c in cells) + "\n")
        paths.append(str(path))
    return paths


def test_each_fold_is_judged_by_the_threshold_of_its_own_validation_slides(
    rng, tmp_path
):
    parts = folds(rng)
    paths = save_folds(tmp_path, parts)
    out = tmp_path / "out"
    assert main(["evaluate", "--predictions", *paths, "-o", str(out)]) == 0
    limits, right = [], []
    for part in parts:
        val, test = part.part("val"), part.part("test")
        limits.append(metrics.best_threshold(val.probabilities[:, 1], val.labels == 1))
        right += (
            (test.probabilities[:, 1] >= limits[-1]) == (test.labels == 1)
        ).tolist()
    found = json.loads((out / "figures.json").read_text())["threshold_from_validation"]
    assert found["threshold_low"] == pytest.approx(min(limits), abs=1e-5)
    assert found["threshold_high"] == pytest.approx(max(limits), abs=1e-5)
    assert found["threshold_low"] < found["threshold_high"]
    assert found["acc"] == pytest.approx(np.mean(right))
    # labels of a fold's test slides, which other folds validate, do not move its threshold
    joined = join_predictions(parts)
    first = thresholded(joined.part("test").fold(0), joined.part("val"))[0]
    assert first["threshold"] == limits[0]
    # slides without a label draw nothing; one class alone draws no threshold
    hidden = replace(joined, labels=np.where(joined.labels == 1, -1, joined.labels))
    none, why = thresholded(joined.part("test"), hidden.part("val"))
    assert none == {}
    assert "validation slides of fold 0 are not of both classes" in why


def test_figures_are_json_that_every_reader_takes(rng, tmp_path):
    both = predictions(rng, 40, ("x", "y"))
    only = both.take(np.nonzero(both.labels == 0)[0])
    val = replace(
        both, splits=("val",) * 40, slide_ids=tuple(f"v{i}" for i in range(40))
    )
    path = save_predictions(tmp_path / "p.csv", join_predictions([only, val]))
    out = tmp_path / "out"
    words = ["evaluate", "--predictions", str(path), "-o", str(out)]
    assert main([*words, "--against", str(path)]) == 0

    def refuse(word):
        raise AssertionError(word)

    text = (out / "figures.json").read_text()
    figures = json.loads(text, parse_constant=refuse)
    assert figures["threshold_from_validation"]["sensitivity"] is None
    assert figures["pooled"]["auc"]["value"] is None
    told = [line for line in figures["against"] if "DeLong" in line]
    assert len(told) == 1
    assert "DeLong is undefined" in told[0]
    assert "p =" not in told[0]
    assert (
        "nan"
        not in re.sub(r"base64,[^\"]*", "", (out / "report.html").read_text()).split(
            "<table>"
        )[0]
    )


def test_two_cross_validations_are_compared_on_the_slides_that_they_test(
    rng, tmp_path, capsys
):
    parts = folds(rng, skill=2.0)
    worse = [
        replace(
            p, probabilities=np.round(metrics.softmax(rng.normal(size=(len(p), 2))), 6)
        )
        for p in parts
    ]
    first, second = (
        save_folds(tmp_path / name, found)
        for name, found in (("a", parts), ("b", worse))
    )
    out = tmp_path / "out"
    words = ["evaluate", "-o", str(out), "--predictions", *first, "--against"]
    assert main([*words, *reversed(second)]) == 0  # in any order
    tests = [join_predictions(found).part("test") for found in (parts, worse)]
    gap = [metrics.accuracy(t.probabilities, t.labels) for t in tests]
    figures = json.loads((out / "figures.json").read_text())
    assert figures["slides"] == 72
    assert f"ACC against the other: {gap[0] - gap[1]:+.3f}" in figures["against"][0]
    capsys.readouterr()
    assert main([*words, *second, "--split", "all"]) == 1
    told = capsys.readouterr().err
    assert "72 slides occur twice" in told
    assert "--split test" in told
    assert main([*words, *second, second[0]]) == 1
    assert "slides twice" in capsys.readouterr().err


def test_slides_of_other_folds_are_not_compared(rng):
    first = join_predictions(folds(rng)).part("test")
    other = replace(first, folds=tuple((f + 1) % 3 for f in first.folds))
    with pytest.raises(
        CohortError, match=r"72 slides in different folds.*one split file"
    ):
        other.aligned_with(first)
    one = replace(first, folds=(0,) * len(first))
    assert one.aligned_with(first).slide_ids == first.slide_ids
    with pytest.raises(CohortError, match="twice"):
        join_predictions([first, first.take([0])]).aligned_with(first)


@pytest.mark.parametrize(
    ("fold", "chance", "told"),
    [
        ("1.0", "0.25", ""),
        ("1.5", "0.25", "the fold '1.5' in line 3"),
        ("one", "0.25", "the fold 'one' in line 3"),
        ("-1", "0.25", "the fold '-1' in line 3"),
        ("1", "nan", "'nan' in line 3"),
        ("1", "inf", "'inf' in line 3"),
        ("1", "", "'' in line 3"),
    ],
)
def test_cells_of_a_table_are_numbers_or_named(tmp_path, fold, chance, told):
    path = tmp_path / "p.csv"
    path.write_text(f"slide_id,fold,p_x,p_y\na,0,1,0\nb,{fold},{chance},0.75\n")
    if told:
        with pytest.raises(CohortError, match=re.escape(told)):
            read_predictions(path)
        return
    found = read_predictions(path)
    assert found.folds == (0, 1)
    assert found.probabilities[1].tolist() == [0.25, 0.75]


def test_an_empty_split_is_named(rng, tmp_path, capsys):
    path = save_predictions(tmp_path / "p.csv", predictions(rng))
    words = [
        "evaluate",
        "--predictions",
        str(path),
        "-o",
        str(tmp_path / "out"),
        "--split",
        "val",
    ]
    assert main(words) == 2
    assert "found: test" in capsys.readouterr().err


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Four small slides and an untrained model."""

    folder = tmp_path_factory.mktemp("engine")
    classes = ("glandular-smooth", "trabecular-smooth")
    spec = SynthSpec(
        slides=4,
        size_wh=(330, 270),
        classes=classes,
        forty_share=0,
        slides_per_patient=(1, 1),
    )
    finish(make_cohort(folder, spec, jobs=1))
    scales = (
        ScaleSpec(name="20x", mpp=0.5, size_px=32),
        ScaleSpec(name="10x", mpp=1.0, size_px=32),
    )
    config = ModelConfig(
        name="toy",
        classes=classes,
        patches=PatchSpec(scales=scales, strategy=Strategy.TISSUE),
        tissue=TissueSpec(mpp=2.0, min_area_um2=50.0, hole_area_um2=50.0),
        encoder=EncoderSpec(
            backbone="lcnet_050", dim=16, layers=1, heads=2, ffn=16, grid=1
        ),
        aggregator=AggregatorSpec(name="abmil", in_dim=16),
    )
    torch.manual_seed(0)
    save_checkpoint(folder / "toy.safetensors", build_model(config).eval())
    return folder


def test_a_checkpoint_is_evaluated_by_the_engine_and_goes_on_where_it_stopped(
    engine, tmp_path, capsys
):
    words = [
        "evaluate",
        "--model",
        str(engine / "toy.safetensors"),
        "--cohort",
        str(engine / "cohort.csv"),
    ]
    words += [
        "--split",
        "all",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "-o",
        str(tmp_path),
    ]
    assert main(words) == 0
    with (tmp_path / "slides.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(float(r["seconds"]) > 0 and int(r["patches"]) > 0 for r in rows)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    wrong = sum(r["prediction"] != r["label"] for r in rows)
    assert page.count("<img") == 3 + wrong
    kept = (tmp_path / "slides.csv").read_text().splitlines()
    (tmp_path / "slides.csv").write_text("\n".join(kept[:3]) + "\n")
    assert main(words) == 0
    again = (tmp_path / "slides.csv").read_text().splitlines()
    assert again[:3] == kept[:3]
    assert [x.split(",")[:6] for x in again] == [x.split(",")[:6] for x in kept]


def test_answers_of_another_model_are_never_taken_for_this_ones(
    engine, tmp_path, capsys
):
    words = ["evaluate", "--cohort", str(engine / "cohort.csv"), "--device", "cpu"]
    words += ["--split", "all", "-o", str(tmp_path / "out"), "--model"]
    assert main([*words, str(engine / "toy.safetensors")]) == 0
    before = (tmp_path / "out" / "slides.csv").read_text()
    loaded = load_checkpoint(engine / "toy.safetensors")
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, build_model(loaded.config).eval())
    capsys.readouterr()
    assert main([*words, str(other)]) == 2
    assert "another model than now" in capsys.readouterr().err
    assert (tmp_path / "out" / "slides.csv").read_text() == before
    copy = tmp_path / "renamed.safetensors"
    copy.write_bytes((engine / "toy.safetensors").read_bytes())
    assert main([*words, str(copy)]) == 0  # the same weights under another name


def test_slides_of_an_earlier_and_wider_run_are_left_out(engine, tmp_path):
    cohort = read_cohort(engine / "cohort.csv")
    loaded = load_checkpoint(engine / "toy.safetensors")
    path = tmp_path / "slides.csv"
    runtime = choose_runtime("cpu", "fp32")
    assert not finish(predict_cohort(cohort.rows, loaded, runtime, path))
    some = (cohort.rows[2], cohort.rows[0])
    found, lines = read_engine_run(path, some)
    assert set(found.slide_ids) == set(lines) == {row.slide_id for row in some}


def test_labels_and_splits_are_those_of_the_cohort_given_now(engine, tmp_path, capsys):
    table = engine / "now.csv"
    lines = (engine / "cohort.csv").read_text().splitlines()
    head = lines[0].split(",")
    rows = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]

    def write(*splits, **changes):
        for row, split in zip(rows, splits, strict=True):
            row.update(split=split)
        rows[0].update(changes)
        cells = [head, *([row[c] for c in head] for row in rows)]
        table.write_text("\n".join(",".join(c) for c in cells) + "\n")
        words = ["evaluate", "--model", str(engine / "toy.safetensors"), "--cohort"]
        words += [str(table), "--device", "cpu", "-o", str(tmp_path)]
        assert main(words) == 0
        return read_predictions(tmp_path / "predictions.csv")

    names, labels = [r["slide_id"] for r in rows], [r["label"] for r in rows]
    first = write("test", "test", "train", "val")
    before = (tmp_path / "slides.csv").read_text()
    assert first.slide_ids == tuple(names[:2])
    assert set(first.splits) == {"test"}
    other = next(x for x in labels if x != labels[0])
    corrected = write("test", "test", "train", "val", label=other, patient_id="new")
    assert corrected.classes[corrected.labels[0]] == other
    assert corrected.patients[0] == "new"
    assert (tmp_path / "slides.csv").read_text() == before  # classified once
    moved = write("train", "test", "test", "val")
    assert sorted(moved.slide_ids) == sorted(names[1:3])
    assert set(moved.splits) == {"test"}
    capsys.readouterr()
    strange = write("test", "test", "train", "val", label="strange")
    assert strange.slide_ids == (names[1],)
    said = "1 slides are of classes that the model does not know (strange 1)"
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_slide_that_is_read_in_another_way_is_classified_again(engine, tmp_path):
    from PIL import Image

    cohort = read_cohort(engine / "cohort.csv")
    loaded = load_checkpoint(engine / "toy.safetensors")
    runtime, path = choose_runtime("cpu", "fp32"), tmp_path / "slides.csv"
    mask = tmp_path / "mask.png"
    Image.fromarray(np.full((27, 33), 255, np.uint8)).save(mask)
    rows = [replace(row, mask=mask) for row in cohort.rows]

    def lines():
        spec = EngineSpec("lesion", mask="file")
        assert not finish(predict_cohort(rows, loaded, runtime, path, spec))
        text = path.read_text().splitlines()[1:]
        return {line.partition(",")[0]: line for line in text}

    first = lines()
    rows[1] = replace(rows[1], mpp=0.45)
    second = lines()
    assert [r.slide_id for r in rows if first[r.slide_id] != second[r.slide_id]] == [
        rows[1].slide_id
    ]
    assert lines() == second
    other = np.full((27, 33), 255, np.uint8)
    other[:, :16] = 0
    Image.fromarray(other).save(mask)
    third = lines()
    assert all(second[name] != third[name] for name in first)
    assert {p.name for p in tmp_path.iterdir()} == {
        "slides.csv",
        "mask.png",
        "made_with.json",
    }


def test_a_slide_that_fails_is_named_and_the_others_are_evaluated(
    engine, tmp_path, capsys
):
    table = (engine / "cohort.csv").read_text()
    broken = engine / "slides" / "broken.tiff"
    broken.write_bytes(b"no slide")
    first = table.splitlines()[1].split(",")
    line = ",".join(["broken", "slides/broken.tiff", "px", first[3], "", "test", "0.5"])
    (engine / "with_broken.csv").write_text(table + line + "\n")
    words = [
        "evaluate",
        "--model",
        str(engine / "toy.safetensors"),
        "--cohort",
        str(engine / "with_broken.csv"),
    ]
    assert (
        main(
            [
                *words,
                "--split",
                "all",
                "--device",
                "cpu",
                "--mask",
                "file",
                "--patches",
                "random",
                "-o",
                str(tmp_path),
            ]
        )
        == 1
    )
    assert "broken:" in capsys.readouterr().err
    assert len(read_predictions(tmp_path / "slides.csv")) == 4
