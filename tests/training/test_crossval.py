"""Cross-validation: folds, resuming, isolation, several at once."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import sys
import time
from threading import Thread

import numpy as np
import pytest
import torch

from napari_msamil.progress import finish
from training import crossval as crossval_verb
from training.bags import StoredBag, save_bag
from training.cli import main
from training.cv_fold import FoldStage, FoldTask, run_fold
from training.prediction_table import read_predictions

RECIPE = """
[model]
name = "toy"
classes = ["a", "b"]
encoder = { kind = "timm", backbone = "lcnet_050", dim = 5 }
aggregator = { name = "abmil", in_dim = 5 }

[mil]
epochs = 4
lr = 1e-2
patience = 0
"""


@pytest.fixture
def work(tmp_path):
    """A cohort of 24 slides of 16 patients with bags that can be told apart."""
    rng = np.random.default_rng(5)
    rows = []
    for patient in range(16):
        for slide in range(1 + patient % 2):
            label = patient // 8
            name = f"s{patient}_{slide}"
            n = int(rng.integers(3, 8))
            features = torch.tensor(rng.normal(size=(n, 5)), dtype=torch.float32)
            features[0, 0] += 4 * label
            save_bag(tmp_path / "bags" / f"{name}.pt", bag_of(features, name))
            rows.append((name, f"{name}.tiff", f"p{patient}", "ab"[label]))
    with (tmp_path / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("slide_id", "path", "patient_id", "label"), *rows])
    (tmp_path / "toy.toml").write_text(RECIPE)
    return tmp_path


def bag_of(features, name):
    n = len(features)
    return StoredBag(
        features=features,
        coords_xy0=torch.arange(2 * n).reshape(n, 2),
        scale=torch.zeros(n, dtype=torch.int8),
        valid=torch.ones(n, dtype=torch.bool),
        size_px0=(7,),
        size_wh0=(101, 99),
        mpp=0.5,
        scale_names=("20x",),
        encoder_id="toy",
        slide=name,
    )


def crossval(work, out, *more, mil=()):
    words = [
        "crossval",
        "--verb",
        "mil",
        "--cohort",
        str(work / "cohort.csv"),
        "-o",
        str(work / out),
        "--n-folds",
        "3",
    ]
    own = [
        "--config",
        str(work / "toy.toml"),
        "--bags",
        str(work / "bags"),
        "--device",
        "cpu",
    ]
    return main([*words, *more, "--", *own, *mil])


def test_every_slide_is_tested_once_and_figures_are_written(work, capsys):
    assert crossval(work, "cv") == 0
    found = read_predictions(work / "cv" / "predictions.csv")
    assert len(set(found.slide_ids)) == len(found) == 24
    assert set(found.folds) == {0, 1, 2}
    figures = json.loads((work / "cv" / "figures.json").read_text())
    assert len(figures["folds"]) == 3
    pooled = figures["pooled"]["acc"]
    assert pooled["low"] <= pooled["value"] <= pooled["high"]
    assert "| pooled |" in capsys.readouterr().out
    assert (work / "cv" / "splits.json").exists()


def test_an_interrupted_run_ends_like_one_that_was_not(work):
    assert crossval(work, "whole") == 0
    splits = ("--splits", str(work / "whole" / "splits.json"))
    # fold 0 finished, fold 1 stopped after two of four epochs, fold 2 never begun
    assert crossval(work, "broken", *splits, "--folds", "0") == 0
    short = [
        *splits,
        "--fold",
        "1",
        "--cohort",
        str(work / "cohort.csv"),
        "--bags",
        str(work / "bags"),
        "--device",
        "cpu",
    ]
    half = work / "broken" / "fold_1"
    assert (
        main(["mil", *short, "--config", str(work / "toy.toml"), "-o", str(half)]) == 0
    )
    stop_after(half, work, short, epochs=2)
    assert crossval(work, "broken", *splits) == 0
    for fold in ("fold_0", "fold_1", "fold_2"):
        first = (work / "whole" / fold / "predictions.csv").read_text()
        assert (work / "broken" / fold / "predictions.csv").read_text() == first


def stop_after(folder, work, words, epochs):
    """Leave the folder as a run that was killed after some epochs leaves it."""
    import shutil

    from training import loop, mil

    shutil.rmtree(folder)
    real, seen = loop.save_state, []

    def save_then_die(*args, **kwargs):
        real(*args, **kwargs)
        seen.append(args[0].name)
        if seen.count("state.pt") == epochs:
            raise KeyboardInterrupt

    loop.save_state = save_then_die
    try:
        with pytest.raises(KeyboardInterrupt):
            run_verb(
                mil, [*words, "--config", str(work / "toy.toml"), "-o", str(folder)]
            )
    finally:
        loop.save_state = real
    assert (folder / "state.pt").exists()
    assert not (folder / "predictions.csv").exists()


def run_verb(module, words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args(words))


def test_a_fold_that_fails_is_named_and_the_others_finish(work, capsys):
    assert crossval(work, "cv", "--folds", "0") == 0
    (work / "cv" / "fold_1").write_text("in the way")
    assert crossval(work, "cv") == 1
    assert "fold 1:" in capsys.readouterr().err
    assert (work / "cv" / "fold_2" / "predictions.csv").exists()
    assert not (work / "cv" / "figures.json").exists()


def test_finished_folds_are_not_run_again(work):
    assert crossval(work, "cv", "--folds", "0") == 0
    before = (work / "cv" / "fold_0" / "predictions.csv").stat().st_mtime_ns
    assert crossval(work, "cv", "--folds", "0") == 0
    assert (work / "cv" / "fold_0" / "predictions.csv").stat().st_mtime_ns == before


def test_folds_of_the_table_are_the_folds_that_are_run(work, capsys):
    table = (work / "cohort.csv").read_text().splitlines()
    fold_of = {f"p{k}": str((k % 8) // 2) for k in range(16)}
    lines = [f"{line},{fold_of[line.split(',')[2]]}" for line in table[1:]]
    (work / "cohort.csv").write_text("\n".join([f"{table[0]},fold", *lines]))
    words = ["crossval", "--verb", "mil", "--cohort", str(work / "cohort.csv")]
    words += ["-o", str(work / "cv"), "--folds", "3", "--"]
    words += ["--config", str(work / "toy.toml"), "--bags", str(work / "bags")]
    assert main([*words, "--device", "cpu"]) == 0
    found = read_predictions(work / "cv" / "fold_3" / "predictions.csv").part("test")
    assert {fold_of[name] for name in found.patients} == {"3"}
    assert len(found) == sum(fold == "3" for fold in (x.split(",")[-1] for x in lines))
    assert crossval(work, "cv") == 2  # asks for three folds
    assert "drawn with --n-folds 4, but 3 is asked for" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["finished", "begun"])
def test_folds_made_with_other_settings_are_refused_not_mixed(work, capsys, part):
    assert crossval(work, "cv", "--folds", "0") == 0
    if part == "begun":
        (work / "cv" / "fold_0" / "predictions.csv").unlink()
    assert crossval(work, "cv", "--folds", "0", mil=("--set", "mil.lr=1e-3")) == 1
    assert "made with another --set than now" in capsys.readouterr().err
    (work / "toy.toml").write_text(RECIPE.replace("1e-2", "1e-4"))
    assert crossval(work, "cv") == 1
    assert "made with another --config than now" in capsys.readouterr().err
    assert not (work / "cv" / "figures.json").exists()


def test_training_does_not_go_on_with_a_fold_whose_test_slides_it_may_have_seen(
    work, capsys
):
    assert crossval(work, "cv", "--folds", "0") == 0
    state = work / "cv" / "fold_0"
    words = ["mil", "--config", str(work / "toy.toml"), "--bags", str(work / "bags")]
    words += ["--cohort", str(work / "cohort.csv"), "-o", str(state), "--resume"]
    words += ["--splits", str(work / "cv" / "splits.json"), "--device", "cpu"]
    longer = ("--set", "mil.epochs=5")
    before = {p.name: p.read_bytes() for p in state.glob("*.*") if p.is_file()}
    assert main([*words, *longer, "--fold", "1"]) == 1
    assert {p.name: p.read_bytes() for p in state.glob("*.*") if p.is_file()} == before
    assert "other slides, labels or splits" in capsys.readouterr().err
    assert main([*words, *longer, "--fold", "0"]) == 0


@pytest.mark.slow
def test_two_processes_give_what_one_gives(work):
    assert crossval(work, "one") == 0
    splits = ("--splits", str(work / "one" / "splits.json"))
    assert crossval(work, "two", *splits, "--jobs", "2") == 0
    assert (work / "two" / "predictions.csv").read_text() == (
        work / "one" / "predictions.csv"
    ).read_text()


@pytest.mark.slow
def test_a_dask_cluster_gives_what_one_process_gives(work):
    distributed = pytest.importorskip("distributed")
    assert crossval(work, "one") == 0
    splits = ("--splits", str(work / "one" / "splits.json"))
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        assert (
            crossval(work, "dask", *splits, "--cluster", cluster.scheduler_address) == 0
        )
    assert (work / "dask" / "predictions.csv").read_text() == (
        work / "one" / "predictions.csv"
    ).read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_worker_loses_nothing(work):
    """The fold it was in goes on from its last epoch on the worker that takes its place."""
    distributed = pytest.importorskip("distributed")
    long = ("--set", "mil.epochs=80", "--set", "mil.patience=0")
    assert crossval(work, "one", mil=long) == 0
    splits = ("--splits", str(work / "one" / "splits.json"))
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        killer = Thread(target=kill_once, args=(cluster, work / "dask"), daemon=True)
        killer.start()
        place = ("--cluster", cluster.scheduler_address)
        assert crossval(work, "dask", *splits, *place, mil=long) == 0
        killer.join(timeout=1)
        assert not killer.is_alive()
    assert (work / "dask" / "predictions.csv").read_text() == (
        work / "one" / "predictions.csv"
    ).read_text()
    log = (work / "dask" / "fold_0" / "output.log").read_text()
    assert (work / "dask" / "fold_0" / "killed").exists(), log


def kill_once(cluster, folder):
    """Kill the only worker as soon as fold 0 has saved an epoch and is not finished."""
    state, end = folder / "fold_0" / "state.pt", folder / "fold_0" / "predictions.csv"
    while not state.exists():
        time.sleep(0.02)
    if not end.exists():
        (worker,) = cluster.workers.values()
        os.kill(worker.pid, signal.SIGKILL)
        (folder / "fold_0" / "killed").touch()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_process_that_dies_is_a_failed_fold_in_words(work, monkeypatch):
    real = FoldTask(1, work / "cv" / "fold_1", ())
    monkeypatch.setattr(crossval_verb, "run_fold", die)
    found = finish(crossval_verb.run_folds([real], jobs=2))
    assert "a process ended suddenly" in found[1]


def die(task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_recipe_with_stages_is_run_in_every_fold(work):
    recipe = work / "stages.toml"
    stage = (
        f"--config {work / 'toy.toml'} --cohort {{cohort}} --splits {{splits}} --fold {{fold}} "
        f"--bags {work / 'bags'} --device cpu -o {{out}}"
    )
    recipe.write_text(
        f'[[stages]]\nverb = "mil"\nargs = "{stage}"\nmakes = "{{out}}/predictions.csv"\n'
    )
    words = [
        "crossval",
        "--recipe",
        str(recipe),
        "--cohort",
        str(work / "cohort.csv"),
        "-o",
        str(work / "cv"),
    ]
    assert main([*words, "--n-folds", "2"]) == 0
    assert len(read_predictions(work / "cv" / "predictions.csv")) == 24


def test_a_device_is_dealt_only_to_verbs_that_take_one(work):
    recipe = work / "stages.toml"
    recipe.write_text(
        "".join(
            f'[[stages]]\nverb = "{verb}"\nargs = "x"\nmakes = "{{out}}/{verb}"\n'
            for verb in ("mil", "publish", "evaluate", "cohort")
        )
    )
    parser = argparse.ArgumentParser()
    crossval_verb.add_arguments(parser)
    words = ["--recipe", str(recipe), "--cohort", str(work / "cohort.csv")]
    args = parser.parse_args(
        [*words, "-o", str(work / "cv"), "--devices", "cuda:0", "cuda:1"]
    )
    splits = crossval_verb.prepare_splits(args.cohort, None, args.out, 3, 0)
    stages = crossval_verb.plan_folds(args, splits)[1].stages
    assert [s.words for s in stages] == [
        ("x", "--device", "cuda:1"),
        ("x",),
        ("x", "--device", "cuda:1"),
        ("x",),
    ]


@pytest.mark.parametrize("words", [("--no-such",), ("--epochs",)])
def test_arguments_that_a_verb_does_not_take_are_a_failed_fold(work, capsys, words):
    assert crossval(work, "cv", "--folds", "0", "2", mil=words) == 1
    told = capsys.readouterr().err
    for fold in (0, 2):
        log = work / "cv" / f"fold_{fold}" / "output.log"
        assert f"fold {fold}: mil ended with code 2, see {log}" in told
        assert words[0] in log.read_text()


def test_splits_that_are_there_are_not_taken_for_others_that_are_asked_for(
    work, capsys
):
    words = ["crossval", "--verb", "mil", "--cohort", str(work / "cohort.csv")]
    words += ["-o", str(work / "cv")]
    path = crossval_verb.prepare_splits(work / "cohort.csv", None, work / "cv", 3, 4)
    before = path.read_text()
    assert main([*words, "--n-folds", "5"]) == 2
    assert "was drawn with --n-folds 3, but 5 is asked for" in capsys.readouterr().err
    assert main([*words, "--n-folds", "3", "--seed", "9"]) == 2
    assert "was drawn with --seed 4, but 9 is asked for" in capsys.readouterr().err
    assert path.read_text() == before
    own = ["--", "--config", str(work / "toy.toml"), "--bags", str(work / "bags")]
    given = ["--n-folds", "3", "--seed", "4", "--folds", "0"]
    assert main([*words, *given, *own, "--device", "cpu"]) == 0


def test_data_that_moved_does_not_block_finished_folds(work):
    assert crossval(work, "cv", "--folds", "0") == 0
    table = work / "cohort.csv"
    table.write_text(table.read_text().replace(".tiff", ".svs"))
    assert crossval(work, "cv") == 0
    table.write_text(table.read_text().replace(",a\n", ",c\n"))
    assert crossval(work, "cv") == 1


def test_a_call_that_is_wrong_ends_with_code_2(work, capsys):
    words = ["crossval", "--cohort", str(work / "cohort.csv"), "-o", str(work / "cv")]
    assert main(words) == 2
    assert main([*words, "--verb", "mil", "--folds", "7"]) == 2
    assert "folds 0 … 4" in capsys.readouterr().err


def test_a_stage_without_predictions_is_a_failure(tmp_path):
    stage = FoldStage(
        "synth",
        (
            "-o",
            str(tmp_path / "c"),
            "--slides",
            "2",
            "--size",
            "90",
            "80",
            "--jobs",
            "1",
        ),
        tmp_path / "c" / "cohort.csv",
        tmp_path / "c",
    )
    assert "left no" in run_fold(FoldTask(0, tmp_path / "fold_0", (stage,)))
