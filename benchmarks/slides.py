"""Slides in napari: open to first paint, pan and jump stalls, 2048² views, peak memory; ours against the plainest means.

The plain means is what a user would type: one `read_region` per dask block of 512², level by level, given to `add_image`;
a file of one level is given as one level. Each case runs in a process of
its own, under Xvfb where there is no display, so that peaks of memory are its own.

    python -m benchmarks.slides --data DATA_FOLDER --scratch FOLDER [--large] [--json FILE]
    python -m benchmarks.slides --data DATA_FOLDER --scratch FOLDER --convert 60000
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

JUMPS, PANS, VIEWS, VIEW_PX = 16, 24, 16, 2048
REST_S = 2.0


def peak_mb() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def plain_layers(path: Path) -> tuple[Any, dict[str, Any]]:
    """The file as a user without this plugin would show it."""
    import dask.array as da
    import openslide

    slide = openslide.OpenSlide(path)

    def block(level: int, block_info: Any = None) -> Any:
        (y0, y1), (x0, x1), _ = block_info[None]["array-location"]
        factor = slide.level_downsamples[level]
        corner = (int(x0 * factor), int(y0 * factor))
        return np.asarray(slide.read_region(corner, level, (x1 - x0, y1 - y0)))[..., :3]

    levels = []
    for level, (w, h) in enumerate(slide.level_dimensions):
        spans = [tuple(min(512, n - i) for i in range(0, n, 512)) for n in (h, w)]
        meta = np.empty((0, 0, 0), np.uint8)
        levels.append(
            da.map_blocks(
                block, level, chunks=(*spans, (3,)), dtype=np.uint8, meta=meta
            )
        )
    if len(levels) == 1:
        return levels[0], {"rgb": True}
    return levels, {"multiscale": True, "rgb": True}


def our_layers(path: Path) -> tuple[Any, dict[str, Any]]:
    from napari_msamil.slide import open_slide
    from napari_msamil.slide.level_array import view_levels

    return view_levels(open_slide(path)), {"multiscale": True, "rgb": True}


def no_layers(_: Path) -> tuple[Any, dict[str, Any]]:
    """A picture of 512 × 384 pixels stretched over a slide's field: what the window alone costs."""
    return np.full((384, 512, 3), 200, np.uint8), {"rgb": True, "scale": (64, 64)}


LAYERS = {"ours": our_layers, "plain": plain_layers, "window alone": no_layers}


def show_case(path: Path, how: str, use_async: bool) -> dict[str, float]:
    """Open in napari, then move about; seconds, and MB of resident memory."""
    os.environ["NAPARI_CONFIG"] = ""  # the user's settings stay as they are
    import napari
    from napari.settings import get_settings
    from qtpy.QtWidgets import QApplication

    get_settings().experimental.async_ = use_async
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1400, 1000)
    app = QApplication.instance()
    import_s = import_libraries(how)
    rest(app)
    before = peak_mb()
    began = time.perf_counter()
    data, options = LAYERS[how](path)
    layer = viewer.add_image(data, contrast_limits=(0, 255), **options)
    settle(app, layer)
    viewer.screenshot(canvas_only=True, flash=False)
    first_paint = time.perf_counter() - began
    peak_open = peak_mb()
    wait_for_overview()
    return {
        "import_s": import_s,
        "first_paint_s": first_paint,
        "open_mb": peak_open,
        "open_extra_mb": peak_open - before,
        **move_about(viewer, app, layer),
        "peak_mb": peak_mb(),
    }


def move_about(viewer: Any, app: Any, layer: Any) -> dict[str, float]:
    """Medians of the stalls of jumps at four zooms, and of pans of 40 screen pixels at full resolution, in ms."""
    rng = np.random.default_rng(5)
    height, width = layer.extent.world[1]
    jumps, settled, pans = [], [], []
    camera(viewer).zoom = 1.0
    settle(app, layer)
    for _ in range(JUMPS):
        centre = (rng.uniform(0.2, 0.8) * height, rng.uniform(0.2, 0.8) * width)
        camera(viewer).zoom = float(rng.choice([1.0, 0.5, 0.12, 0.03]))
        stall, total = move(viewer, app, layer, centre)
        jumps.append(stall)
        settled.append(total)
    camera(viewer).zoom = 1.0
    centre = (0.4 * height, 0.4 * width)
    move(viewer, app, layer, centre)
    for step in range(PANS):
        stall, _ = move(viewer, app, layer, (centre[0], centre[1] + 40.0 * (step + 1)))
        pans.append(stall)
    return {
        "jump_stall_ms": 1e3 * statistics.median(jumps),
        "jump_settled_ms": 1e3 * statistics.median(settled),
        "pan_stall_ms": 1e3 * statistics.median(pans),
    }


