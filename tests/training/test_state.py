"""A training state comes back exactly, and nothing else is taken for one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from napari_msamil.errors import CheckpointError
from training.state import (
    load_state,
    rng_state,
    save_state,
    seed_everything,
    set_rng_state,
)


def test_tensors_numbers_and_nesting_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.pt"
    save_state(
        path,
        "e2e",
        {"model": {"w": torch.arange(5.0)}, "position": {"epoch": 3, "best": -1.5}},
    )
    state = load_state(path, "e2e")
    assert torch.equal(state["model"]["w"], torch.arange(5.0))
    assert state["position"] == {"epoch": 3, "best": -1.5}
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_generators_go_on_where_they_were_saved() -> None:
    seed_everything(5)
    saved = rng_state()
    first = random.random(), torch.rand(3).tolist()
    assert (random.random(), torch.rand(3).tolist()) != first
    set_rng_state(saved)
    assert (random.random(), torch.rand(3).tolist()) == first


def test_saved_generators_survive_the_file(tmp_path: Path) -> None:
    seed_everything(7)
    save_state(tmp_path / "s.pt", "mil", {"rng": rng_state()})
    first = torch.rand(4)
    set_rng_state(load_state(tmp_path / "s.pt")["rng"])
    assert torch.equal(torch.rand(4), first)


def test_the_wrong_verb_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "s.pt", "mil", {})
    with pytest.raises(CheckpointError, match=r"'mil'.*'e2e'"):
        load_state(tmp_path / "s.pt", "e2e")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "s.pt", "mil", {"format": 99})
    with pytest.raises(CheckpointError, match="99"):
        load_state(tmp_path / "s.pt")


@pytest.mark.parametrize("content", [b"", b"no state at all", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state.pt"):
        load_state(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent.pt"):
        load_state(tmp_path / "absent.pt")


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(tmp_path / "ran").write_text, ("x",))

    torch.save({"format": 1, "kind": "e2e", "x": Evil()}, tmp_path / "s.pt")
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "s.pt")
    assert not (tmp_path / "ran").exists()


def test_a_foreign_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "s.pt")
    with pytest.raises(CheckpointError, match="not a training state"):
        load_state(tmp_path / "s.pt")
