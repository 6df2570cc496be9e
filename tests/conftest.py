"""Fixtures every room of the house may use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_msamil.config import (
    AggregatorSpec,
    EncoderSpec,
    ModelConfig,
    PatchSpec,
    ScaleSpec,
    SegmenterSpec,
)

if TYPE_CHECKING:
    from napari_msamil.synthetic import SynthSlide

# one binding for pytest-qt and qtpy, also where several are installed
os.environ.setdefault("QT_API", "pyqt6")
os.environ.setdefault("PYTEST_QT_API", os.environ["QT_API"])

_CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real slides, or a skip with a visible reason."""
    folder = Path(
        os.environ.get("MSAMIL_TEST_DATA", _CHECKOUT.parent / "shared" / "data")
    )
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder} (set MSAMIL_TEST_DATA)")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(20261121)


@pytest.fixture(autouse=True)
def _own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each test gets a cache folder of its own."""
    monkeypatch.setenv("MSAMIL_CACHE", str(tmp_path_factory.mktemp("cache")))


def tiny_model_config(name: str = "tiny", *, segmenter: bool = False) -> ModelConfig:
    """A model small enough to build in a blink: 64-px patches at 0.5, 1 and 2 µm, three classes."""
    scales = tuple(
        ScaleSpec(name=s.name, mpp=s.mpp, size_px=64) for s in PatchSpec().scales
    )
    return ModelConfig(
        name=name,
        classes=("calm", "odd", "wild"),
        patches=PatchSpec(scales=scales),
        encoder=EncoderSpec(
            backbone="test_efficientnet", dim=32, layers=1, heads=2, ffn=48, grid=2
        ),
        aggregator=AggregatorSpec(
            in_dim=32, args={"heads": 2, "rank": 4, "mlp_dim": 48, "queries": 10}
        ),
        segmenter=SegmenterSpec(
            encoder="tu-test_efficientnet",
            decoder_channels=(16, 12, 8, 8, 8),
            channels=("lesion",),
            size_px=128,
        )
        if segmenter
        else None,
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `tiny_model_config` with seeded random weights and no segmenter."""
    import torch

    from napari_msamil.checkpoint import save_checkpoint
    from napari_msamil.models import build_model

    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(
        path, build_model(tiny_model_config()).eval(), {"data": "synthetic"}
    )
    return path


@pytest.fixture(scope="session")
def painted() -> SynthSlide:
    """A small painted slide: 900 × 700 µm at 0.5 µm per pixel, with a lesion."""
    from napari_msamil.synthetic import SlideRecipe, paint_slide

    return paint_slide(
        SlideRecipe(label="glandular-smooth", size_um_wh=(900, 700), mpp=0.5, seed=5)
    )


@pytest.fixture(scope="session")
def painted_svs(painted: SynthSlide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The painted slide as a real pyramidal TIFF that OpenSlide opens."""
    from napari_msamil.slide.write import write_pyramid_tiff

    path = tmp_path_factory.mktemp("slide") / "painted slide.svs"
    write_pyramid_tiff(path, painted.pixels, mpp=painted.mpp, objective=20)
    return path
