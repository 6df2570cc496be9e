"""A toy model with every part: what a walk from slides to tables needs instead of a trained one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_msamil.config import (
    AggregatorSpec,
    EncoderSpec,
    ModelConfig,
    PatchSpec,
    ScaleSpec,
    SegmenterSpec,
    TissueSpec,
)

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("glandular-smooth", "trabecular-smooth")


def toy_config() -> ModelConfig:
    """Two scales of 32 px and networks of a few thousand weights."""
    scales = (
        ScaleSpec(name="20x", mpp=0.5, size_px=32),
        ScaleSpec(name="10x", mpp=1.0, size_px=32),
    )
    return ModelConfig(
        name="toy",
        classes=CLASSES,
        patches=PatchSpec(scales=scales, lesion_threshold=0.2),
        tissue=TissueSpec(mpp=2.0, min_area_um2=50.0, hole_area_um2=50.0),
        encoder=EncoderSpec(
            backbone="lcnet_050", dim=16, layers=1, heads=2, ffn=16, grid=1
        ),
        aggregator=AggregatorSpec(
            in_dim=16, args={"heads": 2, "rank": 4, "mlp_dim": 16}
        ),
        segmenter=SegmenterSpec(
            encoder="tu-lcnet_050",
            decoder_channels=(16, 8, 8, 8, 8),
            channels=("lesion",),
            size_px=64,
        ),
    )


def save_toy(path: Path) -> Path:
    """The toy with seeded random weights, as a checkpoint."""
    import torch

    from napari_msamil.checkpoint import save_checkpoint
    from napari_msamil.models import build_model

    torch.manual_seed(0)
    return save_checkpoint(path, build_model(toy_config()).eval())


def save_toy_recipe(path: Path) -> Path:
    """A recipe that trains an aggregator for the toy's features."""
    import tomli_w

    tables = {
        "model": toy_config().model_dump(mode="json", exclude_none=True),
        "mil": {"epochs": 1, "lr": 1e-3},
    }
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path
