"""How long the window stands still: while a slide is panned and zoomed, while it is classified, and on Cancel.

    python benchmarks/gui.py [--slide SLIDE] [--model M] [-o gui.json]      (under xvfb-run -a without a display)

A timer in the window's own thread ticks every 5 ms. Hands off, a stall is the time between two ticks beyond that.
With pan and zoom the view jumps or moves 60 times, and a stall is the longest such time within a quarter of a second
after each move, drawing included. Without a slide a synthetic pyramid is painted. All figures are in ms.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.gui.warm_up import HEAVY, WARM_UP

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.viewer import Viewer

    from napari_msamil.gui.workbench import WorkbenchWidget

TICK_S = 0.005
MOVES = 60
PATIENCE_S = 300


def main() -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--side", type=int, default=16_384, help="of the painted slide")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MSAMIL_CACHE"] = folder  # features of an earlier run would be found
        os.environ["NAPARI_CONFIG"] = ""  # the user's settings stay as they are
        slide = args.slide or paint_slide(Path(folder) / "bench.svs", args.side)
        figures = measure(slide, args.model)
    print(f"{'what':<52}{'median':>9}{'p95':>9}{'max':>9}")
    for name, values in figures.items():
        print(f"{name:<52}" + "".join(f"{v:>9.1f}" for v in values))
    if args.output:
        args.output.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    return 0


def paint_slide(path: Path, side: int) -> Path:
    """A JPEG pyramid of repeated synthetic tissue at 0.5 µm per pixel."""
    from napari_msamil.slide.write import write_pyramid_tiff
    from napari_msamil.synthetic import SlideRecipe, paint_slide

    tissue = paint_slide(SlideRecipe(label="glandular-smooth", seed=3)).pixels
    repeats = -(-side // min(tissue.shape[:2]))
    wide = np.tile(tissue, (repeats, repeats, 1))[:side, :side]
    return write_pyramid_tiff(path, wide, mpp=0.5, objective=20)


def measure(slide: Path, model: str) -> dict[str, list[float]]:
    """All figures of one window: median, 95th percentile, maximum, in ms."""
    from napari.settings import get_settings

    from napari_msamil.gui.app import open_workbench

    get_settings().experimental.async_ = True
    start = time.perf_counter()
    viewer, bench = open_workbench(slide, model)
    spin(0.2)
    figures = {
        "napari, dock and slide to first paint (one value)": [
            1000 * (time.perf_counter() - start)
        ]
        * 3
    }
    viewer.window._qt_window.resize(1400, 950)
    figures["torch is imported beside the window, hands off"] = summary(
        ticks(60.0, lambda: HEAVY[-1] in sys.modules and not warm_up_runs())
    )
    figures["pan and zoom"] = summary(stalls(viewer, lambda: False))
    figures |= while_classifying(viewer, bench)
    figures |= while_painting(bench)
    figures |= closing(viewer, bench)
    return figures


def warm_up_runs() -> bool:
    """Whether the imports of the dock are still under way."""
    return any(thread.name == WARM_UP for thread in threading.enumerate())


def while_classifying(viewer: Viewer, bench: WorkbenchWidget) -> dict[str, list[float]]:
    """Stalls with the model at work, hands off and while panning; then Cancel."""
    whole_slide(bench)
    panel = bench.classify_panel
    found = {}
    panel.classify()
    found["first click to first partial answer, hands off"] = summary(
        ticks(
            PATIENCE_S,
            lambda: bench.session.result is not None or not panel.running,
        )
    )
    found["classifying, hands off"] = summary(ticks(4.0, lambda: not panel.running))
    found["classifying, pan and zoom"] = summary(
        stalls(viewer, lambda: not panel.running)
    )
    was_running = panel.running
    start = time.perf_counter()
    panel.cancel()
    spin(0.0)
    latency = 1000 * (time.perf_counter() - start)
    found["cancel until the window is free (one value)"] = [latency] * 3
    wait(lambda: not panel.runner.threads_alive, PATIENCE_S)
    ended = 1000 * (time.perf_counter() - start)
    found["cancel until the thread has ended (one value)"] = [ended] * 3
    if not was_running:
        print("note: the run ended before Cancel; use a larger slide", file=sys.stderr)
    return found


def while_painting(bench: WorkbenchWidget) -> dict[str, list[float]]:
    """From a stroke to the new counts, beyond the pause between two takes."""
    times = []
    layer: Any = bench.mask_panel.layer
    bench.classify_panel._auto.setChecked(False)
    for step in range(15):
        layer.data[:, 20 * step : 20 * step + 20] = 0
        start = time.perf_counter()
        bench.mask_panel._take_paint()
        times.append(1000 * (time.perf_counter() - start))
        spin(0.05)
    return {"stroke to share and counts": summary(np.array(times))}


def closing(viewer: Viewer, bench: WorkbenchWidget) -> dict[str, list[float]]:
    """The window is closed while a run is under way: until it is gone, and until no thread computes."""
    panel = bench.classify_panel
    panel.classify()
    wait(lambda: not panel.running or panel._bar.maximum() > 0, PATIENCE_S)
    if not panel.running:
        print("note: nothing ran when the window was closed", file=sys.stderr)
    start = time.perf_counter()
    viewer.close()
    spin(0.0)
    gone = 1000 * (time.perf_counter() - start)
    wait(lambda: not panel.runner.threads_alive, PATIENCE_S)
    ended = 1000 * (time.perf_counter() - start)
    return {
        "closing while running: window gone (one value)": [gone] * 3,
        "closing while running: thread ended (one value)": [ended] * 3,
    }


def whole_slide(bench: WorkbenchWidget) -> None:
    """Everything is lesion, so that there is much to do."""
    from napari_msamil.masks import MaskSource, SlideMask

    slide = bench.session.slide
    assert slide is not None
    mask = SlideMask(np.ones((1024, 1024), bool), slide.info.size_wh0, MaskSource.USER)
    bench.session.set_mask(mask)


def stalls(viewer: Viewer, ended: Callable[[], bool]) -> np.ndarray:
    """Longest gap between ticks after each of many jumps and pans, in ms."""
    rng = np.random.default_rng(0)
    layer = viewer.layers[0]
    low, high = layer.extent.world
    found = []
    for move in range(MOVES):
        if ended():
            break
        if move % 3 == 0:
            viewer.scene.camera.center = tuple(rng.uniform(low, high))
            viewer.scene.camera.zoom = float(2 ** rng.uniform(-3, 1.5))
        else:
            centre = np.asarray(viewer.scene.camera.center[-2:])
            shift = 40 / viewer.scene.camera.zoom
            viewer.scene.camera.center = tuple(centre + shift)
        found.append(ticks(0.25, ended).max(initial=0.0))
    return np.array(found)


def ticks(seconds: float, ended: Callable[[], bool]) -> np.ndarray:
    """Gaps between ticks of the window's thread beyond the tick itself, in ms."""
    from qtpy.QtCore import QTimer

    times = [time.perf_counter()]
    timer = QTimer()
    timer.setInterval(int(1000 * TICK_S))
    timer.timeout.connect(lambda: times.append(time.perf_counter()))
    timer.start()
    until = times[0] + seconds
    while time.perf_counter() < until and not ended():
        spin(0.05)
    timer.stop()
    times.append(time.perf_counter())
    return 1000 * np.maximum(np.diff(times) - TICK_S, 0)


def summary(values: np.ndarray) -> list[float]:
    """Median, 95th percentile, maximum."""
    if not len(values):
        return [float("nan")] * 3
    return [
        float(np.median(values)),
        float(np.quantile(values, 0.95)),
        float(values.max()),
    ]


def spin(seconds: float) -> None:
    """Let the window live for a while, in Qt's own loop, which sleeps when there is nothing to do."""
    from qtpy.QtCore import QEventLoop, QTimer

    loop = QEventLoop()
    QTimer.singleShot(int(1000 * seconds), loop.quit)
    loop.exec()


def wait(done: Callable[[], bool], seconds: float) -> None:
    """Let the window live until something is so."""
    until = time.perf_counter() + seconds
    while not done() and time.perf_counter() < until:
        spin(0.02)


if __name__ == "__main__":
    raise SystemExit(main())
