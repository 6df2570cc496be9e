"""Training on feature bags: packing, losses, resuming, learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from napari_msamil.config import AggregatorSpec
from napari_msamil.errors import CheckpointError, StoreError
from training.bag_cohort import keep_scales
from training.bag_dataset import BagDataset
from training.bags import StoredBag, save_bag
from training.cli import main
from training.log import RunLog, read_log
from training.loop import Visit, fit
from training.mil_task import (
    MilSpec,
    MilTask,
    eval_windows,
    load_weights,
    predict,
    weights_of,
)
from training.state import load_state

if TYPE_CHECKING:
    from pathlib import Path

DIM = 6


def toy_bags(
    lengths: list[int], seed: int = 0, shift: float = 2.0
) -> tuple[list[StoredBag], list[int]]:
    """Bags whose class is told by one instance."""
    g = torch.Generator().manual_seed(seed)
    bags, labels = [], []
    for i, n in enumerate(lengths):
        features = torch.randn(n, DIM, generator=g)
        label = i % 2
        if label:
            features[int(torch.randint(n, (1,), generator=g)), 0] += shift * 3
        coords = torch.randint(0, 90, (n, 2), generator=g)
        bags.append(
            StoredBag(
                features=features,
                coords_xy0=coords,
                scale=torch.arange(n, dtype=torch.int8) % 2,
                valid=torch.ones(n, dtype=torch.bool),
                size_px0=(5, 10),
                size_wh0=(101, 99),
                mpp=0.5,
                scale_names=("20x", "10x"),
                encoder_id="toy",
                slide=f"s{i}",
            )
        )
        labels.append(label)
    return bags, labels


def toy_set(lengths: list[int], seed: int = 0) -> BagDataset:
    return BagDataset(*toy_bags(lengths, seed))


def abmil(**args: object) -> AggregatorSpec:
    return AggregatorSpec(
        name="abmil",
        in_dim=DIM,
        args={"hidden": 9, "attention_dim": 5, "dropout": 0.0, **args},
    )


def iaam() -> AggregatorSpec:
    return AggregatorSpec(
        name="iaam",
        in_dim=DIM,
        args={"heads": 2, "rank": 2, "mlp_dim": 8, "queries": 3, "dropout": 0.0},
    )


def test_one_bag_is_a_view_of_the_flat_tensor() -> None:
    data = toy_set([3, 5, 2])
    one = data.one(1)
    assert one.features.shape == (1, 5, DIM)
    assert one.features.untyped_storage().data_ptr() == data.features.data_ptr()
    assert data.lengths == (3, 5, 2)
    assert data.scale_counts[1] == (3, 2)


def test_unreadable_patches_are_dropped() -> None:
    bags, labels = toy_bags([4, 3])
    bags[0].valid[1] = False
    data = BagDataset(bags, labels)
    assert data.lengths == (3, 3)
    assert torch.equal(data.one(0).features[0], bags[0].features[[0, 2, 3]])


def test_padding_marks_the_rest_invalid() -> None:
    batch = toy_set([3, 5, 2]).padded([2, 1])
    assert batch.valid is not None
    assert batch.valid.tolist() == [[True, True, False, False, False], [True] * 5]
    assert batch.features[0, 2:].abs().sum() == 0
    assert toy_set([4, 4]).padded([0, 1]).valid is None


def test_bags_that_do_not_fit_together_are_refused() -> None:
    bags, labels = toy_bags([2, 2])
    other = StoredBag(**{**vars(bags[1]), "encoder_id": "other"})
    with pytest.raises(StoreError, match=r"encoders \['other', 'toy'\]"):
        BagDataset([bags[0], other], labels)
    bags[0].valid[:] = False
    with pytest.raises(StoreError, match="no valid instance: s0"):
        BagDataset(bags, labels)


def spec_of(name: str, **args: object) -> AggregatorSpec:
    return AggregatorSpec(name=name, in_dim=DIM, args=args)


@pytest.mark.parametrize(
    "spec",
    [
        abmil(),
        abmil(gated=False),
        iaam(),
        spec_of("dsmil", hidden=8),
        spec_of("clam_sb", hidden=8, attention_dim=4, dropout=0.0, k=1),
        spec_of("transmil", hidden=16, heads=2, dropout=0.0),
    ],
    ids=lambda spec: spec.name,
)
def test_window_gives_the_gradients_of_its_bags(spec: AggregatorSpec) -> None:
    data = toy_set([3, 7, 3, 4])
    torch.manual_seed(3)
    task = MilTask(spec, MilSpec(accumulate=4), data, None, ("a", "b"))
    visits = [Visit(i, 0, i, w) for i, w in enumerate((0.1, 0.4, 0.1, 0.2))]
    packed = task.backward_window(visits)
    together = [p.grad.clone() for p in task.aggregator.parameters()]  # type: ignore[union-attr]
    task.aggregator.zero_grad()
    alone = [task.backward(v) for v in visits]
    assert sum(packed) == pytest.approx(sum(alone), abs=1e-5)  # type: ignore[arg-type]
    for one, many in zip(task.aggregator.parameters(), together, strict=True):
        torch.testing.assert_close(one.grad, many, rtol=1e-4, atol=1e-5)


def test_batched_prediction_equals_bag_by_bag_and_keeps_the_mode() -> None:
    data = toy_set([3, 7, 1, 4, 9])
    task = MilTask(abmil(dropout=0.3), MilSpec(), data, None, ("a", "b"))
    task.aggregator.train()
    found = predict(task.aggregator, data)
    assert task.aggregator.training
    task.aggregator.eval()
    for i in range(len(data)):
        one = data.one(i)
        expected = task.aggregator(one.features, one.coords, one.scale).logits[0]
        torch.testing.assert_close(found[i], expected)


def test_eval_windows_hold_every_bag_once_within_the_budget() -> None:
    lengths = [30, 2, 9, 100, 1, 9]
    windows = eval_windows(lengths, budget=40)
    assert sorted(i for w in windows for i in w) == list(range(6))
    assert all(
        len(w) == 1 or len(w) * max(lengths[i] for i in w) <= 40 for w in windows
    )


def _train(
    folder: Path, epochs: int, resume: bool = False, stop_at: int | None = None
) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    spec = MilSpec(epochs=epochs, accumulate=3, patience=0, lr=3e-3)
    task = MilTask(
        abmil(dropout=0.2),
        spec,
        toy_set([3, 5, 2, 6, 4]),
        toy_set([4, 5, 6, 3], 1),
        ("a", "b"),
    )
    with RunLog(folder) as log:
        fit(task, spec, folder, log, resume=resume)
    weights: dict[str, torch.Tensor] = load_state(folder / "state.pt", "mil")["model"]
    return weights


def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 6)
    # a shorter horizon would change the schedule, so the run is cut by its state instead
    spec = MilSpec(epochs=6, accumulate=3, patience=0, lr=3e-3)
    torch.manual_seed(5)
    task = MilTask(
        abmil(dropout=0.2),
        spec,
        toy_set([3, 5, 2, 6, 4]),
        toy_set([4, 5, 6, 3], 1),
        ("a", "b"),
    )
    steps = 0
    original = task.backward_window

    def stop_in_fourth_epoch(visits: list[Visit]) -> list[float | None]:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt
        return original(visits)

    task.backward_window = stop_in_fourth_epoch  # type: ignore[method-assign,assignment]
    with RunLog(tmp_path / "cut") as log, pytest.raises(KeyboardInterrupt):
        fit(task, spec, tmp_path / "cut", log)
    resumed = _train(tmp_path / "cut", 6, resume=True)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_training_learns_and_logs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train, val = toy_set([6] * 30), toy_set([7] * 20, 9)
    spec = MilSpec(epochs=40, lr=5e-3, patience=15, accumulate=5)
    task = MilTask(abmil(), spec, train, val, ("a", "b"))
    with RunLog(tmp_path) as log:
        result = fit(task, spec, tmp_path, log)
    assert result.best > 0.9
    assert any("val_auc" in line for line in read_log(tmp_path))
    best = load_state(tmp_path / "best.pt", "mil")
    assert (
        AggregatorSpec.model_validate_json(best["description"]["aggregator"]) == abmil()
    )
    assert best["description"]["encoder_id"] == "toy"


def test_weights_that_do_not_fit_are_named() -> None:
    small = MilTask(abmil(gated=False), MilSpec(), toy_set([2]), None, ("a", "b"))
    gated = MilTask(abmil(gated=True), MilSpec(), toy_set([2]), None, ("a", "b"))
    with pytest.raises(CheckpointError, match=r"not in this network: scores\.u"):
        load_weights(small.aggregator, gated.aggregator.state_dict(), "x.pt")
    with pytest.raises(CheckpointError, match=r"missing: scores\.u"):
        load_weights(gated.aggregator, small.aggregator.state_dict(), "x.pt")
    wide = MilTask(abmil(hidden=4), MilSpec(), toy_set([2]), None, ("a", "b"))
    with pytest.raises(CheckpointError, match="shapes"):
        load_weights(wide.aggregator, gated.aggregator.state_dict(), "x.pt")


def test_weights_are_found_in_states_of_every_verb() -> None:
    one = torch.ones(1)
    assert weights_of({"model": {"aggregator.w": one, "encoder.v": one}}, "s") == {
        "w": one
    }
    assert weights_of({"model": {"student.w": one, "teacher.w": one}}, "s") == {
        "w": one
    }
    assert weights_of({"model": {"w": one}}, "s") == {"w": one}


def write_toy_cohort(folder: Path, suffix: str = ".pt") -> Path:
    """A table, its bags, and a recipe: 12 training, 6 validation and 6 test slides."""
    bags, labels = toy_bags([5, 7, 6, 9] * 6)
    lines = ["slide_id,path,patient_id,label,split"]
    for i, (bag, label) in enumerate(zip(bags, labels, strict=True)):
        save_bag(folder / "bags" / f"s{i}{suffix}", bag)
        split = "train" if i < 12 else "val" if i < 18 else "test"
        lines.append(f"s{i},s{i}.tiff,p{i},{'ab'[label]},{split}")
    (folder / "cohort.csv").write_text("\n".join(lines))
    (folder / "toy.toml").write_text(
        f"""
        [model]
        preset = "small"
        encoder = {{dim = {DIM}, heads = 2}}
        [model.aggregator]
        name = "abmil"
        in_dim = {DIM}
        args = {{hidden = 8, attention_dim = 4}}
        [mil]
        epochs = 3
        lr = 3e-3
        accumulate = 4
        [mhim]
        epochs = 3
        high = 0.1
        random = 0.3
        """
    )
    return folder


@pytest.mark.parametrize("verb", ["mil", "mhim"])
def test_command_trains_logs_and_predicts(tmp_path: Path, verb: str) -> None:
    write_toy_cohort(tmp_path)
    out = tmp_path / "run"
    words = [
        verb,
        "--config",
        f"{tmp_path}/toy.toml",
        "--cohort",
        f"{tmp_path}/cohort.csv",
    ]
    words += ["--bags", f"{tmp_path}/bags", "-o", str(out), "--device", "cpu"]
    assert main(words) == 0
    lines = (out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "slide_id,patient_id,split,label,prediction,p_a,p_b"
    assert len(lines) == 13
    state = load_state(out / "best.pt", verb)
    assert '"in_dim":6' in state["description"]["model"]
    # the trained aggregator is a start for another run
    words[-3] = str(tmp_path / "again")
    start = ["--start" if verb == "mil" else "--pretrained"]
    weights = out / "best.pt" if verb == "mil" else out / "pretrain" / "best.pt"
    assert main([*words, *start, str(weights)]) == 0


def test_missing_bags_and_wrong_width_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toy_cohort(tmp_path)
    words = [
        "mil",
        "--config",
        f"{tmp_path}/toy.toml",
        "--cohort",
        f"{tmp_path}/cohort.csv",
    ]
    words += ["--bags", f"{tmp_path}/bags", "-o", f"{tmp_path}/run", "--device", "cpu"]
    wide = ["--set", "model.aggregator.in_dim=5", "--set", "model.encoder.dim=5"]
    assert main([*words, *wide]) == 2
    assert "have 6 values per instance" in capsys.readouterr().err
    (tmp_path / "bags/s3.pt").unlink()
    assert main(words) == 1
    assert "no bag of s3. Run msamil-train extract" in capsys.readouterr().err


def test_one_scale_is_chosen_and_renumbered() -> None:
    bags, _ = toy_bags([5])
    one = keep_scales(bags[0], ["10x"])
    assert torch.equal(one.features, bags[0].features[[1, 3]])
    assert (one.scale_names, one.size_px0) == (("10x",), (10,))
    assert one.scale.tolist() == [0, 0]
    with pytest.raises(StoreError, match="no scale 5x"):
        keep_scales(bags[0], ["5x"])
