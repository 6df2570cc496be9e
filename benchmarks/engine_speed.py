"""Rows of `engine.py` about speed: reading, encoding, the plain loop, overlap, a peer."""

from __future__ import annotations

import json
import subprocess
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide
import torch
from engine_slide import Setting, everything, in_turns, model_file, some_of
from PIL import Image

from napari_msamil.config import AggregatorSpec, ModelConfig, paper_config, small_config
from napari_msamil.device import choose_runtime
from napari_msamil.encoding import PatchEncoder
from napari_msamil.inference import FeatureBag, aggregate, encode_patches
from napari_msamil.patch_reader import PatchReader, patch_source, read_patch
from napari_msamil.progress import finish
from napari_msamil.slide import open_slide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.patches import PatchGrid


def one_by_one(path: Path, grid: PatchGrid) -> Iterator[np.ndarray]:
    """What a user would write: one `read_region` per patch and scale from the best level, then Pillow's resize."""
    with openslide.OpenSlide(path) as slide:
        for i in range(len(grid)):
            k = int(grid.scale[i])
            scale, side = grid.spec.scales[k], grid.size_px0[k]
            level = slide.get_best_level_for_downsample(side / scale.size_px + 0.01)
            size = round(side / slide.level_downsamples[level])
            corner = tuple(grid.coords_xy0[i].tolist())
            image = slide.read_region(corner, level, (size, size)).convert("RGB")
            bilinear = Image.Resampling.BILINEAR
            yield np.asarray(image.resize((scale.size_px,) * 2, bilinear))


def reading(setting: Setting) -> dict[str, Any]:
    """20x, 10x and 5x patches, all of a part of the slide."""
    path, config = setting.slide, paper_config("bench", ("a", "b"))
    with open_slide(path) as slide:
        grid = everything(slide, config, setting.share)
        levels = [patch_source(slide.info, grid, k).level for k in range(3)]
        checked, cells = _identical(slide, grid)
    kinds = {
        "ours, OpenSlide only, 1 thread": ("openslide", 1),
        "ours, OpenSlide only": ("openslide", None),
        "ours, tiles decoded directly, 1 thread": ("auto", 1),
        "ours, tiles decoded directly": ("auto", None),
    }

    def ours(backend: str, threads: int | None) -> Callable[[], None]:
        def read() -> None:
            with open_slide(path, backend=backend) as slide:
                for _ in PatchReader(slide, grid, threads=threads):
                    pass

        return read

    plain = "one read_region per patch and scale"
    sides = {plain: lambda: _drain(one_by_one(path, grid))}
    sides |= {name: ours(*kind) for name, kind in kinds.items()}
    times = in_turns(sides, setting.repeats)
    return {
        "patches": grid.counts,
        "levels read (20x, 10x, 5x)": levels,
        "cells decoded": cells,
        "patches compared with the reference, all identical": checked,
        **{name: found.row(times[plain]) for name, found in times.items()},
    }


def _drain(items: Iterator[object]) -> None:
    for _ in items:
        pass


def _identical(slide: Any, grid: PatchGrid) -> tuple[int, int]:
    """Compare one patch of every eighth batch with `read_patch`; how many, and how many cells were decoded."""
    reader, checked = PatchReader(slide, grid), 0
    for turn, batch in enumerate(reader):
        if turn % 8 == 0:
            expected = read_patch(slide, grid, int(batch.index[0]))
            assert np.array_equal(batch.pixels[0], expected)
            checked += 1
    return checked, reader.cells.decoded


def eager(
    loaded: LoadedModel, patches: Iterator[np.ndarray], batch: int = 1
) -> np.ndarray:
    """The plain loop: float32, NCHW, no autocast; one by one is the fastest way on a CPU."""
    encoder = loaded.model.encoder.to(memory_format=torch.contiguous_format)
    out = []
    with torch.no_grad():
        while part := list(islice(patches, batch)):
            images = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2)
            out.append(encoder(images.contiguous().float()))
    return torch.cat(out).numpy()


