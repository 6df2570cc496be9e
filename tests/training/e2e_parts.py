"""Small parts for the end-to-end tests: tiny slides that differ in colour, a tiny model, a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.config import (
    AggregatorSpec,
    EncoderSpec,
    ModelConfig,
    PatchSpec,
    ScaleSpec,
)
from napari_msamil.device import choose_runtime
from napari_msamil.slide.write import write_pyramid_tiff
from training.config import AugmentSpec, E2ESpec
from training.ranks import ONE_RANK, Ranks

if TYPE_CHECKING:
    from pathlib import Path

    from training.e2e_task import E2ETask

CLASSES = ("pale", "dark")
SIZE_WH = (416, 288)


def tiny_config() -> ModelConfig:
    """Three scales of 32 px and a network of a few thousand weights."""
    scales = tuple(
        ScaleSpec(name=n, mpp=m, size_px=32)
        for n, m in (("20x", 0.5), ("10x", 1.0), ("5x", 2.0))
    )
    encoder = EncoderSpec(
        backbone="lcnet_035", dim=16, layers=1, heads=2, ffn=16, grid=1, dropout=0.2
    )
    args = {"heads": 2, "rank": 4, "mlp_dim": 16, "queries": 3}
    return ModelConfig(
        name="tiny",
        classes=CLASSES,
        patches=PatchSpec(scales=scales),
        encoder=encoder,
        aggregator=AggregatorSpec(in_dim=16, args=args),
    )


def tiny_spec(**changes: Any) -> E2ESpec:
    """Settings that end in seconds."""
    values: dict[str, Any] = {
        "epochs": 2,
        "instances": 9,
        "accumulate": 2,
        "memory": "none",
        "lr_encoder": 1e-3,
        "lr_mil": 1e-3,
        "eval_instances": 9,
        "warmup": 0.0,
        "augment": AugmentSpec(stain=0.05),
    }
    return E2ESpec(**{**values, **changes})


def write_cohort(folder: Path, splits: str = "train,train,train,train,val,val") -> Path:
    """Slides of tissue on glass, pale or dark by class, and their table."""
    rng = np.random.default_rng(4)
    rows = ["slide_id,path,patient_id,label,mask,split,mpp"]
    for i, split in enumerate(splits.split(",")):
        pixels = np.full((SIZE_WH[1], SIZE_WH[0], 3), 244, np.uint8)
        tissue = pixels[16:-16, 32:-32]
        grain = rng.normal(0, 6, tissue.shape)
        colour = np.array([(216, 150, 190), (150, 84, 160)][i % 2]) + rng.normal(
            0, 4, 3
        )
        tissue[:] = np.clip(colour + grain, 0, 255)
        write_pyramid_tiff(folder / f"s{i}.tiff", pixels, mpp=0.5, objective=20)
        rows.append(f"s{i},s{i}.tiff,P{i},{CLASSES[i % 2]},,{split},")
    table = folder / "cohort.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def tiny_task(
    table: Path, spec: E2ESpec | None = None, ranks: Ranks = ONE_RANK
) -> E2ETask:
    """The task over a written cohort, on the CPU in float32."""
    from training.cohort import read_cohort
    from training.e2e import make_task

    cohort = read_cohort(table, classes=CLASSES)
    runtime = choose_runtime("cpu", "fp32")
    return make_task(tiny_config(), spec or tiny_spec(), cohort, runtime, ranks)


def write_recipe(folder: Path) -> Path:
    """A recipe with the tiny model and one epoch."""
    import tomli_w

    tables = {
        "model": tiny_config().model_dump(mode="json", exclude_none=True),
        "e2e": tiny_spec(epochs=1).model_dump(mode="json", exclude_none=True),
    }
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path