def camera(viewer: Any) -> Any:
    return getattr(viewer, "scene", viewer).camera


def import_libraries(how: str) -> float:
    """Import what a way of reading needs, so that it is not part of its first paint; seconds."""
    needed = {
        # Dask asks for `distributed` at its first computation where that is installed.
        "plain": ("dask.array", "openslide", "distributed"),
        "ours": ("napari_msamil.slide", "napari_msamil.slide.level_array"),
    }
    began = time.perf_counter()
    for name in needed.get(how, ()):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return time.perf_counter() - began


def wait_for_overview() -> None:
    """Let the background thread of a virtual pyramid finish, so that moving about is measured alone."""
    import threading

    for thread in threading.enumerate():
        if thread.name == "virtual-pyramid":
            thread.join()


def rest(app: Any) -> None:
    """Let the new window finish what it does by itself, whichever imports came before."""
    until = time.perf_counter() + REST_S
    while time.perf_counter() < until:
        app.processEvents()
        time.sleep(0.005)


def settle(app: Any, layer: Any, timeout_s: float = 120.0) -> None:
    limit = time.perf_counter() + timeout_s
    app.processEvents()
    while not layer.loaded and time.perf_counter() < limit:
        app.processEvents()
        time.sleep(0.001)
    app.processEvents()


def move(
    viewer: Any, app: Any, layer: Any, centre: tuple[float, float]
) -> tuple[float, float]:
    """Move the camera; the longest time the GUI thread was away, and the time until the view is complete."""
    began = time.perf_counter()
    camera(viewer).center = centre
    app.processEvents()
    worst = time.perf_counter() - began
    while not layer.loaded:
        turn = time.perf_counter()
        app.processEvents()
        worst = max(worst, time.perf_counter() - turn)
        time.sleep(0.001)
    turn = time.perf_counter()
    app.processEvents()
    worst = max(worst, time.perf_counter() - turn)
    return worst, time.perf_counter() - began


