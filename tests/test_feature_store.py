"""The feature cache gives back exactly what was stored, or nothing: never something stale or damaged."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.config import PatchSpec, ReadLevel, Resampler, ScaleSpec
from napari_msamil.feature_store import FeatureStore, patch_keys, store_key
from napari_msamil.patches import PatchGrid
from napari_msamil.slide.array_slide import ArraySlide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.slide.base import SlideInfo

INFO = ArraySlide(np.full((90, 130, 3), 7, np.uint8), mpp=0.5).info


def grid(count: int = 11, mpp: float = 0.5, **spec: Any) -> PatchGrid:
    rng = np.random.default_rng(count)
    return PatchGrid(
        spec=PatchSpec(**spec),
        size_wh0=(99_001, 80_003),
        mpp=mpp,
        size_px0=(512, 1024, 2048),
        coords_xy0=rng.integers(0, 80_000, (count, 2)),
        scale=rng.integers(0, 3, count).astype(np.int8),
        lesion_fraction=np.ones(count, np.float32),
    )


def rows(count: int, seed: int = 0, width: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features")


def shards(store: FeatureStore, key: str = "k") -> list[Path]:
    return sorted((store.folder / key).glob("*.safetensors"))


def test_what_is_put_is_got_bit_for_bit(store: FeatureStore) -> None:
    keys, features = patch_keys(grid(11)), rows(11)
    assert store.put("k", keys, features)
    found, back = FeatureStore(store.folder).get("k", keys)
    assert found.all()
    np.testing.assert_array_equal(back, features)


def test_only_what_is_there_is_found_in_the_order_asked(store: FeatureStore) -> None:
    keys, features = patch_keys(grid(9)), rows(9)
    store.put("k", keys[[5, 1, 7]], features[[5, 1, 7]])
    found, back = store.get("k", keys)
    assert np.flatnonzero(found).tolist() == [1, 5, 7]
    np.testing.assert_array_equal(back, features[[1, 5, 7]])


def test_an_empty_store_finds_nothing(store: FeatureStore) -> None:
    found, back = store.get("k", patch_keys(grid(3)))
    assert not found.any()
    assert len(back) == 0


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2**28), st.integers(0, 2**28)),
        unique=True,
        min_size=2,
        max_size=30,
    )
)
def test_packed_patch_keys_never_collide(places: list[tuple[int, int, int]]) -> None:
    base = grid(len(places))
    table = np.array(places, np.int64)
    packed = patch_keys(
        dataclasses.replace(
            base, scale=table[:, 0].astype(np.int8), coords_xy0=table[:, 1:]
        )
    )
    assert len(np.unique(packed)) == len(places)


OTHER_SCALES = (ScaleSpec(name="20x", mpp=0.5, size_px=256), *PatchSpec().scales[1:])


@pytest.mark.parametrize(
    "other",
    [
        (INFO, grid(mpp=0.4999), "e"),
        (INFO, grid(resampler=Resampler.LANCZOS), "e"),
        (INFO, grid(read_level=ReadLevel.LEVEL0), "e"),
        (INFO, grid(scales=OTHER_SCALES), "e"),
        (INFO, dataclasses.replace(grid(), size_px0=(513, 1026, 2052)), "e"),
        (INFO, grid(), "other encoder"),
        (dataclasses.replace(INFO, quickhash="other slide"), grid(), "e"),
    ],
)
def test_everything_a_feature_depends_on_changes_the_key(
    other: tuple[SlideInfo, PatchGrid, str],
) -> None:
    assert store_key(*other) != store_key(INFO, grid(), "e")


@pytest.mark.parametrize(
    "same", [{"lesion_threshold": 0.2}, {"strategy": "tissue"}, {"max_patches": 3}]
)
def test_what_only_selects_patches_does_not_change_the_key(
    same: dict[str, Any],
) -> None:
    assert store_key(INFO, grid(**same), "e") == store_key(INFO, grid(), "e")


def test_a_slide_without_identity_is_never_stored(store: FeatureStore) -> None:
    info = dataclasses.replace(INFO, quickhash="")
    key = store_key(info, grid(), "e")
    assert key == ""
    assert not store.put(key, patch_keys(grid()), rows(11))
    assert not store.get(key, patch_keys(grid()))[0].any()


def test_a_flipped_bit_in_an_entry_loses_that_entry_only(store: FeatureStore) -> None:
    keys, features = np.sort(patch_keys(grid(8))), rows(8)
    store.put("k", keys, features)
    (path,) = shards(store)
    data = bytearray(path.read_bytes())
    at = data.find(features[3].tobytes())
    data[at + 2] ^= 0x10
    path.write_bytes(data)
    found, back = store.get("k", keys)
    assert np.flatnonzero(~found).tolist() == [3]
    np.testing.assert_array_equal(back, np.delete(features, 3, axis=0))


@settings(deadline=None, max_examples=60)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_anywhere_gives_a_wrong_feature(
    tmp_path_factory: pytest.TempPathFactory, position: float, bit: int
) -> None:
    store = FeatureStore(tmp_path_factory.mktemp("f"))
    keys, features = np.sort(patch_keys(grid(6))), rows(6)
    store.put("k", keys, features)
    (path,) = shards(store)
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    path.write_bytes(data)
    found, back = store.get("k", keys)
    if found.any():
        np.testing.assert_array_equal(back, features[found])


@pytest.mark.parametrize("kept", [0, 1, 7, 40, 200])
def test_a_cut_file_is_dropped_and_can_be_written_again(
    store: FeatureStore, kept: int
) -> None:
    keys, features = patch_keys(grid(8)), rows(8)
    store.put("k", keys, features)
    (path,) = shards(store)
    path.write_bytes(path.read_bytes()[:kept])
    assert not store.get("k", keys)[0].any()
    assert not path.exists()
    store.put("k", keys, features)
    assert store.get("k", keys)[0].all()


def test_a_full_disk_is_reported_once_and_stops_nothing(
    store: FeatureStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys, features = patch_keys(grid(4)), rows(4)
    store.put("k", keys[:2], features[:2])

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert not store.put("k", keys[2:], features[2:])
    assert not store.put("k", keys[2:], features[2:])
    monkeypatch.undo()
    assert caplog.text.count("No space left") == 1
    assert len(list(store.folder.rglob("*"))) == 2  # the key's folder and the old shard
    assert store.get("k", keys)[0].tolist() == [True, True, False, False]


def test_joining_shards_keeps_every_entry(store: FeatureStore) -> None:
    keys, features = patch_keys(grid(40)), rows(40)
    for i in range(0, 40, 3):
        store.put("k", keys[i : i + 3], features[i : i + 3])
    store.put("k", keys[:5], features[:5])
    store.tidy("k")
    assert len(shards(store)) == 1
    found, back = store.get("k", keys)
    assert found.all()
    np.testing.assert_array_equal(back, features)


def test_the_slide_not_used_for_longest_goes_when_the_cache_is_full(
    tmp_path: Path,
) -> None:
    store = FeatureStore(tmp_path)
    keys, features = patch_keys(grid(30)), rows(30, width=40)
    for age, name in enumerate(("new", "used", "old", "oldest")):
        store.put(name, keys, features)
        then = time.time() - 100 * (age + 1)
        os.utime(tmp_path / name, (then, then))
    one = sum(p.stat().st_size for p in (tmp_path / "new").iterdir())
    store.get("old", keys)
    small = FeatureStore(tmp_path, max_bytes=int(2.5 * one))
    small.tidy("oldest")
    assert {p.name for p in tmp_path.iterdir()} == {"old", "oldest"}


def _write_many(folder: str, seed: int) -> None:
    store = FeatureStore(Path(folder))
    keys, features = patch_keys(grid(60)), rows(60)
    order = np.random.default_rng(seed).permutation(60)
    for i in range(0, 60, 4):
        part = order[i : i + 4]
        store.put("k", keys[part], features[part])
        if i % 20 == 0:
            store.tidy("k")


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write_many, args=(str(tmp_path), seed))
        for seed in (1, 2)
    ]
    for writer in writers:
        writer.start()
    store, keys, features = FeatureStore(tmp_path), patch_keys(grid(60)), rows(60)
    while any(writer.is_alive() for writer in writers):
        found, back = store.get("k", keys)
        if found.any():
            np.testing.assert_array_equal(back, features[found])
    assert [writer.exitcode for writer in writers] == [0, 0]
    found, back = store.get("k", keys)
    assert found.all()
    np.testing.assert_array_equal(back, features)
