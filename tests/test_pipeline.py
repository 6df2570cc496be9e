"""One slide from path to answer: the same everywhere, watched, stopped, asked again."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import napari_msamil
from napari_msamil import pipeline
from napari_msamil.checkpoint import LoadedModel, load_checkpoint
from napari_msamil.config import Fallback, Strategy
from napari_msamil.device import choose_runtime
from napari_msamil.feature_store import FeatureStore
from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.pipeline import ClassifyOptions, classify, classify_steps
from napari_msamil.progress import Stage, finish
from napari_msamil.slide import open_slide

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from napari_msamil.result import SlideResult
    from napari_msamil.slide.base import Slide

FP32 = choose_runtime("cpu", "fp32")


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> LoadedModel:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture
def slide(painted_svs: Path) -> Iterator[Slide]:
    with open_slide(painted_svs) as opened:
        yield opened


def mask_of(slide: Slide, share: float = 1.0) -> SlideMask:
    """The left part of the slide."""
    mask = np.zeros((40, 60), bool)
    mask[:, : round(60 * share)] = True
    return SlideMask(mask, slide.info.size_wh0, MaskSource.USER)


def run(slide: Slide, loaded: LoadedModel, **options: Any) -> SlideResult:
    return finish(
        classify_steps(slide, loaded, ClassifyOptions(runtime=FP32, **options))
    )


def assert_same_answer(a: SlideResult, b: SlideResult) -> None:
    np.testing.assert_array_equal(a.logits, b.logits)
    np.testing.assert_array_equal(a.attention, b.attention)
    np.testing.assert_array_equal(a.features, b.features)


def test_the_public_name_classifies_a_path(
    painted_svs: Path, tiny_checkpoint: Path
) -> None:
    result = napari_msamil.classify(
        painted_svs, tiny_checkpoint, device="cpu", precision="fp32"
    )
    assert result.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert result.attention.sum() == pytest.approx(1, abs=1e-5)
    assert result.prediction == result.classes[int(np.argmax(result.logits))]
    assert result.counts == result.grid.counts
    assert set(result.timings_s) == {
        "open", "mask", "read", "encode", "aggregate", "total",
    }  # fmt: skip
    assert result.timings_s["total"] >= result.timings_s["encode"] > 0
    assert not result.partial
    assert any("no medical meaning" in w for w in result.warnings)
    assert any("tissue mask is used" in w for w in result.warnings)


def test_a_path_and_an_open_slide_give_the_same_answer(
    painted_svs: Path, slide: Slide, tiny_checkpoint: Path, loaded: LoadedModel
) -> None:
    by_path = classify(painted_svs, tiny_checkpoint, precision="fp32", cache=False)
    by_slide = classify(slide, loaded, precision="fp32", cache=False)
    assert_same_answer(by_path, by_slide)


def test_cached_and_fresh_runs_are_equal_bit_for_bit(
    slide: Slide, loaded: LoadedModel, tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path)
    run(slide, loaded, mask=mask_of(slide, 0.6), store=store)
    history = run(slide, loaded, mask=mask_of(slide), store=store)
    assert_same_answer(history, run(slide, loaded, mask=mask_of(slide)))


def test_after_a_mask_edit_only_new_patches_are_encoded(
    slide: Slide, loaded: LoadedModel, tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path)
    first = run(slide, loaded, mask=mask_of(slide, 0.6), store=store)
    steps = classify_steps(
        slide,
        loaded,
        ClassifyOptions(runtime=FP32, store=store, mask=mask_of(slide), previous=first),
    )
    encode = next(s for s in steps if s.stage is Stage.ENCODE)
    assert encode.done == len(first.grid)
    second = finish(steps)
    assert second.change is not None
    assert second.change.gained == len(second.grid) - len(first.grid) > 0
    assert second.change.lost == 0
    np.testing.assert_allclose(
        second.change.delta_probabilities, second.probabilities - first.probabilities
    )
    back = run(
        slide, loaded, mask=mask_of(slide, 0.6), store=store, previous=second
    ).change
    assert back is not None
    assert (back.gained, back.lost) == (0, second.change.gained)


def test_a_changed_pixel_size_gets_no_stale_features(
    painted_svs: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path)
    with open_slide(painted_svs) as slide:
        run(slide, loaded, mask=mask_of(slide), store=store)
    with open_slide(painted_svs, mpp=0.4) as slide:
        cached = run(slide, loaded, mask=mask_of(slide), store=store)
        assert_same_answer(cached, run(slide, loaded, mask=mask_of(slide)))


def test_partial_answers_come_and_say_that_they_are(
    slide: Slide, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "PARTIAL_EVERY_S", 0.0)
    options = ClassifyOptions(runtime=FP32, mask=mask_of(slide))
    partials = [
        s.partial
        for s in classify_steps(slide, loaded, options)
        if s.partial is not None
    ]
    assert len(partials) > 1
    seen = [int(p.valid.sum()) for p in partials]
    assert seen == sorted(seen)
    for partial in partials:
        assert partial.partial
        assert not partial.attention[~partial.valid].any()
        assert partial.attention.sum() == pytest.approx(1, abs=1e-5)
    assert seen[0] < len(partials[0].grid)
    assert partials[0].valid.sum() == seen[0]  # a snapshot, not filled further later
    coarse = partials[0].grid.scale[partials[0].valid]
    assert coarse.min() == 2


def test_stopping_keeps_the_slide_usable_and_the_cache_filled(
    slide: Slide, loaded: LoadedModel, tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path)
    options = ClassifyOptions(runtime=FP32, mask=mask_of(slide), store=store)
    steps = classify_steps(slide, loaded, options)
    for step in steps:
        if step.stage is Stage.ENCODE and step.done > 8:
            break
    start = time.monotonic()
    steps.close()
    assert time.monotonic() - start < 30
    assert list(tmp_path.rglob("*.safetensors"))
    assert_same_answer(
        finish(classify_steps(slide, loaded, options)),
        run(slide, loaded, mask=mask_of(slide)),
    )


def test_options_reach_the_selection(slide: Slide, loaded: LoadedModel) -> None:
    mask = mask_of(slide, 0.5)
    strict = run(slide, loaded, mask=mask, threshold=0.95)
    loose = run(slide, loaded, mask=mask, threshold=0.05)
    assert len(strict.grid) < len(loose.grid)
    random = run(slide, loaded, mask=mask, strategy=Strategy.RANDOM, seed=3)
    assert random.grid.spec.strategy is Strategy.RANDOM
    assert random.grid.spec.seed == 3
    empty = SlideMask(np.zeros((9, 9), bool), slide.info.size_wh0, MaskSource.USER)
    fallen = run(slide, loaded, mask=empty, fallback=Fallback.TISSUE)
    assert fallen.grid.warnings[0] in fallen.warnings


def test_the_model_is_not_changed_by_options(slide: Slide, loaded: LoadedModel) -> None:
    before = loaded.config
    run(slide, loaded, mask=mask_of(slide), threshold=0.2)
    assert loaded.config == before


def test_compiled_is_part_of_the_options_and_off_by_default() -> None:
    assert ClassifyOptions().compiled is False


def test_temperature_softens_probabilities_and_leaves_logits(
    slide: Slide, loaded: LoadedModel
) -> None:
    mask = mask_of(slide)
    sharp = run(slide, loaded, mask=mask)
    config = loaded.config.model_copy(update={"temperature": 4.0})
    soft = run(slide, dataclasses.replace(loaded, config=config), mask=mask)
    np.testing.assert_array_equal(sharp.logits, soft.logits)
    powers = np.exp(sharp.logits / 4)
    np.testing.assert_allclose(soft.probabilities, powers / powers.sum(), rtol=1e-5)
