"""Makes every picture of the docs from the demo slide: `python docs/screenshots.py` (under `xvfb-run -a` without a display).

Options: `--model M` (default the demo model), `--only NAME`, `--theme light`, `-o FOLDER`. What is on the pictures is
what a person would do: each function below is one scene.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.viewer import Viewer

    from napari_msamil.gui.workbench import WorkbenchWidget

IMAGES = Path(__file__).resolve().parent / "images"
SIZE = 1500, 980
PATIENCE_S = 300


def main() -> int:
    """Make the pictures and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--theme", default="dark", choices=("dark", "light"))
    parser.add_argument("--only", action="append", help="names of scenes")
    parser.add_argument("-o", "--output", type=Path, default=IMAGES)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(args.model, args.theme, args.output, Path(folder))
        for name, scene in SCENES.items():
            if not args.only or name in args.only or name in NEEDED:
                scene(stage)
                if not args.only or name in args.only:
                    stage.shoot(name)
        stage.close()
    return 0


class Stage:
    """A window with the workbench on the demo slide."""

    def __init__(self, model: str, theme: str, output: Path, folder: Path) -> None:
        from napari_msamil.demo import demo_slide
        from napari_msamil.gui.app import open_workbench

        # cached features would leave nothing to watch
        os.environ["MSAMIL_CACHE"] = str(folder)
        self.output, self.folder = output, folder
        self.slide_path = demo_slide(folder / "slides")
        self.viewer: Viewer
        self.bench: WorkbenchWidget
        self.viewer, self.bench = open_workbench(self.slide_path, model)
        self.viewer.theme = theme
        self.viewer.window._qt_window.resize(*SIZE)
        self.bench.session.failed.connect(lambda text: print(text, file=sys.stderr))
        self.live(1.0)
        self.viewer.reset_view()

    def live(self, seconds: float) -> None:
        """Let the window work."""
        self.until(lambda: False, seconds)

    def until(self, done: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        """Let the window work until something is so, in Qt's own loop, which also takes away what was deleted."""
        from qtpy.QtCore import QEventLoop, QTimer

        end, loop = time.monotonic() + seconds, QEventLoop()
        while time.monotonic() < end and not done():
            QTimer.singleShot(10, loop.quit)
            loop.exec()

    def open_only(self, *panels: Any) -> None:
        """Only these sections are open."""
        for panel in self.bench.panels:
            panel.section.set_open(panel in panels)
        self.bench.verticalScrollBar().setValue(0)

    def shoot(self, name: str) -> None:
        """Write the whole window as a picture."""
        from PIL import Image

        if name != "running":
            self.live(0.8)
        pixels = self.viewer.screenshot(canvas_only=False, flash=False)
        path = self.output / f"{name}.png"
        image = Image.fromarray(pixels[..., :3]).quantize(
            256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        image.save(path, optimize=True)
        print(path.name)

    def close(self) -> None:
        """Close the window."""
        self.bench.close_down()
        self.live(0.5)
        self.viewer.close()


def empty(stage: Stage) -> None:
    """The window before anything was done, the slide open."""


def running(stage: Stage) -> None:
    """Point 3: the answer fills in while patches arrive."""
    import napari_msamil.pipeline as pipeline

    session = stage.bench.session
    often, pipeline.PARTIAL_EVERY_S = pipeline.PARTIAL_EVERY_S, 0.0
    stage.bench.classify_panel.classify()
    stage.until(lambda: session.result is not None, PATIENCE_S)
    stage.live(0.3)
    pipeline.PARTIAL_EVERY_S = often


def workbench(stage: Stage) -> None:
    """The answer with attention at 20x and the outline of the mask."""
    stage.until(lambda: not stage.bench.classify_panel.running)


def patches(stage: Stage) -> None:
    """The selected patches as one grid per scale."""
    bench = stage.bench
    stage.open_only(bench.mask_panel, bench.patches_panel, bench.result_panel)
    bench.patches_panel._show.setChecked(True)
    bench.result_panel._shown.setChecked(False)


def edited(stage: Stage) -> None:
    """Point 3: a part of the mask is erased, the answer is asked for again, the change is shown."""
    bench = stage.bench
    bench.patches_panel._show.setChecked(False)
    bench.result_panel._shown.setChecked(True)
    stage.open_only(
        bench.mask_panel, bench.patches_panel, bench.classify_panel, bench.result_panel
    )
    bench.mask_panel.edit()
    layer: Any = bench.mask_panel.layer
    rows, columns = np.nonzero(layer.data)
    layer.selected_label = 0
    layer.brush_size = max(layer.data.shape) // 6
    row, column = int(np.quantile(rows, 0.25)), int(np.quantile(columns, 0.3))
    layer.paint((row, column), 0)
    stage.until(lambda: bench.session.stale, 10)
    stage.until(lambda: not bench.session.stale)


def query(stage: Stage) -> None:
    """Point 4: one learned query, its map, its top patches."""
    bench = stage.bench
    layer: Any = bench.mask_panel.layer
    layer.mode = "pan_zoom"
    bench.mask_panel._reset.click()
    stage.until(lambda: not bench.session.stale)
    stage.viewer.layers.selection.active = bench.session.layer
    stage.open_only(bench.query_panel)
    gates = bench.session.result.gates if bench.session.result else None
    bench.query_panel.select(0 if gates is None else int(np.argmax(gates)))
    bench.query_panel.leave_scales_out()
    bench.mask_panel._outline.setChecked(True)
    stage.live(1.5)


def gallery(stage: Stage) -> None:
    """Point 4: the patches the model saw, and one place at every scale."""
    bench = stage.bench
    bench.query_panel.select(None)
    stage.open_only(bench.gallery_panel)
    strip = bench.gallery_panel.strip
    bench.gallery_panel._rank.setCurrentIndex(0)
    bench.gallery_panel.refresh()
    stage.until(
        lambda: bool(strip.tiles) and all(t.pixels is not None for t in strip.tiles), 60
    )
    strip.itemClicked.emit(strip.item(0))
    stage.until(lambda: bool(bench.gallery_panel._places[2][1].text()), 60)
    stage.viewer.scene.camera.zoom /= 4
    stage.live(1.0)


def what_if(stage: Stage) -> None:
    """Point 5: a region, and the answer without it and with it only."""
    from napari_msamil.gui.canvas import find_layers

    bench = stage.bench
    stage.viewer.reset_view()
    stage.open_only(bench.what_if_panel, bench.trust_panel)
    bench.what_if_panel.draw()
    region: Any = find_layers(stage.viewer, "region")[0]
    result = bench.session.result
    if result is not None:
        low, high = bench.session.layer.extent.world  # type: ignore[union-attr]
        best = result.grid.boxes_xywh0[int(np.argmax(result.attention))]
        centre = (
            np.array([best[1] + best[3] / 2, best[0] + best[2] / 2]) * result.grid.mpp
        )
        reach = (high - low)[-2:] / 5
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        wobble = (1 + 0.15 * np.sin(3 * turn))[:, None]
        region.add_polygons(
            centre + reach * wobble * np.stack([np.sin(turn), np.cos(turn)], axis=1)
        )
    bench.trust_panel.measure()
    stage.until(lambda: bench.trust_panel.found is not None, 120)
    stage.live(0.5)


def mhim(stage: Stage) -> None:
    """Point 6: what MHIM would mask."""
    bench = stage.bench
    bench.what_if_panel.clear()
    stage.open_only(bench.result_panel, bench.mhim_panel)
    bench.mhim_panel.show_layers()
    stage.until(lambda: bench.mhim_panel._scored is not None, 60)


def compare(stage: Stage) -> None:
    """Point 8: another mask side by side, linked cameras, difference map."""
    bench = stage.bench
    bench.mhim_panel._show.click()
    stage.open_only(bench.result_panel)
    stage.viewer.window._qt_window.resize(SIZE[0] + 300, SIZE[1])
    stage.live(0.5)
    dock, widget = stage.viewer.window.add_plugin_dock_widget(
        "napari-msamil", "MSA-MIL compare"
    )
    widget.compare_with("mask", "tissue")
    stage.until(lambda: widget.result is not None, PATIENCE_S)
    stage.live(1.0)
    stage.compare_dock = dock  # type: ignore[attr-defined]


def worklist(stage: Stage) -> None:
    """Point 7: many slides, judged."""
    import shutil

    from qtpy.QtCore import Qt

    from napari_msamil.gui.canvas import fit_slide
    from napari_msamil.gui.worklist_table import UNSURE_C

    stage.viewer.window.remove_dock_widget(stage.compare_dock)  # type: ignore[attr-defined]
    stage.live(0.5)
    for name in ("case-017", "case-018", "case-019"):
        shutil.copy(stage.slide_path, stage.folder / "slides" / f"{name}.svs")
    (stage.folder / "slides" / "case-020.svs").write_text("not a slide")
    _, widget = stage.viewer.window.add_plugin_dock_widget(
        "napari-msamil", "MSA-MIL worklist"
    )
    widget._output.setText(str(stage.folder / "results"))
    widget.add([stage.folder / "slides"])
    widget.run()
    stage.until(lambda: not widget.runner.running)
    widget.judge("case-017", "agree")
    widget.judge("case-018", "disagree", label="other", comment="fold, please rescan")
    widget._output.setText("msamil-results")
    widget.table.sortItems(UNSURE_C, Qt.SortOrder.DescendingOrder)
    fit_slide(stage.viewer, stage.bench.session.slide.info)  # type: ignore[union-attr]


SCENES: dict[str, Callable[[Stage], None]] = {
    "empty": empty,
    "running": running,
    "workbench": workbench,
    "patches": patches,
    "edited": edited,
    "query": query,
    "gallery": gallery,
    "what-if": what_if,
    "mhim": mhim,
    "compare": compare,
    "worklist": worklist,
}
NEEDED = ("running", "workbench")
"""Scenes that others build on; they are played even when only others are wanted."""

if __name__ == "__main__":
    raise SystemExit(main())
