"""Decoded patches on disk: the same pixels, never stale, never half a file, never more than the bound."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from training.cohort import read_cohort
from training.patch_cache import PatchCache
from training.pixel_run import make_pool

from .e2e_parts import CLASSES, tiny_config, tiny_spec, write_cohort

if TYPE_CHECKING:
    from pathlib import Path

    from training.patch_dataset import PatchPool


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("slides"), "train,train")


def _pool(table: Path, folder: Path | str, resampler: str = "bilinear") -> PatchPool:
    config = tiny_config()
    patches = config.patches.model_copy(update={"resampler": resampler})
    config = config.model_copy(update={"patches": patches})
    spec = tiny_spec(cache_gb=0, cache_dir=str(folder))
    return make_pool(read_cohort(table, classes=CLASSES), "train", config, spec)


def _draw(pool: PatchPool) -> torch.Tensor:
    return pool.draw(0, 7, np.random.default_rng(3)).pixels


def test_a_second_training_decodes_nothing_and_gets_the_same_pixels(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = _draw(_pool(table, ""))
    assert torch.equal(_draw(_pool(table, tmp_path)), wanted)
    again = _pool(table, tmp_path)
    monkeypatch.setattr(again, "_decode", None)
    assert torch.equal(_draw(again), wanted)
    assert [p.suffix for p in tmp_path.iterdir()] == [".npy"]


def test_other_pixels_have_another_name(table: Path, tmp_path: Path) -> None:
    smooth, sharp = (_draw(_pool(table, tmp_path, r)) for r in ("bilinear", "lanczos"))
    assert not torch.equal(smooth, sharp)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_a_damaged_file_is_made_again(table: Path, tmp_path: Path) -> None:
    wanted = _draw(_pool(table, tmp_path))
    (path,) = tmp_path.glob("*.npy")
    whole = path.read_bytes()
    for damaged in (b"", b"no array", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        assert torch.equal(_draw(_pool(table, tmp_path)), wanted)
        assert path.read_bytes() == whole


def test_the_longest_unused_slides_make_room_and_too_large_ones_stay_out(
    tmp_path: Path,
) -> None:
    cache = PatchCache(tmp_path, 5000)
    pixels = {k: np.full((5, 13, 20, 1), i, np.uint8) for i, k in enumerate("abcd")}
    for age, key in enumerate("abc"):
        cache.put(key, pixels[key])
        os.utime(tmp_path / f"{key}.npy", (1000 + age, 1000 + age))
    assert cache.get("a", (5, 13, 20, 1)) is not None  # used: now the youngest
    (tmp_path / "killed.part").write_bytes(b"x" * 700)
    os.utime(tmp_path / "killed.part", (10, 10))
    cache.put("d", pixels["d"])
    assert {p.name for p in tmp_path.iterdir()} == {"a.npy", "c.npy", "d.npy"}
    found = cache.get("d", (5, 13, 20, 1))
    assert found is not None
    assert np.array_equal(found, pixels["d"])
    assert cache.get("d", (5, 20, 13, 1)) is None
    cache.put("e", np.zeros((5, 40, 40, 3), np.uint8))
    assert not cache.takes(24_000)
    assert cache.get("e", (5, 40, 40, 3)) is None


def test_a_folder_that_cannot_be_written_breaks_nothing(
    table: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    wanted = _draw(_pool(table, ""))
    pool = _pool(table, tmp_path / "file")
    assert torch.equal(_draw(pool), wanted)
    assert not pool._keep(0, 1)  # from now on only what is drawn is decoded
    assert torch.equal(_draw(pool), wanted)
