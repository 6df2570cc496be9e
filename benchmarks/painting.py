"""From the brush to the numbers: how long after a mouse event the share of the slide and the patch counts are new.

    python -m benchmarks.painting [--width 100000 --height 80000] [-o painting.json]    (under xvfb-run -a without a display)

A real window on a large slide, a full 1024 × 1024 mask, the preview of the 20x patches on. Dabs: one press of the eraser
each. Stroke: a press and 40 moves, 20 ms apart; timed is the oldest move that no update has shown yet. The pause between two
updates (15 ms) is included. All figures are in ms.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gui import spin, summary, wait, whole_slide
from benchmarks.make_slides import huge_slide
from napari_msamil.demo import demo_slide
from napari_msamil.gui.layers import world_yx

if TYPE_CHECKING:
    from napari_msamil.gui.workbench import WorkbenchWidget

REST_S = 20.0
"""In its first seconds the window loads what a classification will need, and painting takes longer."""
DABS = 25
MOVES = 40
MOVE_S = 0.02


class Brush:
    """Sends mouse events to the canvas and notes when the counts followed."""

    def __init__(self, bench: WorkbenchWidget) -> None:
        self.bench = bench
        self.canvas = bench.viewer.window._qt_viewer.canvas.native
        self.waiting: float | None = None
        self.latencies: list[float] = []
        # Connected last: the panels have written their numbers when this is called.
        bench.session.counts_changed.connect(self._on_counts)

    def _on_counts(self) -> None:
        if self.waiting is not None:
            self.latencies.append(1000 * (time.perf_counter() - self.waiting))
            self.waiting = None

    def send(self, kind: str, xy0: tuple[float, float]) -> None:
        """A mouse event at a level-0 position: `MouseButtonPress`, `MouseMove` or `MouseButtonRelease`."""
        from qtpy.QtCore import QEvent, QPointF, Qt
        from qtpy.QtGui import QMouseEvent
        from qtpy.QtWidgets import QApplication

        spot = self._spot(xy0)
        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        held = none if kind == "MouseButtonRelease" else left
        event = QMouseEvent(
            getattr(QEvent.Type, kind),
            QPointF(spot),
            QPointF(self.canvas.mapToGlobal(spot)),
            none if kind == "MouseMove" else left,
            held,
            Qt.KeyboardModifier.NoModifier,
        )
        if self.waiting is None and kind != "MouseButtonRelease":
            self.waiting = time.perf_counter()
        QApplication.sendEvent(self.canvas, event)

    def _spot(self, xy0: tuple[float, float]) -> Any:
        from qtpy.QtCore import QPoint

        viewer, slide = self.bench.viewer, self.bench.session.slide
        assert slide is not None
        world = world_yx(slide.info, np.asarray([xy0], float))[0]
        centre = np.asarray(viewer.scene.camera.center[-2:])
        height, width = viewer.canvas.size
        row, column = (world - centre) * viewer.scene.camera.zoom
        return QPoint(round(column + width / 2), round(row + height / 2))

    def take(self) -> list[float]:
        """The latencies so far; the list starts anew."""
        found, self.latencies = self.latencies, []
        return found


def main() -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=100_000)
    parser.add_argument("--height", type=int, default=80_000)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["NAPARI_CONFIG"] = ""  # the user's settings stay as they are
        folder = Path(name)
        slide = huge_slide(
            demo_slide(folder), folder / "huge.svs", args.width, args.height
        )
        figures = measure(slide)
    print(f"{'what':<44}{'n':>5}{'median':>9}{'p95':>9}{'max':>9}")
    for title, values in figures.items():
        numbers = "".join(f"{v:>9.1f}" for v in summary(np.array(values)))
        print(f"{title:<44}{len(values):>5}{numbers}")
    if args.output:
        args.output.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return 0


def measure(slide: Path) -> dict[str, list[float]]:
    """Latencies in ms by name."""
    from napari_msamil.gui.app import open_workbench

    viewer, bench = open_workbench(slide, "demo")
    viewer.window._qt_window.resize(1400, 950)
    spin(REST_S)
    whole_slide(bench)
    bench.patches_panel._show.setChecked(True)
    bench.mask_panel.edit()
    layer: Any = bench.mask_panel.layer
    layer.selected_label = 0
    spin(2.0)
    brush = Brush(bench)
    width, height = bench.session.slide.info.size_wh0  # type: ignore[union-attr]
    found = {"a dab to the counts": dabs(brush, width, height)}
    found["during a stroke, oldest move to the counts"] = stroke(brush, width, height)
    found["of that: choosing patches and showing counts"] = taking(bench)
    bench.close_down()
    viewer.close()
    return found


def dabs(brush: Brush, width: int, height: int) -> list[float]:
    """One press at a time, each at a place still marked."""
    for dab in range(DABS):
        place = (width * (0.1 + 0.03 * dab), height * 0.25)
        brush.send("MouseButtonPress", place)
        wait(lambda: brush.waiting is None, 5)
        brush.send("MouseButtonRelease", place)
        spin(0.1)
    return brush.take()


def stroke(brush: Brush, width: int, height: int) -> list[float]:
    """One long stroke."""
    brush.send("MouseButtonPress", (width * 0.1, height * 0.7))
    for move in range(MOVES):
        spin(MOVE_S)
        brush.send("MouseMove", (width * (0.1 + 0.02 * move), height * 0.7))
    wait(lambda: brush.waiting is None, 5)
    brush.send("MouseButtonRelease", (width * (0.1 + 0.02 * MOVES), height * 0.7))
    return brush.take()


def taking(bench: WorkbenchWidget) -> list[float]:
    """The work itself, without the pause."""
    times = []
    layer: Any = bench.mask_panel.layer
    for step in range(15):
        layer.data[900:, 60 * step : 60 * step + 40] = 0
        start = time.perf_counter()
        bench.mask_panel._take_paint()
        times.append(1000 * (time.perf_counter() - start))
        spin(0.05)
    return times


if __name__ == "__main__":
    raise SystemExit(main())
