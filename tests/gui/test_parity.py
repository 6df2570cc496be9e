"""Window, command line and Python: one answer, to the last bit. (`tests/test_batch.py` adds workers and a cluster.)"""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from napari_msamil import classify, cli
from napari_msamil.annotations import read_mask, write_mask_geojson
from napari_msamil.gui import settings
from napari_msamil.masks import MaskSource, SlideMask
from tests.gui.conftest import busy_threads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytestqt.qtbot import QtBot

    from napari_msamil.gui.workbench import WorkbenchWidget

pytestmark = pytest.mark.gui


@pytest.fixture
def mask_file(bench: WorkbenchWidget, tmp_path: Path) -> Path:
    """An L of two rectangles, as a file."""
    slide = bench.session.slide
    assert slide is not None
    mask = np.zeros((70, 90), bool)
    mask[5:60, 10:40] = True
    mask[30:60, 40:85] = True
    whole = SlideMask(mask, slide.info.size_wh0, MaskSource.USER)
    path = tmp_path / "mask.geojson"
    write_mask_geojson(whole, path)
    return path


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Another number than the window's worker takes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_window_command_line_and_python_give_the_same_bits_in_fp32(
    bench: WorkbenchWidget,
    qtbot: QtBot,
    painted_svs: Path,
    tiny_checkpoint: Path,
    mask_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = bench.session
    assert session.slide is not None
    mask = read_mask(mask_file, session.slide.info.size_wh0)
    monkeypatch.setattr(settings, "_stored", lambda group: {"precision": "fp32"})
    session.set_mask(mask)
    bench.classify_panel.classify()
    qtbot.waitUntil(
        lambda: session.result is not None and not busy_threads(), timeout=120_000
    )
    window = session.result
    assert window is not None
    assert not window.partial

    plain = classify(
        painted_svs, tiny_checkpoint, mask=mask, precision="fp32", cache=False
    )
    np.testing.assert_array_equal(window.logits, plain.logits)
    np.testing.assert_array_equal(window.attention, plain.attention)

    words = ["classify", str(painted_svs), "-m", str(tiny_checkpoint)]
    words += ["--mask", str(mask_file), "--precision", "fp32", "--no-cache"]
    assert cli.main([*words, "-o", str(tmp_path / "cli")]) == 0
    folder = tmp_path / "cli" / painted_svs.stem
    document = json.loads((folder / "result.json").read_text("utf-8"))
    assert document["logits"] == plain.logits.tolist()
    with (folder / "patches.csv").open(newline="", encoding="utf-8") as file:
        attention = [row["attention"] for row in csv.DictReader(file)]
    np.testing.assert_array_equal(np.array(attention, np.float32), plain.attention)
