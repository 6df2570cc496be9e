"""End-to-end training: Algorithm 2, exact resume, and what happens when something is wrong."""

from __future__ import annotations

import json
import math
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.device import Precision, Runtime
from napari_msamil.errors import CohortError, ConfigError, MsamilError
from training.augment import augment, change_density, turn_and_flip
from training.cli import main
from training.config import AugmentSpec
from training.e2e import make_task, train
from training.log import read_log
from training.patch_dataset import choose
from training.state import load_state

from .e2e_parts import tiny_spec, tiny_task, write_cohort, write_recipe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("slides"))


def test_a_draw_is_sorted_unique_and_from_all_scales(table: Path) -> None:
    pool = tiny_task(table).train
    draw = pool.draw(0, 0, np.random.default_rng(0))
    assert len(draw) == len(pool.grid(0))
    assert sorted(set(draw.scale.tolist())) == [0, 1, 2]
    some = pool.draw(0, 9, np.random.default_rng(1))
    assert len(some) == 9
    assert (
        len(
            {
                (s, *c)
                for s, c in zip(some.scale.tolist(), some.coords.tolist(), strict=True)
            }
        )
        == 9
    )


def test_drawn_pixels_are_those_of_the_plugin(table: Path) -> None:
    from napari_msamil.patch_reader import read_patch
    from napari_msamil.slide import open_slide

    pool = tiny_task(table).train
    grid = pool.grid(1)
    rng = np.random.default_rng(7)
    chosen = choose(grid.scale, 6, np.random.default_rng(7), "uniform")
    draw = pool.draw(1, 6, rng)
    with open_slide(pool.rows[1].path) as slide:
        for place, index in enumerate(chosen):
            assert np.array_equal(
                draw.pixels[place].numpy(), read_patch(slide, grid, int(index))
            )


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_the_cache_changes_nothing(table: Path, cache_gb: float) -> None:
    pool = tiny_task(table, tiny_spec(cache_gb=cache_gb)).train
    draws = [pool.draw(2, 5, np.random.default_rng(9)) for _ in range(2)]
    other = tiny_task(table, tiny_spec(cache_gb=0)).train.draw(
        2, 5, np.random.default_rng(9)
    )
    assert torch.equal(draws[0].pixels, draws[1].pixels)
    assert torch.equal(draws[0].pixels, other.pixels)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=60),
    st.integers(0, 80),
    st.sampled_from(["uniform", "stratified"]),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=80)
def test_choosing_gives_the_number_asked_for(
    scales: list[int], count: int, sampling: str, seed: int
) -> None:
    scale = np.array(scales, np.int8)
    chosen = choose(scale, count, np.random.default_rng(seed), sampling)
    wanted = len(scale) if count == 0 else min(count, len(scale))
    assert len(chosen) == wanted
    assert np.array_equal(chosen, np.unique(chosen))


def test_stratified_draws_even_out_the_scales() -> None:
    scale = np.repeat(np.array([0, 1, 2], np.int8), (160, 40, 10))
    counts = np.bincount(
        scale[choose(scale, 30, np.random.default_rng(0), "stratified")]
    )
    assert counts.tolist() == [10, 10, 10]


def test_uniform_draws_follow_the_shares_of_the_scales() -> None:
    """200 of P_all are expected to be 152 : 38 : 10 (16 : 4 : 1)."""
    scale = np.repeat(np.array([0, 1, 2], np.int8), (1600, 400, 100))
    rng = np.random.default_rng(0)
    mean = np.mean(
        [
            np.bincount(scale[choose(scale, 200, rng, "uniform")], minlength=3)
            for _ in range(300)
        ],
        axis=0,
    )
    assert np.allclose(mean, [152.4, 38.1, 9.5], atol=1.0)


def test_the_first_loss_is_near_ln_c(table: Path, tmp_path: Path) -> None:
    train(tiny_task(table), tmp_path)
    losses = [line["loss"] for line in read_log(tmp_path) if "loss" in line]
    assert abs(losses[0] - math.log(2)) < 0.25


def test_four_slides_are_learnt_by_heart(table: Path, tmp_path: Path) -> None:
    spec = tiny_spec(
        epochs=25,
        lr_encoder=3e-3,
        lr_mil=3e-3,
        batchnorm="batch",
        freeze_after=0.6,
        accumulate=4,
        together=4,
    )
    task = tiny_task(table, spec)
    train(task, tmp_path)
    losses = [line["loss"] for line in read_log(tmp_path) if "loss" in line]
    assert losses[-1] < 0.1
    logits, labels = task.predict(task.train)
    assert logits.argmax(1).tolist() == labels


