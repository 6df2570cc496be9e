"""Two ranks train as one process does: same losses, same parameters (gloo on the CPU)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.errors import ConfigError
from training.e2e import train
from training.log import read_log
from training.ranks import Ranks, joined_ranks
from training.state import load_state

from .e2e_parts import tiny_spec, tiny_task, write_cohort

if TYPE_CHECKING:
    from pathlib import Path


@given(st.integers(0, 300), st.integers(1, 9))
@settings(deadline=None, max_examples=60)
def test_spans_cut_a_bag_without_gap_or_overlap(count: int, size: int) -> None:
    parts = [Ranks(r, size).span(count) for r in range(size)]
    assert [i for p in parts for i in range(count)[p]] == list(range(count))
    lengths = [p.stop - p.start for p in parts]
    assert max(lengths) - min(lengths) <= 1
    assert sorted(i for r in range(size) for i in Ranks(r, size).share(count)) == list(
        range(count)
    )


def test_one_rank_changes_nothing() -> None:
    one = Ranks()
    features = torch.rand(3, 2)
    assert one.gather_features(features, 3) is features
    assert one.gather_losses([1.0, None], [0, 1]) == [1.0, None]
    assert one.gather("x") == ["x"]
    assert one.any(True)
    assert not one.any(False)


def _settings(how: str) -> Any:
    return tiny_spec(
        epochs=2,
        distributed=how,
        accumulate=2,
        lr_encoder=1e-4,
        lr_mil=1e-4,
        weight_decay=0.0,
        clip_norm=1.0,
    )


def _train(table: Path, out: Path, how: str, ranks: Ranks) -> None:
    task = tiny_task(table, _settings(how), ranks)
    for layer in task.network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    task.network.double()
    train(task, out)


def _work(
    rank: int, table: Path, folder: Path, hows: tuple[str, ...], port: int
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    with joined_ranks("cpu") as ranks:
        for how in hows:
            _train(table, folder / how / "two", how, ranks)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kinds of sharing, on one rank and on two."""
    folder = tmp_path_factory.mktemp("ranks")
    table = write_cohort(folder, "train,train,train,train,train,val,val,val")
    (folder / "s2.tiff").write_bytes(b"no slide")
    hows = ("slides", "instances")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_work, (table, folder, hows, port), nprocs=2)  # type: ignore[no-untyped-call]
    for how in hows:
        _train(table, folder / how / "one", how, Ranks())
    return folder


@pytest.mark.parametrize("how", ["slides", "instances"])
def test_two_ranks_have_the_loss_of_one(runs: Path, how: str) -> None:
    one, two = (read_log(runs / how / n) for n in ("one", "two"))
    for key in ("loss", "grad_norm", "val_loss", "val_auc"):
        wanted = [x[key] for x in one if key in x]
        assert len(wanted) >= 2
        assert [x[key] for x in two if key in x] == pytest.approx(
            wanted, rel=1e-6, nan_ok=True
        )


@pytest.mark.parametrize("how", ["slides", "instances"])
def test_two_ranks_reach_the_parameters_of_one(runs: Path, how: str) -> None:
    one, two = (
        load_state(runs / how / n / "state.pt")["model"] for n in ("one", "two")
    )
    for name, value in one.items():
        assert torch.allclose(two[name].double(), value.double(), atol=1e-6), name


@pytest.mark.parametrize("how", ["slides", "instances"])
def test_a_slide_no_rank_can_read_is_skipped_by_all(runs: Path, how: str) -> None:
    position = load_state(runs / how / "two" / "state.pt")["position"]
    assert position["skipped"] == ["s2"]
    assert position["step"] == 6


@pytest.mark.parametrize(("batchnorm", "said"), [("sync", "CUDA"), ("batch", "'sync'")])
def test_statistics_that_ranks_cannot_share_are_refused(
    runs: Path, batchnorm: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny_task(runs / "cohort.csv", tiny_spec(batchnorm=batchnorm), Ranks(0, 2))
