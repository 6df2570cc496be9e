"""Training and plugin are one model: train two steps, publish, load in the plugin, find the same logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_msamil.checkpoint import load_checkpoint
from napari_msamil.config import Strategy
from napari_msamil.pipeline import classify
from training.cli import main
from training.e2e import train
from training.gradients import StepPlan, encode

from .e2e_parts import tiny_spec, tiny_task, write_cohort

if TYPE_CHECKING:
    from pathlib import Path

    from training.e2e_task import E2ETask


def _training_logits(task: E2ETask, item: int) -> torch.Tensor:
    """Logits of all non-background patches of a validation slide, the way validation computes them."""
    draw = task.val.draw(item, 0, np.random.default_rng(0))
    task.network.eval()
    with torch.no_grad():
        features = encode(
            task.model.encoder, draw.pixels.permute(0, 3, 1, 2), StepPlan()
        )
        coords, scale = draw.coords[None], draw.scale[None]
        logits: torch.Tensor = task.model.aggregator(
            features[None], coords, scale
        ).logits
    return logits[0]


def test_a_trained_and_published_model_gives_the_plugin_the_same_logits(
    tmp_path: Path,
) -> None:
    table = write_cohort(tmp_path, "train,train,train,train,val")
    task = tiny_task(table, tiny_spec(epochs=1, batchnorm="batch"))
    train(task, tmp_path / "run")
    state = tmp_path / "run" / "state.pt"
    assert main(["publish", str(state), "-o", str(tmp_path / "m.safetensors")]) == 0
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    result = classify(
        tmp_path / "s4.tiff",
        loaded,
        device="cpu",
        precision="fp32",
        cache=False,
        strategy=Strategy.TISSUE,
    )
    wanted = _training_logits(task, 0)
    assert len(result.grid) == len(task.val.grid(0))
    assert np.allclose(result.logits, wanted.numpy(), atol=1e-5)


def test_the_mil_stage_continues_and_is_published_over_the_end_to_end_model(
    tmp_path: Path,
) -> None:
    """The whole chain of commands: e2e → publish → extract → mil → publish → the plugin's answer on test slides."""
    import csv

    import tomli_w

    from .e2e_parts import tiny_config

    table = write_cohort(tmp_path, "train,train,train,train,val,val,test,test")
    recipe = tmp_path / "r.toml"
    tables = {
        "model": tiny_config().model_dump(mode="json", exclude_none=True),
        "e2e": tiny_spec(epochs=1).model_dump(mode="json", exclude_none=True),
        "mil": {"epochs": 2, "patience": 0},
        "stages": [
            _stage(
                "e2e",
                "--config {recipe} --cohort {cohort} -o {out}/e2e --device cpu --precision fp32",
                "{out}/e2e/state.pt",
            ),
            _stage(
                "publish",
                "{out}/e2e/state.pt -o {out}/e2e.safetensors",
                "{out}/e2e.safetensors",
            ),
            _stage(
                "extract",
                "--cohort {cohort} --model {out}/e2e.safetensors -o {out}/bags --device cpu --precision fp32",
                "{out}/bags/s7.pt",
            ),
            _stage(
                "mil",
                "--config {recipe} --cohort {cohort} --bags {out}/bags --start {out}/e2e/state.pt -o {out}/mil --device cpu",
                "{out}/mil/predictions.csv",
            ),
            _stage(
                "publish",
                "{out}/e2e/state.pt {out}/mil -o {out}/model.safetensors",
                "{out}/model.safetensors",
            ),
        ],
    }
    text = tomli_w.dumps(tables).replace("{cohort}", table.as_posix())
    recipe.write_text(text, encoding="utf-8")
    assert main(["run", "--config", str(recipe), "-o", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "mil" / "predictions.csv").open(encoding="utf-8") as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    result = classify(
        tmp_path / "s6.tiff",
        tmp_path / "out" / "model.safetensors",
        device="cpu",
        precision="fp32",
        cache=False,
    )
    said = [
        float(rows["s6"][key]) for key in rows["s6"] if key.startswith(("p_", "prob"))
    ]
    assert np.allclose(sorted(said), sorted(result.probabilities), atol=1e-4)


def _stage(verb: str, args: str, makes: str) -> dict[str, str]:
    return {"verb": verb, "args": args, "makes": makes}