def test_both_parameter_groups_move_with_their_own_rate(
    table: Path, tmp_path: Path
) -> None:
    task = tiny_task(table, tiny_spec(epochs=1, lr_encoder=0.0, weight_decay=0.0))
    before = {k: v.detach().clone() for k, v in task.network.named_parameters()}
    train(task, tmp_path)
    after = dict(task.network.named_parameters())
    moved = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
    assert moved == {"aggregator"}


def _bits(path: Path) -> dict[str, Any]:
    state = load_state(path)
    moments = state["optimizer"]["state"]
    flat = {f"opt{i}.{k}": v for i, s in moments.items() for k, v in s.items()}
    return {**state["model"], **flat, "rng": state["rng"]["torch"]}


@pytest.mark.parametrize("batchnorm", ["frozen", "batch"])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batchnorm: str
) -> None:
    spec = tiny_spec(epochs=3, accumulate=1, batchnorm=batchnorm, prefetch=2)
    train(tiny_task(table, spec), tmp_path / "whole")

    task = tiny_task(table, spec)
    calls, once = [0], task.backward_window

    def stop_in_the_middle(visits: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            signal.raise_signal(signal.SIGTERM)
        return once(visits)

    monkeypatch.setattr(task, "backward_window", stop_in_the_middle)
    assert train(task, tmp_path / "parts").reason == "stopped"
    assert load_state(tmp_path / "parts" / "state.pt")["position"]["position"] == 2
    torch.manual_seed(12345)
    result = train(tiny_task(table, spec), tmp_path / "parts", resume=True)
    assert result.reason == "finished"
    whole, parts = (
        _bits(tmp_path / "whole" / "state.pt"),
        _bits(tmp_path / "parts" / "state.pt"),
    )
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(parts[name])), name


def test_reading_ahead_and_caching_do_not_change_the_training(
    table: Path, tmp_path: Path
) -> None:
    states = []
    for name, changes in (
        ("a", {"prefetch": 0, "cache_gb": 0}),
        ("b", {"prefetch": 3}),
    ):
        train(tiny_task(table, tiny_spec(epochs=1, **changes)), tmp_path / name)
        states.append(_bits(tmp_path / name / "state.pt"))
    assert all(
        torch.equal(torch.as_tensor(v), torch.as_tensor(states[1][k]))
        for k, v in states[0].items()
    )


@pytest.mark.parametrize("mode", ["chunked", "two-pass", "selective"])
def test_a_memory_mode_trains_to_the_same_weights(
    table: Path, tmp_path: Path, mode: str
) -> None:
    """Frozen statistics and no dropout: the same run within rounding (one step of AdamW amplifies it, so SGD-sized)."""
    found = []
    for name in ("none", mode):
        spec = tiny_spec(epochs=1, accumulate=4, memory=name, chunk=4)
        task = tiny_task(table, spec)
        for layer in task.network.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        losses: list[float] = []
        train(task, tmp_path / name)
        losses += [x["loss"] for x in read_log(tmp_path / name) if "loss" in x]
        grads = torch.cat(
            [p.grad.flatten() for p in task.network.parameters() if p.grad is not None]
        )
        found.append((losses, grads))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert torch.allclose(
        found[0][1], found[1][1], atol=1e-4 * float(found[0][1].abs().max())
    )


def test_a_slide_that_cannot_be_read_is_skipped_counted_and_named(
    tmp_path: Path,
) -> None:
    table = write_cohort(tmp_path, "train,train,train,val")
    (tmp_path / "s1.tiff").write_bytes(b"II*\0 cut off")
    task = tiny_task(table, tiny_spec(accumulate=1))
    result = train(task, tmp_path / "run")
    assert result.skipped == ("s1",)
    assert "s1.tiff" in task.faults["s1"]
    assert {"s1"} == {
        x["item"] for x in read_log(tmp_path / "run") if x.get("event") == "skipped"
    }


def test_a_loss_that_is_no_number_names_the_slide(table: Path, tmp_path: Path) -> None:
    task = tiny_task(table)
    with torch.no_grad():
        task.model.aggregator.classifier.weight.fill_(math.nan)  # type: ignore[union-attr,operator]
    with pytest.raises(MsamilError, match=r"loss became nan on slide s\d"):
        train(task, tmp_path)