def encoding(setting: Setting) -> dict[str, Any]:
    """EfficientNet-B3 MSFEM on patches of 512²."""
    loaded = model_file(paper_config("paper", ("a", "b")), setting.work)
    plain_model = model_file(paper_config("paper", ("a", "b")), setting.work)
    with open_slide(setting.slide) as slide:
        grid = some_of(everything(slide, loaded.config, 0.2), min(16, setting.patches))
        pixels = np.stack([read_patch(slide, grid, i) for i in range(len(grid))])
    kinds = {
        "ours, auto": choose_runtime("cpu"),
        "ours, fp32 (exact)": choose_runtime("cpu", "fp32"),
    }
    encoders = {n: PatchEncoder(loaded, r) for n, r in kinds.items()}
    if setting.compiled:
        runtime = choose_runtime("cpu")
        encoders["ours, compiled"] = PatchEncoder(loaded, runtime, compiled=True)
    plain = "eager fp32 NCHW, one by one"
    features = {plain: eager(plain_model, iter(pixels))}
    features |= {name: encoder(pixels) for name, encoder in encoders.items()}
    sides: dict[str, Callable[[], Any]] = {
        plain: lambda: eager(plain_model, iter(pixels)),
        "eager fp32 NCHW, batches of 8": lambda: eager(plain_model, iter(pixels), 8),
    }
    sides |= {n: (lambda e=e: e(pixels)) for n, e in encoders.items()}
    times = in_turns(sides, setting.repeats)
    chances = {n: _probabilities(loaded, grid, f) for n, f in features.items()}
    rows = {}
    for name, found in times.items():
        rows[name] = found.row(times[plain])
        rows[name]["ms per patch"] = 1e3 * found.seconds / len(pixels)
        gap = np.abs(chances.get(name, chances[plain]) - chances[plain]).max()
        rows[name]["probabilities differ by"] = float(gap)
    return {"patches": len(pixels), "auto is": kinds["ours, auto"].precision, **rows}


def _probabilities(
    loaded: LoadedModel, grid: PatchGrid, features: np.ndarray
) -> np.ndarray:
    valid = np.ones(len(grid), bool)
    bag = FeatureBag(features, grid, "bench", valid, {}, {})
    found: np.ndarray = aggregate(loaded, bag).logits.softmax(1).numpy()
    return found


def end_to_end(setting: Setting) -> dict[str, Any]:
    """Slide to features: OpenSlide, Pillow and timm as a user would write it, against the engine."""
    path, config = setting.slide, paper_config("paper", ("a", "b"))
    loaded, theirs = model_file(config, setting.work), model_file(config, setting.work)
    with open_slide(path) as slide:
        grid = everything(slide, config, setting.patches / 2100)

    def ours() -> FeatureBag:
        with open_slide(path) as slide:
            return finish(encode_patches(slide, grid, loaded, choose_runtime("cpu")))

    def plain() -> np.ndarray:
        return eager(theirs, one_by_one(path, grid))

    gap = _probabilities(loaded, grid, ours().features)
    gap -= _probabilities(loaded, grid, plain())
    times = in_turns({"plain loop": plain, "ours": ours}, setting.repeats)
    rows = {name: found.row(times["plain loop"]) for name, found in times.items()}
    for name, found in times.items():
        rows[name]["patches/s"] = len(grid) / found.seconds
    gap_text = "probabilities differ by"
    return {"patches": grid.counts, gap_text: float(np.abs(gap).max()), **rows}


def overlap(setting: Setting) -> dict[str, Any]:
    """Wall time of reading and encoding together against each of them alone."""
    cases = {
        "small model": (small_config("small", ("a", "b")), setting.share),
        "paper model": (paper_config("paper", ("a", "b")), 0.02),
    }
    return {name: _overlap_of(setting, *case) for name, case in cases.items()}


