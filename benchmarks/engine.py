"""The engine against the plain loop a user would write, and against itself: ratios in one run, medians of repeats.

    python benchmarks/engine.py SEED_SLIDE [--work FOLDER] [--out engine.json] [--only reading encoding …]

SEED_SLIDE is a small real slide (OpenSlide's CMU-1-Small-Region.svs); a JPEG pyramid of 20 480 × 20 480 with levels
1, 4 and 16 (as Aperio scanners write) is made of it once. For a peer, `benchmarks/engine_peer.py` runs in its own
environment on the same file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
import tifffile
import torch
from PIL import Image

from napari_msamil.checkpoint import LoadedModel, load_checkpoint, save_checkpoint
from napari_msamil.config import (
    AggregatorSpec,
    ModelConfig,
    Strategy,
    paper_config,
    small_config,
)
from napari_msamil.device import choose_runtime
from napari_msamil.encoding import PatchEncoder
from napari_msamil.feature_store import FeatureStore, patch_keys, store_key
from napari_msamil.inference import aggregate, encode_patches, encoder_id
from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.models import build_model
from napari_msamil.patch_reader import PatchReader, patch_source, read_patch
from napari_msamil.patches import PatchGrid, make_grid
from napari_msamil.pipeline import ClassifyOptions, classify_steps
from napari_msamil.progress import Stage, finish
from napari_msamil.slide import open_slide
from napari_msamil.slide.write import aperio_description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from napari_msamil.slide import Slide

SIDE, TILE, MPP = 20_480, 256, 0.499


def aperio_like(seed: Path, path: Path, side: int = SIDE) -> Path:
    """A JPEG pyramid of levels 1, 4 and 16 made of a small slide by repeating it."""
    if path.exists():
        return path
    with open_slide(seed) as slide:
        pixels = slide.read_level(0, (0, 0), (2048, 2048))
    beside = path.with_suffix(".partial")
    with tifffile.TiffWriter(beside, bigtiff=True) as writer:
        for level in range(3):
            unit = pixels.reshape(
                2048 >> 2 * level, 4**level, 2048 >> 2 * level, 4**level, 3
            )
            unit = unit.mean((1, 3)).astype(np.uint8)
            size = side >> 2 * level
            count = math.ceil(size / TILE)

            def tiles(
                unit: np.ndarray = unit, count: int = count
            ) -> Iterator[np.ndarray]:
                for row in range(count):
                    for column in range(count):
                        y = np.arange(row * TILE, (row + 1) * TILE) % len(unit)
                        x = np.arange(column * TILE, (column + 1) * TILE) % len(unit)
                        yield np.ascontiguousarray(unit[y][:, x])

            writer.write(
                tiles(), shape=(size, size, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
                compression="jpeg", compressionargs={"level": 80}, subfiletype=int(level > 0), metadata=None,
                description=aperio_description(side, side, MPP, 20.0) if level == 0 else None,
            )  # fmt: skip
    beside.replace(path)
    return path


def everything(slide: Slide, config: ModelConfig, share: float = 1.0) -> PatchGrid:
    """All patches of a square part of a slide, a share of its area."""
    mask = np.zeros((1024, 1024), bool)
    side = round(1024 * math.sqrt(share))
    mask[:side, :side] = True
    whole = SlideMask(mask, slide.info.size_wh0, MaskSource.USER)
    return make_grid(slide.info, config.patches, whole)


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median wall time."""
    return both_clocks(work, repeats)[0]