def test_the_dry_run_says_what_is_there_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_cohort(tmp_path, "train,train,train,val")
    (tmp_path / "s1.tiff").write_bytes(b"no slide")
    words = ["e2e", "--cohort", str(table), "-o", str(tmp_path / "o"), "--check"]
    words += ["--config", str(write_recipe(tmp_path)), "--device", "cpu"]
    assert main([*words, "--precision", "fp32"]) == 1
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["classes"] == {"pale": 2, "dark": 1}
    assert "s1" in said.err
    assert set(report["slides"]["train"]["s0"]) == {"20x", "10x", "5x"}
    assert report["step"]["loss"] == pytest.approx(math.log(2), abs=0.4)
    # all patches fit into one chunk here: both keep the same, but for a copy of the features
    none, chunked = (report["memory_gb"][mode] for mode in ("none", "chunked"))
    assert chunked == pytest.approx(none, rel=0.01)
    assert not (tmp_path / "o").exists()


def test_automatic_memory_is_the_fastest_mode_that_fits(table: Path) -> None:
    assert tiny_task(table, tiny_spec(memory="auto")).plan.mode == "none"
    tight = tiny_spec(memory="auto", memory_gb=0.006, chunk=2, instances=200)
    assert tiny_task(table, tight).plan.mode in ("selective", "two-pass")


def test_half_precision_with_a_short_range_is_refused(table: Path) -> None:
    from training.e2e import make_plan

    task = tiny_task(table)
    runtime = Runtime("cpu", Precision.FP16, channels_last=True)
    with pytest.raises(ConfigError, match="bf16"):
        make_plan(task.model, task.config, task.spec, runtime)


def test_a_label_the_model_does_not_know_is_named(table: Path, tmp_path: Path) -> None:
    from napari_msamil.device import choose_runtime
    from training.cohort import read_cohort

    from .e2e_parts import tiny_config

    config = tiny_config().model_copy(update={"classes": ("pale", "other")})
    with pytest.raises(CohortError, match="dark"):
        make_task(
            config, tiny_spec(), read_cohort(table), choose_runtime("cpu", "fp32")
        )


def test_start_weights_that_cannot_be_fetched_say_what_to_do(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HOME"):
        tiny_task(table, tiny_spec(start="imagenet"))


def test_the_command_writes_state_log_and_configuration(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    words = [
        "e2e",
        "--config",
        str(recipe),
        "--cohort",
        str(table),
        "-o",
        str(tmp_path / "o"),
    ]
    words += ["--device", "cpu", "--precision", "fp32"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "finished"
    assert {"state.pt", "best.pt", "log.jsonl", "config.json", "result.json"} <= {
        p.name for p in (tmp_path / "o").iterdir()
    }
    assert main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0


def test_turning_keeps_every_grey_value_of_every_patch() -> None:
    pixels = torch.randint(0, 256, (9, 3, 5, 5), dtype=torch.uint8)
    turned = turn_and_flip(pixels, torch.arange(9) % 8)
    assert torch.equal(
        turned.flatten(2).sort(2).values, pixels.flatten(2).sort(2).values
    )
    assert torch.equal(turned[[0, 8]], pixels[[0, 8]])
    assert torch.equal(turned[1], torch.rot90(pixels[1], 1, (1, 2)))
    assert torch.equal(turned[4], pixels[4].flip(2))


def test_density_is_changed_by_the_factor_of_its_channel() -> None:
    pixels = torch.randint(20, 230, (4, 3, 6, 6), dtype=torch.uint8)
    factor = torch.tensor([0.8, 1.0, 1.25]).reshape(1, 3, 1, 1)
    changed = change_density(pixels, factor)
    before, after = (-((p.double() + 1) / 256).log() for p in (pixels, changed))
    found = after.sum((0, 2, 3)) / before.sum((0, 2, 3))
    assert torch.allclose(found, factor.flatten().double(), atol=0.01)


def test_a_rank_changes_its_patches_as_one_process_does() -> None:
    pixels = torch.randint(0, 256, (7, 3, 5, 5), dtype=torch.uint8)
    spec = AugmentSpec(stain=0.2, noise=2)
    whole = augment(pixels, spec, torch.Generator().manual_seed(3))
    for part in (slice(0, 3), slice(3, 7)):
        alone = augment(
            pixels[part], spec, torch.Generator().manual_seed(3), len(pixels), part
        )
        assert torch.equal(alone, whole[part])


def test_augmentation_depends_on_its_generator_alone() -> None:
    pixels = torch.randint(0, 256, (5, 3, 7, 7), dtype=torch.uint8)
    spec = AugmentSpec(stain=0.2, noise=3)
    found = [augment(pixels, spec, torch.Generator().manual_seed(2)) for _ in range(2)]
    assert torch.equal(*found)
    still = AugmentSpec(geometry=False, stain=0, brightness=0)
    assert torch.equal(augment(pixels, still, torch.Generator()), pixels)
