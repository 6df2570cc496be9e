"""Self-distillation: crops, centring, the teacher, and one short run of the command."""

from __future__ import annotations

import json
import math
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch

from napari_msamil.device import choose_runtime
from napari_msamil.errors import ConfigError
from training.cli import main
from training.cohort import read_cohort
from training.dino import make_task
from training.dino_task import DinoSpec, random_crops
from training.log import RunLog
from training.loop import fit
from training.state import load_state

from .e2e_parts import CLASSES, tiny_config, write_cohort, write_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from training.dino_task import DinoTask

SMALL = DinoSpec(
    patches=6,
    prototypes=16,
    hidden=8,
    bottleneck=4,
    local_crops=2,
    local_px=32,
    epochs=2,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("dino"), "train,train,val")


@pytest.fixture
def task(table: Path) -> DinoTask:
    cohort = read_cohort(table, classes=CLASSES)
    return make_task(tiny_config(), SMALL, cohort, "10x", choose_runtime("cpu", "fp32"))


def test_a_crop_of_the_whole_patch_is_the_patch_or_its_mirror() -> None:
    pixels = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    crops = random_crops(pixels, (1.0, 1.0), 16, torch.Generator().manual_seed(0))
    same = [
        torch.allclose(c, p.float(), atol=1e-3)
        for c, p in zip(crops, pixels, strict=True)
    ]
    mirrored = [
        torch.allclose(c, p.float().flip(2), atol=1e-3)
        for c, p in zip(crops, pixels, strict=True)
    ]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert any(same)
    assert any(mirrored)


def test_small_crops_show_a_part_of_the_patch() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).expand(5, 3, 32, 32)
    crops = random_crops(ramp, (0.25, 0.25), 16, torch.Generator().manual_seed(1))
    assert crops.shape == (5, 3, 16, 16)
    reach = crops.amax((1, 2, 3)) - crops.amin((1, 2, 3))
    assert torch.allclose(reach, torch.full((5,), 15.0), atol=0.6)


def test_the_loss_starts_near_the_logarithm_of_the_prototypes(task: DinoTask) -> None:
    """The student's cosines divided by 0.1 are small at the start, so its answer is nearly uniform."""
    said = [torch.zeros(4, SMALL.prototypes) for _ in range(3)]
    told = torch.randn(2, 4, SMALL.prototypes)
    assert float(task.loss(told, said)) == pytest.approx(
        math.log(SMALL.prototypes), rel=1e-5
    )


def test_a_crop_is_not_compared_with_itself(task: DinoTask) -> None:
    told = torch.stack(
        [torch.eye(SMALL.prototypes)[:4] * 50, torch.eye(SMALL.prototypes)[4:8] * 50]
    )
    swapped = [told[1], told[0]]
    assert float(task.loss(told, swapped)) < 1e-6
    assert float(task.loss(told, [told[0], told[1]])) > 10


def test_the_center_follows_the_teacher_and_evens_out_what_all_patches_share(
    task: DinoTask,
) -> None:
    told = torch.zeros(2, 6, SMALL.prototypes)
    told[..., 3] = 1.0
    for _ in range(200):
        task._move_center(told)
    assert torch.allclose(task.dino.center, told[0, 0], atol=1e-4)
    targets = torch.softmax((told - task.dino.center) / SMALL.teacher_temperature, -1)
    assert torch.allclose(
        targets, torch.full_like(targets, 1 / SMALL.prototypes), atol=1e-3
    )


def test_only_patches_of_the_chosen_scale_are_drawn(task: DinoTask) -> None:
    import numpy as np

    draw = task.pool.draw(0, 4, np.random.default_rng(0), scale=task.scale)
    assert draw.scale.tolist() == [1] * len(draw)


def test_an_unknown_scale_is_named(table: Path) -> None:
    cohort = read_cohort(table, classes=CLASSES)
    with pytest.raises(ConfigError, match="40x"):
        make_task(tiny_config(), SMALL, cohort, "40x", choose_runtime("cpu", "fp32"))