def both_clocks(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median wall time and median processor time of all threads; the latter does not feel what else is running."""
    wall, processor = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return statistics.median(wall), statistics.median(processor)


def read_one_by_one(path: Path, grid: PatchGrid) -> list[np.ndarray]:
    """What a user would write: one `read_region` per patch and scale from the best level, then a resize."""
    out = []
    with openslide.OpenSlide(path) as slide:
        for i in range(len(grid)):
            k = int(grid.scale[i])
            scale, side = grid.spec.scales[k], grid.size_px0[k]
            level = slide.get_best_level_for_downsample(side / scale.size_px + 0.01)
            size = round(side / slide.level_downsamples[level])
            image = slide.read_region(
                tuple(grid.coords_xy0[i].tolist()), level, (size, size)
            )
            image = image.convert("RGB").resize(
                (scale.size_px,) * 2, Image.Resampling.BILINEAR
            )
            out.append(np.asarray(image)[::64, ::64])
    return out


def bench_reading(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """20x + 10x + 5x patches, all of a part of the slide."""
    config = paper_config("bench", ("a", "b"))
    with open_slide(path) as slide:
        grid = everything(slide, config, args.share)
        reader = PatchReader(slide, grid)
        for batch in reader:
            for i, pixels in zip(batch.index[:1], batch.pixels, strict=False):
                assert np.array_equal(pixels, read_patch(slide, grid, int(i)))
        cells = reader.cells.decoded
        levels = [patch_source(slide.info, grid, k).level for k in range(3)]
    times: dict[str, tuple[float, float]] = {}
    times["one read_region per patch and scale"] = both_clocks(
        lambda: read_one_by_one(path, grid), args.repeats
    )
    for name, backend, threads in (
        ("ours, OpenSlide only, 1 thread", "openslide", 1),
        ("ours, OpenSlide only", "openslide", None),
        ("ours, tiles decoded directly, 1 thread", "auto", 1),
        ("ours, tiles decoded directly", "auto", None),
    ):
        with open_slide(path, backend=backend) as slide:
            times[name] = both_clocks(
                lambda slide=slide, threads=threads: [
                    None for _ in PatchReader(slide, grid, threads=threads)
                ],
                args.repeats,
            )
    base = times["one read_region per patch and scale"]
    return {
        "patches": grid.counts,
        "levels read (20x, 10x, 5x)": levels,
        "cells decoded": cells,
        **{name: _clock_row(base, clocks) for name, clocks in times.items()},
    }


def _clock_row(
    base: tuple[float, float], clocks: tuple[float, float]
) -> dict[str, float]:
    return {
        "wall s": clocks[0],
        "processor s": clocks[1],
        "ratio of wall": base[0] / clocks[0],
        "ratio of processor time": base[1] / clocks[1],
    }


def plain_eager(loaded: LoadedModel, pixels: np.ndarray) -> np.ndarray:
    """The eager float32 NCHW loop, one patch at a time in batches of four."""
    encoder = loaded.model.encoder.to(memory_format=torch.contiguous_format)
    out = []
    with torch.no_grad():
        for start in range(0, len(pixels), 4):
            part = torch.from_numpy(pixels[start : start + 4])
            out.append(encoder(part.permute(0, 3, 1, 2).contiguous().float()))
    return torch.cat(out).numpy()


def bench_encoding(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """EfficientNet-B3 MSFEM on 512² patches."""
    loaded = model_file(paper_config("bench", ("a", "b")), args.work)
    with open_slide(path) as slide:
        grid = everything(slide, loaded.config, 0.2)
        pixels = np.stack([read_patch(slide, grid, i) for i in range(args.patches)])
    rows: dict[str, Any] = {}
    reference = plain_eager(loaded, pixels)
    base = both_clocks(lambda: plain_eager(loaded, pixels), args.repeats)
    rows["eager fp32 NCHW"] = _clock_row(base, base)
    cases = [("fp32", False), ("bf16", False)] + [("bf16", True)] * args.compile
    for precision, compiled in cases:
        runtime = choose_runtime("cpu", precision)
        encoder = PatchEncoder(loaded, runtime, compiled=compiled)
        start = time.perf_counter()
        features = encoder(pixels)
        first = time.perf_counter() - start
        clocks = both_clocks(lambda encoder=encoder: encoder(pixels), args.repeats)
        rows[f"ours, {precision}{', compiled' * compiled}"] = {
            **_clock_row(base, clocks),
            "first call s": first,
            "largest difference of a feature": float(
                np.abs(features - reference).max()
            ),
        }
    for row in rows.values():
        row["processor ms per patch"] = 1e3 * row["processor s"] / len(pixels)
    return {"patches": len(pixels), **rows}


def bench_classify(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Overlap: wall of reading and encoding together against each of them alone."""
    result: dict[str, Any] = {}
    for name, config, share in (
        ("small model", small_config("small", ("a", "b")), args.share),
        ("paper model", paper_config("paper", ("a", "b")), 0.05),
    ):
        loaded, runtime = model_file(config, args.work), choose_runtime("cpu")
        with open_slide(path) as slide:
            grid = everything(slide, config, share)
            read = seconds(
                lambda s=slide, g=grid: [0 for _ in PatchReader(s, g)], args.repeats
            )
            encoder = PatchEncoder(loaded, runtime)
            pixels = np.stack(
                [read_patch(slide, grid, i) for i in range(min(16, len(grid)))]
            )
            encoder(pixels)
            one = seconds(lambda e=encoder, p=pixels: e(p), args.repeats) / len(pixels)
            work = seconds(
                lambda s=slide, g=grid, m=loaded, r=runtime: finish(
                    encode_patches(s, g, m, r)
                ),
                args.repeats,
            )
        result[name] = {
            "patches": len(grid),
            "read alone s": read,
            "encode alone s": one * len(grid),
            "together s": work,
            "wall / max(read, encode)": work / max(read, one * len(grid)),
            "wall / (read + encode)": work / (read + one * len(grid)),
        }
    return result


def bench_edit(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A mask edit with 3000 cached patches: time from mask to answer."""
    config = paper_config("paper", ("a", "b"))
    loaded, runtime = model_file(config, args.work), choose_runtime("cpu")
    with tempfile.TemporaryDirectory() as folder, open_slide(path) as slide:
        store = FeatureStore(Path(folder))
        spec = config.patches.model_copy(update={"stride": 0.75})
        edited = LoadedModel(
            loaded.model, config.model_copy(update={"patches": spec}), {}, loaded.path, loaded.sha256
        )  # fmt: skip
        grid = everything(slide, edited.config)
        key = store_key(slide.info, grid, encoder_id(edited, runtime))
        features = np.random.default_rng(0).normal(size=(len(grid), 512))
        store.put(key, patch_keys(grid), features.astype(np.float32))
        times, counts = [], []
        for share in (0.95, 0.93, 0.97, 0.94, 0.96):
            mask = np.zeros((1024, 1024), bool)
            mask[:, : round(1024 * share)] = True
            asked = ClassifyOptions(
                mask=SlideMask(mask, slide.info.size_wh0, MaskSource.USER),
                store=store, runtime=runtime,
            )  # fmt: skip
            start = time.perf_counter()
            result = finish(classify_steps(slide, edited, asked))
            times.append(time.perf_counter() - start)
            counts.append(len(result.grid))
    return {"patches": counts, "seconds": times, "median s": statistics.median(times)}


def bench_cancel(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """From asking to stop until the generator is closed, at random moments."""
    rng = np.random.default_rng(0)
    result = {}
    for config in (
        small_config("small", ("a", "b")),
        paper_config("paper", ("a", "b")),
    ):
        loaded, runtime = model_file(config, args.work), choose_runtime("cpu")
        between, close = [], []
        with open_slide(path) as slide:
            mask = SlideMask(
                np.ones((64, 64), bool), slide.info.size_wh0, MaskSource.USER
            )
            for _ in range(args.repeats):
                options = ClassifyOptions(mask=mask, runtime=runtime)
                steps = classify_steps(slide, loaded, options)
                for step in steps:
                    if step.stage is Stage.ENCODE and step.done > 4:
                        break
                for _ in range(int(rng.integers(1, 5))):
                    start = time.perf_counter()
                    next(steps)
                    between.append(time.perf_counter() - start)
                start = time.perf_counter()
                steps.close()
                close.append(time.perf_counter() - start)
        result[config.name] = {
            "between two steps ms (longest)": 1e3 * max(between),
            "close ms (longest)": 1e3 * max(close),
        }
    return result


def bench_plain_loop(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Slide to features: OpenSlide → PIL → eager fp32, against the engine."""
    loaded, runtime = (
        model_file(paper_config("paper", ("a", "b")), args.work),
        choose_runtime("cpu"),
    )
    with open_slide(path) as slide:
        grid = everything(slide, loaded.config, 0.05)
    keep = np.sort(np.random.default_rng(0).permutation(len(grid))[: args.patches])
    grid = PatchGrid(
        grid.spec, grid.size_wh0, grid.mpp, grid.size_px0, grid.coords_xy0[keep], grid.scale[keep],
        grid.lesion_fraction[keep],
    )  # fmt: skip

    def plain() -> None:
        with openslide.OpenSlide(path) as slide, torch.no_grad():
            for i in range(len(grid)):
                k = int(grid.scale[i])
                level = slide.get_best_level_for_downsample(2.0**k + 0.01)
                size = round(grid.size_px0[k] / slide.level_downsamples[level])
                image = slide.read_region(
                    tuple(grid.coords_xy0[i].tolist()), level, (size, size)
                )
                image = image.convert("RGB").resize(
                    (512, 512), Image.Resampling.BILINEAR
                )
                pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[
                    None
                ]
                loaded.model.encoder(pixels.contiguous().float())

    loaded.model.encoder.to(memory_format=torch.contiguous_format)
    base = both_clocks(plain, args.repeats)
    with open_slide(path) as slide:
        ours = both_clocks(
            lambda: finish(encode_patches(slide, grid, loaded, runtime)), args.repeats
        )
    return {
        "patches": len(grid),
        "plain loop": _clock_row(base, base),
        "ours": _clock_row(base, ours),
        "plain loop patches/s": len(grid) / base[0],
        "ours patches/s": len(grid) / ours[0],
    }


def bench_memory(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of classifying a small and the large slide, each in a process of its own."""
    small = aperio_like(args.seed, args.work / "small-4096.svs", 4096)
    rows = {}
    for name, file in (("4 096²", small), (f"{SIDE}²", path)):
        command = [
            sys.executable,
            __file__,
            str(args.seed),
            "--peak",
            str(file),
            "--work",
            str(args.work),
        ]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[name] = json.loads(run.stdout.splitlines()[-1])
    return rows


def peak_of(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    loaded, runtime = (
        model_file(small_config("small", ("a", "b")), args.work),
        choose_runtime("cpu"),
    )
    with open_slide(path) as slide:
        grid = everything(slide, loaded.config)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        aggregate(loaded, finish(encode_patches(slide, grid, loaded, runtime)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "patches": len(grid),
        "before MB": before,
        "peak MB": peak,
        "added MB": peak - before,
    }


def bench_cluster(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Dask on this machine: the same slides with one worker and with two."""
    from napari_msamil.batch import BatchOptions, classify_many

    small = aperio_like(args.seed, args.work / "small-4096.svs", 4096)
    model_file(small_config("small", ("a", "b")), args.work)
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        slides = []
        for i in range(args.slides):
            slides.append(Path(folder) / f"s{i}.svs")
            slides[-1].symlink_to(small)
        for count in (1, 2):
            options = BatchOptions(
                output=Path(folder) / f"out{count}", model=str(args.work / "small.safetensors"),
                cluster=f"local:{count}", use_cache=False, patches="tissue",
            )  # fmt: skip
            rows = finish(classify_many(slides, options)).rows
            assert all(row.status == "done" for row in rows), rows
            # The first slide of each worker loads torch and the model; a long run does not feel that.
            times[count] = [row.seconds for row in rows]
    one = statistics.median(times[1])
    two = statistics.median(times[2])
    return {
        "slides": args.slides,
        "seconds per slide, 1 worker": one,
        "seconds per slide, 2 workers": two,
        "efficiency": one / two,
    }


def bench_peer(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Slide to features against LazySlide: same slide, same network, same tiles; each in its best documented setting."""
    if args.peer_python is None:
        return {
            "left out": "give --peer-python, an interpreter with lazyslide and timm"
        }
    small = aperio_like(
        args.seed, args.work / f"peer-{args.peer_side}.svs", args.peer_side
    )
    script = Path(__file__).with_name("engine_peer.py")
    rows: dict[str, Any] = {}
    for options in ([], ["--amp"]):
        run = subprocess.run(
            [str(args.peer_python), str(script), str(small), *options],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        name = " ".join(["LazySlide", *options])
        rows[name] = (
            json.loads(run.stdout.splitlines()[-1])
            if run.returncode == 0
            else run.stderr[-400:]
        )
    base = paper_config("peer", ("a", "b"))
    config = base.model_copy(
        update={
            "encoder": base.encoder.model_copy(update={"kind": "timm", "dim": 1536}),
            "aggregator": AggregatorSpec(name="abmil", in_dim=1536),
            "patches": base.patches.model_copy(
                update={"scales": base.patches.scales[:1]}
            ),
        }
    )
    loaded, runtime = model_file(config, args.work), choose_runtime("cpu")
    start = time.perf_counter()
    with open_slide(small) as slide:
        grid = everything(slide, loaded.config)
        finish(encode_patches(slide, grid, loaded, runtime))
    took = time.perf_counter() - start
    rows["ours"] = {"tiles": len(grid), "seconds": took, "patches/s": len(grid) / took}
    peers = [
        row["patches/s"]
        for name, row in rows.items()
        if name != "ours" and isinstance(row, dict)
    ]
    if peers:
        rows["ratio to the best setting of the peer"] = rows["ours"]["patches/s"] / max(
            peers
        )
    return rows


def model_file(config: ModelConfig, work: Path) -> LoadedModel:
    """A checkpoint with seeded random weights."""
    path = work / f"{config.name}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        spec = config.patches.model_copy(update={"strategy": Strategy.LESION})
        config = config.model_copy(update={"segmenter": None, "patches": spec})
        save_checkpoint(path, build_model(config).eval(), {"data": "random weights"})
    return load_checkpoint(path)


BENCHES = {
    "reading": bench_reading,
    "encoding": bench_encoding,
    "plain_loop": bench_plain_loop,
    "classify": bench_classify,
    "edit": bench_edit,
    "cancel": bench_cancel,
    "memory": bench_memory,
    "cluster": bench_cluster,
    "peer": bench_peer,
}


def machine() -> dict[str, Any]:
    return {
        "processors": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=Path)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "msamil-engine"
    )
    parser.add_argument("--out", type=Path, default=Path("engine.json"))
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--patches", type=int, default=16, help="patches for the encoding rows"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.25,
        help="part of the slide for the reading rows",
    )
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument(
        "--compile", action="store_true", help="also measure torch.compile"
    )
    parser.add_argument(
        "--peer-python", type=Path, help="an interpreter with lazyslide"
    )
    parser.add_argument("--peer-side", type=int, default=4096)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.peak:
        print(json.dumps(peak_of(args.peak, args)))
        return
    path = aperio_like(args.seed, args.work / f"aperio-like-{SIDE}.svs")
    report = json.loads(args.out.read_text()) if args.out.exists() else {}
    report["machine"] = machine()
    for name in args.only:
        report[name] = BENCHES[name](path, args)
        print(name, json.dumps(report[name], indent=1, ensure_ascii=False), flush=True)
        args.out.write_text(
            json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
