"""Slides in napari: open to first paint, pan and jump stalls, 2048² views, peak memory; ours against the plainest means.

The plain means is what a user would type: one `read_region` per dask block of 512², level by level, given to `add_image`;
a file of one level is given as one level. Each case runs in a process of
its own, under Xvfb where there is no display, so that peaks of memory are its own.

    python -m benchmarks.slides --data DATA_FOLDER --scratch FOLDER [--large] [--json FILE]
    python -m benchmarks.slides --data DATA_FOLDER --scratch FOLDER --convert 60000
"""

from __future__ import annotations

import argparse
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
    from napari_msamil.slide.pyramid import lazy_pyramid

    return lazy_pyramid(open_slide(path)), {
        "multiscale": True,
        "rgb": True,
        "cache": False,
    }


def show_case(path: Path, how: str, use_async: bool) -> dict[str, float]:
    """Open in napari, then move about; seconds, and MB of resident memory."""
    import napari
    from napari.settings import get_settings
    from qtpy.QtWidgets import QApplication

    get_settings().experimental.async_ = use_async
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1400, 1000)
    app = QApplication.instance()
    for _ in range(20):
        app.processEvents()
    import_everything()
    before = peak_mb()
    began = time.perf_counter()
    data, options = (our_layers if how == "ours" else plain_layers)(path)
    layer = viewer.add_image(data, **options)
    settle(app, layer)
    viewer.screenshot(canvas_only=True, flash=False)
    first_paint = time.perf_counter() - began
    peak_open = peak_mb()
    wait_for_overview()
    rng = np.random.default_rng(5)
    height, width = (
        layer.level_shapes[0][:2] if layer.multiscale else layer.data.shape[:2]
    )
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
        "first_paint_s": first_paint,
        "open_mb": peak_open,
        "open_extra_mb": peak_open - before,
        "jump_stall_ms": 1e3 * statistics.median(jumps),
        "jump_settled_ms": 1e3 * statistics.median(settled),
        "pan_stall_ms": 1e3 * statistics.median(pans),
        "peak_mb": peak_mb(),
    }


def camera(viewer: Any) -> Any:
    return getattr(viewer, "scene", viewer).camera


def import_everything() -> None:
    """Libraries both ways need, so that importing them is not measured."""
    import dask.array
    import imagecodecs
    import openslide
    import tifffile
    import zarr

    import napari_msamil.slide.pyramid

    del dask, imagecodecs, openslide, tifffile, zarr, napari_msamil


def wait_for_overview() -> None:
    """Let the background thread of a virtual pyramid finish, so that moving about is measured alone."""
    import threading

    for thread in threading.enumerate():
        if thread.name == "virtual-pyramid":
            thread.join()


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
    import dask
    import openslide

    from napari_msamil.slide import open_slide
    from napari_msamil.slide.pyramid import lazy_pyramid

    plain = openslide.OpenSlide(path)
    ours, again = open_slide(path), open_slide(path)
    level0 = lazy_pyramid(again, cache_bytes=0)[0]
    width, height = plain.dimensions
    size = (min(VIEW_PX, width), min(VIEW_PX, height))
    rng = np.random.default_rng(6)
    ways: dict[str, Callable[[int, int], Any]] = {
        "read_region_ms": lambda x, y: np.asarray(
            plain.read_region((x, y), 0, size).convert("RGB")
        ),
        "one_read_ms": lambda x, y: ours.read_region((x, y), 0, size),
        "lazy_level_ms": lambda x, y: level0[
            y : y + size[1], x : x + size[0]
        ].compute(),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with dask.config.set(scheduler="threads"):
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
    from benchmarks.make_slides import jpeg2000_slide, jpeg_slide

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
        files["SVS JPEG 100000 × 80000"] = jpeg_slide(
            seed, scratch / "huge.svs", 100_000, 80_000, pyramid=True
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
        shutil.rmtree(args.scratch / "cache", ignore_errors=True)
        results[name] = measure(path, name)
        print_file(name, results[name])
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


def measure(path: Path, name: str) -> dict[str, dict[str, float]]:
    found = {
        "ours": run_case("show", path),
        "ours, async": run_case("show", path, use_async=True),
        "view": run_case("view", path),
    }
    # Plain reading of a large file of one level needs tens of GB: it is measured on the smaller one.
    if "32768 × 24576" not in name or "one level" not in name:
        found["plain"] = run_case("show", path, "plain")
    return found


def print_file(name: str, found: dict[str, dict[str, float]]) -> None:
    print(f"\n{name}", flush=True)
    columns = (
        "first_paint_s",
        "open_mb",
        "open_extra_mb",
        "jump_stall_ms",
        "jump_settled_ms",
        "pan_stall_ms",
        "peak_mb",
    )
    print(f"  {'':14}" + "".join(f"{column:>17}" for column in columns))
    for how in ("plain", "ours", "ours, async"):
        if how in found:
            print(
                f"  {how:14}"
                + "".join(f"{found[how][column]:17.2f}" for column in columns)
            )
    if "plain" in found:
        ratios = (
            found["plain"][column] / max(found["ours"][column], 1e-9)
            for column in columns
        )
        print(f"  {'plain / ours':14}" + "".join(f"{ratio:17.2f}" for ratio in ratios))
    view = found["view"]
    base = view["read_region_ms"]
    print(
        f"  2048² views: read_region {base:.0f} ms, one read of ours {view['one_read_ms']:.0f} ms "
        f"({base / view['one_read_ms']:.2f}×), lazy level in threads {view['lazy_level_ms']:.0f} ms "
        f"({base / view['lazy_level_ms']:.2f}×); {'direct tiles' if view['backend_is_direct'] else 'OpenSlide'}"
    )


if __name__ == "__main__":
    main()
