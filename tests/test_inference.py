"""Encoding: a feature depends on its patch alone, not on batches, history or damage elsewhere."""

from __future__ import annotations

import dataclasses
import shutil
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.checkpoint import LoadedModel, load_checkpoint
from napari_msamil.device import choose_runtime
from napari_msamil.encoding import (
    PatchEncoder,
    batch_places,
    encoder_id,
    in_places,
)
from napari_msamil.errors import RegionError
from napari_msamil.exact import Crew, one_thread
from napari_msamil.feature_store import FeatureStore
from napari_msamil.inference import FeatureBag, aggregate, encode_patches
from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.patch_reader import PatchBatch, read_patch
from napari_msamil.patches import PatchGrid, make_grid
from napari_msamil.progress import finish
from napari_msamil.slide import open_slide
from napari_msamil.slide.array_slide import ArraySlide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_msamil.slide.base import Slide

FP32 = choose_runtime("cpu", "fp32")


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> LoadedModel:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture
def slide(painted_svs: Path) -> Iterator[Slide]:
    with open_slide(painted_svs) as opened:
        yield opened


def everything(slide: Slide, loaded: LoadedModel) -> PatchGrid:
    mask = SlideMask(np.ones((8, 8), bool), slide.info.size_wh0, MaskSource.USER)
    return make_grid(slide.info, loaded.config.patches, mask)


def part_of(grid: PatchGrid, keep: NDArray[Any]) -> PatchGrid:
    return dataclasses.replace(
        grid,
        coords_xy0=grid.coords_xy0[keep],
        scale=grid.scale[keep],
        lesion_fraction=grid.lesion_fraction[keep],
    )


def encode(
    slide: Slide,
    grid: PatchGrid,
    loaded: LoadedModel,
    store: FeatureStore | None = None,
) -> FeatureBag:
    return finish(encode_patches(slide, grid, loaded, FP32, store))


