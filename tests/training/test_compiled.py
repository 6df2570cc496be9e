"""A compiled encoder sees one shape, and gives the gradients of the plain one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from napari_msamil.errors import ConfigError
from training.compiled import compile_encoder
from training.e2e import train
from training.log import read_log

from .e2e_parts import tiny_spec, tiny_task, write_cohort

if TYPE_CHECKING:
    from pathlib import Path

    from training.e2e_task import E2ETask


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("slides"), "train,train,train,val")


def _plain(table: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> E2ETask:
    """The task of a compiled run whose encoder stays as it is: only the shapes are those of compiling."""
    if changes.get("compile"):
        monkeypatch.setattr("training.e2e.compile_encoder", lambda *_, **__: None)
    task = tiny_task(table, tiny_spec(epochs=1, eval_instances=11, **changes))
    for layer in task.network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return task


@pytest.mark.parametrize(
    ("mode", "size"), [("none", 9), ("chunked", 4), ("two-pass", 4)]
)
def test_every_call_has_one_shape_and_filling_changes_no_gradient(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, size: int
) -> None:
    monkeypatch.setattr("training.e2e_task.measure_batchnorm", lambda *_: 0)
    found = []
    for compiled in (False, True):
        task = _plain(table, monkeypatch, memory=mode, chunk=4, compile=compiled)
        task.network.double()
        shapes = set()
        task.model.encoder.register_forward_pre_hook(
            lambda _, inputs, seen=shapes: seen.add(len(inputs[0]))
        )
        train(task, tmp_path / str(compiled))
        losses = [x["loss"] for x in read_log(tmp_path / str(compiled)) if "loss" in x]
        grads = [p.grad for p in task.network.parameters() if p.grad is not None]
        found.append((losses, torch.cat([g.flatten() for g in grads]), shapes))
    assert found[1][2] == {size}
    assert found[0][2] != {size}
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-9)


def test_a_mode_that_takes_the_encoder_apart_is_refused(table: Path) -> None:
    with pytest.raises(ConfigError, match="two-pass"):
        tiny_task(table, tiny_spec(memory="selective", compile=True))


def test_a_machine_without_compiler_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        compile_encoder(torch.nn.Linear(2, 2), fixed=True)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="no C++ compiler"
)
def test_the_compiled_encoder_gives_the_plain_gradients(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, graphs = [], []
    for compiled in (False, True):
        # one step: after it AdamW would amplify the rounding of small gradients
        task = _plain(
            table,
            monkeypatch,
            memory="two-pass",
            chunk=4,
            compile=compiled,
            accumulate=3,
        )
        task.network.double()
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        if compiled:
            compile_encoder(task.model.encoder, fixed=True)
        train(task, tmp_path / str(compiled))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        grads = [p.grad for p in task.network.parameters() if p.grad is not None]
        found.append(torch.cat([g.flatten() for g in grads]))
    difference = torch.linalg.norm(found[1] - found[0]) / torch.linalg.norm(found[0])
    assert difference < 1e-6
    # the probe; encoding without a graph, with one, and in evaluation: nothing is compiled twice
    assert graphs == [0, 4]
