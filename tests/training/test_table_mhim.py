"""The supplementary's tables on toy bags: each run once, compared fold by fold, written with the paper's figures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from napari_msamil.errors import ConfigError
from training.bag_dataset import BagDataset
from training.bags import save_bag
from training.cohort import read_cohort
from training.compare import BagParts, train_plain
from training.config import checked
from training.mhim_runs import MhimRuns, Variant
from training.mil_task import MilSpec
from training.splits import make_splits, write_splits
from training.table_mhim import Line, figure_5, lines_of, mean_curve, table_4
from training.table_names import MHIM_TABLES
from training.table_work import TableOptions, TableWork, as_markdown
from training.tables import TABLES

from .test_mil import abmil, toy_bags

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def options(tmp_path: Path) -> TableOptions:
    """A cohort of 20 toy slides whose tissue bags are there already."""
    bags, labels = toy_bags([5, 7, 6, 9] * 5)
    lines = ["slide_id,path,patient_id,label"]
    folder = tmp_path / "out/shared/bags_toy_tissue_model"
    for i, (bag, label) in enumerate(zip(bags, labels, strict=True)):
        save_bag(folder / f"s{i}.pt", bag)
        (tmp_path / f"s{i}.tiff").touch()
        lines.append(f"s{i},s{i}.tiff,p{i},{'ab'[label]}")
    (folder / "extracted.json").write_text("{}")
    (tmp_path / "cohort.csv").write_text("\n".join(lines))
    return TableOptions(
        tmp_path / "cohort.csv",
        tmp_path / "out",
        model="toy.safetensors",
        folds=2,
        epochs=2,
        device="cpu",
    )


def test_runs_are_made_once_and_share_the_plain_network(options: TableOptions) -> None:
    runs = MhimRuns(TableWork(options, "mhim-4"))
    first = runs.figures(Variant("abmil", {"high": 0.1}))
    assert len(first.auc) == 2
    stamps = {p: p.stat().st_mtime_ns for p in runs.folder.iterdir()}
    assert sum(p.suffix == ".pt" for p in stamps) == 2  # the plain network of each fold
    again = MhimRuns(TableWork(options, "mhim-3")).figures(
        Variant("abmil", {"high": 0.1})
    )
    assert again == first
    assert {p: p.stat().st_mtime_ns for p in runs.folder.iterdir()} == stamps
    assert all("teacher_auc" in epoch for curve in first.curves for epoch in curve)
    assert mean_curve(first, "val_auc")[0] == pytest.approx(
        sum(c[0]["val_auc"] for c in first.curves) / 2
    )


def test_runs_of_other_features_or_splits_are_not_taken_up(
    options: TableOptions,
) -> None:
    plain = Variant("abmil")
    runs = MhimRuns(TableWork(options, "mhim"))
    runs.figures(plain)
    files = set(runs.folder.iterdir())
    splits = TableWork(options, "mhim").splits()
    table = read_cohort(options.cohort, need_files=False)
    other = splits.with_name("other.json")
    write_splits(other, make_splits(table, 2, seed=7))
    MhimRuns(TableWork(replace(options, splits=other), "mhim")).figures(plain)
    assert len(set(runs.folder.iterdir()) - files) == 4  # figures and weights, twice
    model = options.cohort.with_name("toy.safetensors")
    model.write_bytes(b"weights")
    first = TableWork(replace(options, model=str(model)), "mhim").bags_folder(
        str(model)
    )
    model.write_bytes(b"others")
    assert TableWork(options, "mhim").bags_folder(str(model)) != first


def test_a_line_that_names_the_usual_values_is_not_trained_again(
    options: TableOptions,
) -> None:
    runs = MhimRuns(TableWork(options, "mhim-1"))
    usual = runs.figures(Variant("abmil", {}))
    files = set(runs.folder.iterdir())
    named = Variant("abmil", {"high": 0.01, "random": 0.5, "start": "projection"})
    assert runs.figures(named) == usual
    assert set(runs.folder.iterdir()) == files
    runs.figures(Variant("abmil", {"random": 0.4}))
    assert len(set(runs.folder.iterdir())) == len(files) + 2  # two folds


def test_table_shows_ours_beside_the_papers(options: TableOptions) -> None:
    result = table_4(TableWork(options, "mhim-4"))
    text = as_markdown(result)
    assert [row[-2:] for row in result.rows[:2]] == [
        ("95.71", "94.97"),
        ("96.14", "94.52"),
    ]
    assert result.rows[0][3] == ""
    assert "±" in result.rows[1][3]
    assert "AB-MIL" in text
    assert "TransMIL" in text
    json.dumps(result.values)


def test_figure_of_the_teacher_has_a_curve_per_start(options: TableOptions) -> None:
    result = figure_5(TableWork(options, "mhim-fig5"))
    axes = result.figures["mhim-fig5"].axes[0]
    assert [line.get_label() for line in axes.lines] == [
        f"{m} {s}" for m in ("AB-MIL", "TransMIL") for s in ("w/ init", "w/o init")
    ]
    assert all(len(line.get_ydata()) == 2 for line in axes.lines)


def test_lines_of_some_methods_are_compared_with_the_same_lines_as_before() -> None:
    lines = [
        Line("0", Variant("abmil")),
        Line("1", Variant("transmil")),
        Line("2", Variant("transmil", {}), against=1),
        Line("3", Variant("abmil", {}), against=0),
        Line("4", Variant("transmil", {"high": 0.1}), against=2),
    ]
    assert lines_of(lines, ()) == lines
    chosen = lines_of(lines, ["transmil"])
    assert [(x.title, x.against) for x in chosen] == [("1", None), ("2", 0), ("4", 1)]
    with pytest.raises(ConfigError, match="abmil, transmil"):
        lines_of(lines, ["dsmil"])


def test_a_table_of_one_method_runs_no_other(options: TableOptions) -> None:
    work = TableWork(replace(options, methods=("abmil",)), "mhim-4")
    assert {row[0] for row in table_4(work).rows} == {"AB-MIL"}
    runs = MhimRuns(work).folder
    assert {p.name.split("_")[0] for p in runs.iterdir()} == {"abmil"}


def test_every_table_of_the_supplementary_has_a_command() -> None:
    assert set(MHIM_TABLES) <= set(TABLES)
    names = {
        "mhim-1",
        "mhim-3",
        "mhim-4",
        "mhim-5",
        "mhim-6",
        "mhim-fig3",
        "mhim-fig5",
        "mhim-fig8",
    }
    assert names <= set(MHIM_TABLES)
    from training import table_mhim

    assert all(
        callable(getattr(table_mhim, function))
        for _, function, _ in MHIM_TABLES.values()
    )


def test_instance_auc_is_one_where_attention_is_the_truth() -> None:
    bags, labels = toy_bags([6, 8])
    truth = torch.tensor([0, 0, 1, 0, 0, 0, 0, 1], dtype=torch.int8)
    bags = [
        type(b)(
            **{
                **vars(b),
                "instance_labels": truth[: len(b)],
                "features": truth[: len(b), None].float().expand(-1, 6),
            }
        )
        for b in bags
    ]
    data = BagDataset(bags, labels)
    torch.manual_seed(0)
    settings = checked(MilSpec, {"epochs": 1, "lr": 1e-6}, "mil")
    outcome = train_plain(abmil(), settings, BagParts(data, data, data))
    assert outcome.figures["instance_auc"] in (0.0, 1.0)