def test_features_are_those_of_the_patches_one_by_one(
    slide: Slide, loaded: LoadedModel
) -> None:
    grid = everything(slide, loaded)
    bag = encode(slide, grid, loaded)
    assert bag.valid.all()
    for index in (0, len(grid) // 2, len(grid) - 1):
        pixels = torch.from_numpy(read_patch(slide, grid, index).copy())
        with torch.inference_mode():
            alone = loaded.model.encoder(pixels.permute(2, 0, 1)[None])[0].numpy()
        np.testing.assert_allclose(bag.features[index], alone, atol=2e-5)


def test_features_do_not_depend_on_which_other_patches_are_there(
    slide: Slide, loaded: LoadedModel
) -> None:
    grid = everything(slide, loaded)
    whole = encode(slide, grid, loaded).features
    for seed in range(3):
        keep = np.flatnonzero(np.random.default_rng(seed).random(len(grid)) < 0.4)
        part = encode(slide, part_of(grid, keep), loaded).features
        np.testing.assert_array_equal(part, whole[keep])


def test_a_stopped_run_resumes_to_the_identical_features(
    slide: Slide, loaded: LoadedModel, tmp_path: Path
) -> None:
    grid = everything(slide, loaded)
    whole = encode(slide, grid, loaded).features
    store = FeatureStore(tmp_path)
    steps = encode_patches(slide, grid, loaded, FP32, store)
    for _ in range(6):
        next(steps)
    steps.close()
    resumed = encode_patches(slide, grid, loaded, FP32, store)
    first = next(resumed)
    assert 0 < first.done < len(grid)
    np.testing.assert_array_equal(finish(resumed).features, whole)


def test_cached_patches_are_neither_read_nor_encoded_again(
    loaded: LoadedModel, slide: Slide, tmp_path: Path
) -> None:
    grid, store = everything(slide, loaded), FeatureStore(tmp_path)
    first = encode(slide, grid, loaded, store)

    class Unreadable(ArraySlide):
        def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
            raise AssertionError("a cached patch was read")

    blank = Unreadable(np.zeros((4, 4, 3), np.uint8), info=slide.info)
    again = encode(blank, grid, loaded, store)
    np.testing.assert_array_equal(again.features, first.features)


def test_damaged_cache_entries_are_encoded_again(
    slide: Slide, loaded: LoadedModel, tmp_path: Path
) -> None:
    grid, store = everything(slide, loaded), FeatureStore(tmp_path)
    first = encode(slide, grid, loaded, store)
    for path in tmp_path.rglob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    again = encode(slide, grid, loaded, store)
    np.testing.assert_array_equal(again.features, first.features)


def test_unreadable_patches_are_marked_and_never_painted(
    slide: Slide, loaded: LoadedModel
) -> None:
    grid = everything(slide, loaded)
    whole = encode(slide, grid, loaded)
    levels = [
        slide.read_level(k, (0, 0), size)
        for k, size in enumerate(slide.info.level_sizes_wh)
    ]

    class Damaged(ArraySlide):
        def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
            if (level, column, row) == (0, 1, 1):
                raise RegionError("bad tile")
            return super().tile(level, column, row)

    bag = encode(Damaged(levels, info=slide.info), grid, loaded)
    assert set(np.flatnonzero(~bag.valid).tolist()) == set(bag.faults)
    assert 0 < len(bag.faults) < len(grid)
    assert not bag.features[~bag.valid].any()
    np.testing.assert_array_equal(bag.features[bag.valid], whole.features[bag.valid])
    output = aggregate(loaded, bag)
    assert not output.attention[0][~torch.from_numpy(bag.valid)].any()
    assert output.attention.sum().item() == pytest.approx(1, abs=1e-5)


def test_a_slide_without_one_readable_patch_is_an_error(
    slide: Slide, loaded: LoadedModel
) -> None:
    class Broken(ArraySlide):
        def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
            raise RegionError("every tile is bad")

    broken = Broken(np.zeros((4, 4, 3), np.uint8), info=slide.info)
    with pytest.raises(RegionError, match="every tile is bad"):
        encode(broken, everything(slide, loaded), loaded)


@pytest.mark.parametrize("threads", [2, 3])
def test_in_fp32_the_bits_do_not_depend_on_the_number_of_threads(
    slide: Slide, loaded: LoadedModel, threads: int
) -> None:
    grid = everything(slide, loaded)
    before = torch.get_num_threads()
    answers = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            bag = encode(slide, grid, loaded)
            answers.append((bag.features, aggregate(loaded, bag, FP32).logits.numpy()))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, many)