def _overlap_of(setting: Setting, config: ModelConfig, share: float) -> dict[str, Any]:
    loaded, runtime = model_file(config, setting.work), choose_runtime("cpu")
    with open_slide(setting.slide) as slide:
        grid = everything(slide, config, share)
        encoder = PatchEncoder(loaded, runtime)
        shown = range(min(16, len(grid)))
        pixels = np.stack([read_patch(slide, grid, i) for i in shown])
        encoder(pixels)
        sides: dict[str, Callable[[], Any]] = {
            "read": lambda: _drain(iter(PatchReader(slide, grid))),
            "encode": lambda: encoder(pixels),
            "both": lambda: finish(encode_patches(slide, grid, loaded, runtime)),
        }
        times = in_turns(sides, setting.repeats)
    read, both = times["read"].seconds, times["both"].seconds
    encode = times["encode"].seconds * len(grid) / len(pixels)
    return {
        "patches": len(grid),
        "read alone s": read,
        "encode alone s": encode,
        "together s": both,
        "together / longer of both": both / max(read, encode),
        "together / sum of both": both / (read + encode),
    }


def peer(setting: Setting) -> dict[str, Any]:
    """Slide to features against LazySlide: same file, weights and tiles; the features are compared too."""
    if setting.peer is None:
        return {"left out": "give --peer-python, an interpreter with lazyslide"}
    path = setting.slide_of(setting.peer_side)
    base = paper_config("peer", ("a", "b"))
    config = base.model_copy(update={
        "encoder": base.encoder.model_copy(update={"kind": "timm", "dim": 1536}),
        "aggregator": AggregatorSpec(name="abmil", in_dim=1536),
        "patches": base.patches.model_copy(update={"scales": base.patches.scales[:1]}),
    })  # fmt: skip
    loaded = model_file(config, setting.work)
    weights = setting.work / "peer-backbone.pt"
    torch.save(loaded.model.encoder.backbone.state_dict(), weights)
    with open_slide(path) as slide:
        grid = everything(slide, config)

    def ours() -> FeatureBag:
        with open_slide(path) as slide:
            runtime, compiled = choose_runtime("cpu"), setting.compiled
            return finish(
                encode_patches(slide, grid, loaded, runtime, compiled=compiled)
            )

    if setting.compiled:
        ours()  # the peer's script compiles before it measures, too
    times = in_turns({"ours": ours}, 2)["ours"]
    found = _lazyslide(setting, path, weights)
    row = {"tiles": len(grid), **times.row(), "patches/s": len(grid) / times.seconds}
    close = _agreement(grid, ours().features, found.pop("xy"), found.pop("features"))
    faster = row["patches/s"] / found["patches/s"]
    return {
        "ours": row,
        f"LazySlide {setting.peer_options}".strip(): found,
        "times faster": faster,
        "cosine of features (lowest, tiles compared)": close,
    }


def _lazyslide(setting: Setting, path: Path, weights: Path) -> dict[str, Any]:
    script = str(setting.work / "peer.npz")
    run = subprocess.run(
        [str(setting.peer), "engine_peer.py", str(path), str(weights), script, *setting.peer_options.split()],
        capture_output=True, text=True, check=False, cwd=__file__.rpartition("/")[0] or ".",
    )  # fmt: skip
    if run.returncode:
        raise SystemExit(f"the peer failed: {run.stderr[-2000:]}")
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    with np.load(script) as stored:
        return {**row, "xy": stored["xy"], "features": stored["features"]}


def _agreement(
    grid: PatchGrid, ours: np.ndarray, xy: np.ndarray, theirs: np.ndarray
) -> tuple[float, int]:
    """Lowest cosine between features of tiles whose corners lie within four pixels of each other."""
    apart = np.abs(grid.coords_xy0[:, None] - xy[None]).max(2)
    mine, other = np.nonzero(apart <= 4)
    a, b = ours[mine], theirs[other]
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return (float(cosine.min()), len(cosine)) if len(cosine) else (float("nan"), 0)