def test_the_command_trains_the_student_and_moves_the_teacher_by_averaging(
    table: Path, tmp_path: Path
) -> None:
    settings = [
        f"dino.{k}={v}"
        for k, v in SMALL.model_dump(mode="json", exclude_defaults=True).items()
    ]
    words = [
        "dino",
        "--config",
        str(write_recipe(tmp_path)),
        "--cohort",
        str(table),
        "--scale",
        "10x",
    ]
    words += [w for s in settings for w in ("--set", s)]
    assert (
        main(
            [
                *words,
                "-o",
                str(tmp_path / "o"),
                "--device",
                "cpu",
                "--precision",
                "fp32",
            ]
        )
        == 0
    )
    state = load_state(tmp_path / "o" / "state.pt", "dino")
    assert state["position"]["step"] == 4
    assert state["description"]["scale"] == "10x"
    model = state["model"]
    weights = [
        k.removeprefix("student.")
        for k in model
        if k.startswith("student.") and k.endswith("weight")
    ]
    apart = [
        float((model[f"student.{k}"] - model[f"teacher.{k}"]).abs().max())
        for k in weights
    ]
    assert max(apart) > 0
    losses = [
        json.loads(x)["loss"]
        for x in (tmp_path / "o" / "log.jsonl").read_text().splitlines()
        if '"loss"' in x
    ]
    assert len(losses) == 4
    assert all(math.isfinite(x) for x in losses)


def test_slides_of_one_step_are_one_batch(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both slides in one call of the student per crop, and the same crops as each slide alone."""
    from training.visits import Visit

    cohort = read_cohort(table, classes=CLASSES)
    visits = [Visit(0, 0, 0, 0.5), Visit(1, 0, 1, 0.5)]
    seen: list[torch.Tensor] = []
    for group in (visits, visits[:1], visits[1:]):
        runtime = choose_runtime("cpu", "fp32")
        task = make_task(tiny_config(), SMALL, cohort, "20x", runtime)
        once = task._logits

        def noted(network: Any, pixels: torch.Tensor, once: Any = once) -> Any:
            seen.append(pixels)
            return once(network, pixels)

        monkeypatch.setattr(task, "_logits", noted)
        task.network.train()
        task.start_epoch(0, group)
        losses = task.backward_window(group)
        assert len(set(losses)) == 1
        assert all(loss is not None for loss in losses)
    calls = 2 + 2 + SMALL.local_crops
    assert len(seen) == 3 * calls
    for i in range(calls):
        together, first, second = seen[i], seen[i + calls], seen[i + 2 * calls]
        assert torch.equal(together, torch.cat([first, second]))


def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student, teacher, centre and optimiser, bit for bit."""
    cohort, runtime = read_cohort(table, classes=CLASSES), choose_runtime("cpu", "fp32")

    def go(folder: Path, stop_at: int = 0) -> str:
        task = make_task(tiny_config(), SMALL, cohort, "20x", runtime)
        calls, once = [0], task.backward_window

        def counted(visits: Any) -> Any:
            calls[0] += 1
            if calls[0] == stop_at:
                signal.raise_signal(signal.SIGTERM)
            return once(visits)

        monkeypatch.setattr(task, "backward_window", counted)
        with RunLog(folder, task.total_steps) as log:
            return fit(task, SMALL, folder, log, resume=True).reason

    assert go(tmp_path / "whole") == "finished"
    assert go(tmp_path / "parts", stop_at=3) == "stopped"
    torch.manual_seed(77)
    assert go(tmp_path / "parts") == "finished"
    whole, parts = (load_state(tmp_path / n / "state.pt") for n in ("whole", "parts"))
    assert whole["model"].keys() == parts["model"].keys()
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name]), name
    for index, moments in whole["optimizer"]["state"].items():
        same = parts["optimizer"]["state"][index]
        assert torch.equal(moments["exp_avg_sq"], same["exp_avg_sq"])


def test_a_slide_that_cannot_be_read_is_skipped_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_cohort(tmp_path, "train,train,val")
    (tmp_path / "s0.tiff").write_bytes(b"II*\0 cut off")
    words = ["dino", "--config", str(write_recipe(tmp_path)), "--cohort", str(table)]
    words += ["--device", "cpu", "--precision", "fp32", "-o", str(tmp_path / "o")]
    small = SMALL.model_dump(mode="json", exclude_defaults=True)
    words += [w for k, v in small.items() for w in ("--set", f"dino.{k}={v}")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "skipped s0" in said.err
    assert json.loads(said.out.splitlines()[-1])["skipped"] == ["s0"]
    assert (tmp_path / "o" / "config.json").exists()