def test_other_threads_keep_their_own_number_of_threads(loaded: LoadedModel) -> None:
    before = torch.get_num_threads()
    found: list[int] = []
    PatchEncoder(loaded, FP32)(np.zeros((1, 64, 64, 3), np.uint8))
    late = Thread(target=lambda: found.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert found == [before]


def test_invalid_patches_change_the_answer_like_leaving_them_out(
    slide: Slide, loaded: LoadedModel
) -> None:
    grid = everything(slide, loaded)
    bag = encode(slide, grid, loaded)
    valid = np.random.default_rng(1).random(len(grid)) < 0.7
    masked = dataclasses.replace(bag, valid=valid)
    left = part_of(grid, np.flatnonzero(valid))
    fewer = dataclasses.replace(
        bag, grid=left, features=bag.features[valid], valid=np.ones(len(left), bool)
    )
    torch.testing.assert_close(
        aggregate(loaded, masked).logits, aggregate(loaded, fewer).logits
    )


def test_running_out_of_memory_halves_the_batch_and_says_so(
    loaded: LoadedModel,
) -> None:
    loose = dataclasses.replace(FP32, batch_size=8, exact=False)
    with one_thread(True):
        encoder = PatchEncoder(loaded, loose)
    real = encoder._encoder

    def small(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError("no memory")
        return real(images)  # type: ignore[no-any-return]

    encoder._call = small
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    features = encoder(pixels)
    assert encoder.batch_size == 2
    assert [n.split()[-4] for n in encoder.notices] == ["4", "2"]
    expected = PatchEncoder(loaded, FP32)(pixels)
    np.testing.assert_allclose(features, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("threads", "most", "size", "each"),
    [(1, 8, 1, 1), (6, 8, 6, 1), (12, 8, 6, 2), (7, 3, 2, 3), (5, None, 5, 1)],
)
def test_a_crew_shares_out_the_threads(
    threads: int, most: int | None, size: int, each: int
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        crew = Crew(most)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert crew.size == size
    together = Barrier(size)

    def count(_: int) -> int:
        together.wait()
        return torch.get_num_threads()

    assert crew.map(count, range(size)) == [each] * size


def test_shares_of_several_threads_are_put_together_in_order(
    loaded: LoadedModel,
) -> None:
    loose = dataclasses.replace(FP32, batch_size=6, exact=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        encoder = PatchEncoder(loaded, loose)
    finally:
        torch.set_num_threads(before)
    pixels = np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), np.uint8)
    assert encoder.batch_size == 6
    expected = PatchEncoder(loaded, FP32)(pixels)
    np.testing.assert_allclose(encoder(pixels), expected, atol=2e-5)


def test_an_error_that_is_not_memory_is_not_hidden(loaded: LoadedModel) -> None:
    encoder = PatchEncoder(loaded, FP32)

    def broken(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("something else")

    encoder._call = broken
    with pytest.raises(RuntimeError, match="something else"):
        encoder(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="no C++ compiler"
)
def test_compiled_features_are_the_plain_ones_and_are_compiled_once(
    loaded: LoadedModel,
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), np.uint8)
    runtime = dataclasses.replace(FP32, exact=False)
    plain = PatchEncoder(loaded, runtime)(pixels)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    encoder = PatchEncoder(loaded, runtime, compiled=True)
    first = encoder(pixels)
    np.testing.assert_allclose(first, plain, atol=1e-5)
    assert np.array_equal(encoder(pixels), first)
    # the probe and the encoder, whatever the number of workers
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_the_encoder_id_follows_weights_precision_and_nothing_else(
    tiny_checkpoint: Path,
) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    name = encoder_id(loaded, FP32)
    assert encoder_id(load_checkpoint(tiny_checkpoint), FP32) == name
    with torch.no_grad():
        next(iter(loaded.model.aggregator.parameters())).add_(1)
    assert encoder_id(loaded, FP32) == name
    assert encoder_id(loaded, choose_runtime("cpu", "bf16")) != name
    loose = dataclasses.replace(FP32, exact=False)
    assert encoder_id(loaded, loose) != name
    assert encoder_id(loaded, FP32, compiled=True) != name
    with torch.no_grad():
        next(iter(loaded.model.encoder.parameters())).add_(1)
    assert encoder_id(loaded, FP32) != name


def test_bf16_gives_the_same_class_within_a_hundredth(
    slide: Slide, loaded: LoadedModel
) -> None:
    grid = everything(slide, loaded)
    exact = aggregate(loaded, encode(slide, grid, loaded)).logits
    bag = finish(encode_patches(slide, grid, loaded, choose_runtime("cpu", "bf16")))
    short = aggregate(loaded, bag).logits
    assert exact.argmax() == short.argmax()
    torch.testing.assert_close(exact.softmax(1), short.softmax(1), atol=0.01, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    places=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    sizes=st.lists(st.sampled_from([2, 3]), min_size=60, max_size=60),
)
def test_every_patch_goes_out_once_at_its_place(
    places: list[int], sizes: list[int]
) -> None:
    def batches() -> Iterator[PatchBatch]:
        for i in range(len(places)):
            pixels = np.full((1, sizes[i], sizes[i], 3), i + 1, np.uint8)
            yield PatchBatch(np.array([i]), pixels)

    seen = []
    for index, place, pixels in in_places(batches(), np.array(places), 4):
        assert len(pixels) == 4
        assert place.tolist() == [places[i] for i in index]
        assert pixels[place][:, 0, 0, 0].tolist() == (index + 1).tolist()
        assert pixels.any(axis=(1, 2, 3)).sum() == len(index)
        seen += index.tolist()
    assert sorted(seen) == list(range(len(places)))


def test_places_are_balanced_over_a_compact_region(
    slide: Slide, loaded: LoadedModel
) -> None:
    grid = everything(slide, loaded)
    counts = np.bincount(batch_places(grid, 4), minlength=4)
    assert counts.max() <= 1.1 * counts.mean() + 2