def view_case(path: Path, _how: str, _async: bool) -> dict[str, float]:
    """Random 2048² views of level 0: one `read_region`, a lazy level, and direct reading, taking turns."""
    import openslide

    from napari_msamil.slide import open_slide
    from napari_msamil.slide.level_array import view_levels

    plain = openslide.OpenSlide(path)
    ours, again = open_slide(path), open_slide(path)
    level0 = view_levels(again, cache_bytes=0)[0]
    width, height = plain.dimensions
    size = (min(VIEW_PX, width), min(VIEW_PX, height))
    rng = np.random.default_rng(6)
    ways: dict[str, Callable[[int, int], Any]] = {
        "read_region_ms": lambda x, y: np.asarray(
            plain.read_region((x, y), 0, size).convert("RGB")
        ),
        "one_read_ms": lambda x, y: ours.read_region((x, y), 0, size),
        "level_ms": lambda x, y: level0[y : y + size[1], x : x + size[0]],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(VIEWS):
        order = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
        for name in order:
            # Each way gets a place of its own, so that no cache of the file or of tiles serves two of them.
            x = int(rng.integers(0, width - size[0] + 1))
            y = int(rng.integers(0, height - size[1] + 1))
            began = time.perf_counter()
            ways[name](x, y)
            times[name].append(time.perf_counter() - began)
    found = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    found["backend_is_direct"] = float(ours.info.backend == "direct")
    return found


def convert_case(path: Path, _how: str, _async: bool) -> dict[str, float]:
    """Convert a PNG beside itself."""
    from napari_msamil.progress import finish
    from napari_msamil.slide.convert import convert_image

    began = time.perf_counter()
    target = finish(
        convert_image(path, path.with_suffix(".tiff"), mpp=0.5, objective=20)
    )
    seconds = time.perf_counter() - began
    target.unlink()
    return {"seconds": seconds, "peak_mb": peak_mb()}


CASES = {"show": show_case, "view": view_case, "convert": convert_case}


def run_case(
    case: str, path: Path, how: str = "ours", *, use_async: bool = False
) -> dict[str, float]:
    """One case in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.slides",
        "--case",
        case,
        "--file",
        str(path),
        "--how",
        how,
    ]
    if use_async:
        command.append("--async")
    if case == "show" and not os.environ.get("DISPLAY") and shutil.which("xvfb-run"):
        command = ["xvfb-run", "-a", "-s", "-screen 0 1600x1200x24", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def all_files(data: Path, scratch: Path, large: bool) -> dict[str, Path]:
    from benchmarks.make_slides import huge_slide, jpeg2000_slide, jpeg_slide

    scratch.mkdir(parents=True, exist_ok=True)
    seed = data / "slides" / "CMU-1-Small-Region.svs"
    files = {
        "SVS JPEG 32768 × 24576": jpeg_slide(
            seed, scratch / "jpeg.svs", 32768, 24576, pyramid=True
        ),
        "SVS JPEG 2000 16384 × 12288": jpeg2000_slide(
            seed, scratch / "jp2k.svs", 16384, 12288
        ),
        "NDPI strips 3968 × 4864": data / "slides" / "stritt_TRITC.ndpi",
        "one level, JPEG 16384 × 12288": jpeg_slide(
            seed, scratch / "single.svs", 16384, 12288, pyramid=False
        ),
    }
    if large:
        files["SVS JPEG 100000 × 80000"] = huge_slide(
            seed, scratch / "huge.svs", 100_000, 80_000
        )
        files["one level, JPEG 32768 × 24576"] = jpeg_slide(
            seed, scratch / "single32.svs", 32768, 24576, pyramid=False
        )
    return files


def large_png(seed: Path, scratch: Path, side: int) -> Path:
    from benchmarks.make_slides import repeated_png

    scratch.mkdir(parents=True, exist_ok=True)
    return repeated_png(seed, scratch / f"{side}.png", side)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument(
        "--large",
        action="store_true",
        help="also 100000 × 80000, and a large file of one level",
    )
    parser.add_argument("--only", help="only files whose name contains this")
    parser.add_argument(
        "--convert", type=int, metavar="SIDE", help="only: convert a PNG of this side"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", default="ours", help=argparse.SUPPRESS)
    parser.add_argument(
        "--async", dest="use_async", action="store_true", help=argparse.SUPPRESS
    )
    args = parser.parse_args()
    if args.case:
        print(json.dumps(CASES[args.case](args.file, args.how, args.use_async)))
        sys.stdout.flush()
        os._exit(0)  # Qt and dask threads need no farewell in a measuring process
    if args.data is None or args.scratch is None:
        parser.error("--data and --scratch are needed")
    if args.convert:
        png = large_png(
            args.data / "slides" / "CMU-1-Small-Region.svs", args.scratch, args.convert
        )
        print(
            f"{args.convert} × {args.convert} PNG of {png.stat().st_size / 1e6:.0f} MB: {run_case('convert', png)}"
        )
        return
    os.environ["MSAMIL_CACHE"] = str(args.scratch / "cache")
    results = {}
    for name, path in all_files(args.data, args.scratch, args.large).items():
        if args.only and args.only not in name:
            continue
        results[name] = measure(path, name)
        print_file(name, results[name])
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


ROWS = (
    ("window alone", "window alone", True),
    ("plain", "plain", False),
    ("plain, async", "plain", True),
    ("ours", "ours", False),
    ("ours, async", "ours", True),
)
"""Name of a row, its layers, whether napari slices asynchronously."""


def measure(path: Path, name: str) -> dict[str, dict[str, float]]:
    found = {"view": run_case("view", path)}
    for row, how, use_async in ROWS:
        # Plain reading of a large file of one level needs tens of GB: it is measured on the smaller one.
        if how == "plain" and "32768 × 24576" in name and "one level" in name:
            continue
        shutil.rmtree(Path(os.environ["MSAMIL_CACHE"]), ignore_errors=True)
        found[row] = run_case("show", path, how, use_async=use_async)
    return found


def print_file(name: str, found: dict[str, dict[str, float]]) -> None:
    print(f"\n{name}", flush=True)
    columns = list(found["ours"])
    print(f"  {'':14}" + "".join(f"{column:>17}" for column in columns))
    for row, _, _ in ROWS:
        if row in found:
            values = "".join(f"{found[row][column]:17.2f}" for column in columns)
            print(f"  {row:14}{values}")
    for suffix in ("", ", async"):
        if f"plain{suffix}" in found:
            plain, ours = found[f"plain{suffix}"], found[f"ours{suffix}"]
            ratios = (plain[column] / max(ours[column], 1e-9) for column in columns)
            print(f"  {'plain / ours':14}" + "".join(f"{r:17.2f}" for r in ratios))
    view = found["view"]
    base = view["read_region_ms"]
    print(
        f"  2048² views: read_region {base:.0f} ms, one read of ours {view['one_read_ms']:.0f} ms "
        f"({base / view['one_read_ms']:.2f}×), a level as napari slices it {view['level_ms']:.0f} ms "
        f"({base / view['level_ms']:.2f}×); {'direct tiles' if view['backend_is_direct'] else 'OpenSlide'}"
    )


if __name__ == "__main__":
    main()
