"""The MHIM view, for a model that was really trained with MHIM and published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_msamil.gui.canvas import find_layers
from napari_msamil.gui.explain import mhim_masked
from napari_msamil.gui.strings import LAYER
from tests.conftest import tiny_model_config
from tests.gui.conftest import whole_slide_mask

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.gui
PATIENCE = 120_000


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AB-MIL after three epochs of MHIM on toy bags, published over a tiny encoder."""
    pytest.importorskip("lightning")
    import torch

    from napari_msamil.checkpoint import save_checkpoint
    from napari_msamil.models import build_model
    from tests.training.test_mil import DIM, write_toy_cohort
    from training.cli import main

    folder = write_toy_cohort(tmp_path_factory.mktemp("mhim"))
    words = ["mhim", "--config", f"{folder}/toy.toml", "--device", "cpu"]
    words += ["--cohort", f"{folder}/cohort.csv", "--bags", f"{folder}/bags"]
    assert main([*words, "-o", f"{folder}/run"]) == 0
    tiny = tiny_model_config("mined")
    encoder = tiny.encoder.model_copy(update={"dim": DIM, "heads": 2, "ffn": 8})
    aggregator = tiny.aggregator.model_copy(
        update={
            "name": "abmil",
            "in_dim": DIM,
            "args": {"hidden": 8, "attention_dim": 4},
        }
    )
    update = {"encoder": encoder, "aggregator": aggregator, "classes": ("a", "b")}
    torch.manual_seed(5)
    base = folder / "base.safetensors"
    save_checkpoint(base, build_model(tiny.model_copy(update=update)).eval(), {})
    out = folder / "mined.safetensors"
    words = ["publish", f"{folder}/run", "--base", str(base), "-o", str(out)]
    assert main([*words, "--name", "mined"]) == 0
    return out


def test_mhim_view_of_a_model_trained_with_mhim(bench, qtbot, mined):
    """Issue 6, point 6: brightness, probability of each patch alone, what is masked and why, the lesion's outline."""
    bench.session.set_model(str(mined))
    whole_slide_mask(bench.session)
    bench.classify_panel._run.click()
    qtbot.waitUntil(lambda: not bench.classify_panel.running, timeout=PATIENCE)
    result, panel = bench.session.result, bench.mhim_panel
    assert panel.section.summary == "trained with MHIM"
    assert [box.value() for box in panel._shares] == [10.0, 0.0, 30.0]
    panel.section.set_open(True)
    panel._show.click()
    qtbot.waitUntil(lambda: panel._scored is not None, timeout=PATIENCE)
    assert not find_layers(bench.viewer, "attention")[0].visible
    assert len(find_layers(bench.viewer, "outline")) == 1
    masked = mhim_masked(result.attention, 0.1, 0.0, 0.3)
    here = result.grid.scale == 0
    (hidden,) = find_layers(bench.viewer, "masked")
    assert hidden.name == LAYER.masked.format(scale="20x")
    shown = hidden.data
    assert np.isfinite(shown).sum() == masked.any[here].sum()
    assert (shown == 1.0).sum() == masked.high[here].sum()
    kept = f"{len(result.grid) - masked.any.sum()} kept"
    assert kept in panel._facts.text()
    layers = {layer.name: layer for layer in find_layers(bench.viewer, "mhim")}
    assert LAYER.probability.format(scale="20x") in layers
    bright = layers[LAYER.bright.format(scale="20x")].data
    at = np.unravel_index(np.nanargmax(bright), bright.shape)
    best = result.grid.coords_xy0[here][result.attention[here].argmax()]
    assert tuple(best // result.grid.step_px0[0]) == (at[1], at[0])
    panel._show.click()
    assert find_layers(bench.viewer, "mhim") == []
    assert find_layers(bench.viewer, "attention")[0].visible


def test_probability_of_a_patch_is_the_answer_for_it_alone(bench, qtbot, mined):
    from napari_msamil.gui.explain import answer_for, instance_probability_steps
    from napari_msamil.progress import finish

    bench.session.set_model(str(mined))
    whole_slide_mask(bench.session)
    bench.classify_panel.classify()
    qtbot.waitUntil(lambda: not bench.classify_panel.running, timeout=PATIENCE)
    result, loaded = bench.session.result, bench.session.loaded
    found = finish(instance_probability_steps(loaded, result))
    assert found.shape == (len(result.grid),)
    best = int(np.argmax(result.probabilities))
    for index in (0, 17, len(found) - 1):
        keep = np.arange(len(found)) == index
        alone = answer_for(loaded, result, keep)
        assert found[index] == pytest.approx(float(alone[best]), abs=1e-5)
