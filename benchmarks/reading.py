"""Where the time of reading patches goes: the plain loop, our ways, and the least that decoding and resampling take.

    python benchmarks/reading.py SEED_SLIDE [--work FOLDER] [--share 0.05] [--repeats 3] [--out reading.json]

SEED_SLIDE as in `engine.py`. Twice: at the slide's own 0.499 µm, where every patch is resampled, and with 0.5 µm
given for it, where 20x and 5x are read pixel for pixel. All sides take turns; medians of wall and processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_slide import SIDE, aperio_like, everything, in_turns
from engine_speed import one_by_one

from napari_msamil import patch_reader
from napari_msamil.cells import cell_grid
from napari_msamil.config import paper_config
from napari_msamil.patch_reader import PatchReader, patch_source, read_patch
from napari_msamil.resample import fast_resize
from napari_msamil.slide import open_slide

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_msamil.patches import PatchGrid
    from napari_msamil.slide import Slide

THREADS = os.cpu_count() or 1


def sides(path: Path, mpp: float | None, share: float) -> dict[str, Callable[[], None]]:
    """Everything that is timed, by name; the first is the plain loop."""
    with open_slide(path, mpp=mpp) as slide:
        grid = everything(slide, paper_config("bench", ("a", "b")), share)
        tiles = tiles_under(slide, grid)
        sample = {k: one_region(slide, grid, k) for k in range(3)}
    found: dict[str, Callable[[], None]] = {
        "one read_region per patch and scale": lambda: drain(one_by_one(path, grid)),
        "floor: decoding each tile once": partial(decode_all, path, tiles),
    }
    quick = fast_resize()
    resizers = {"Pillow": None} | ({"numba": quick} if quick else {})
    for name, resize in resizers.items():
        found[f"floor: resampling each patch, {name}"] = partial(
            resample_all, grid, sample, resize
        )
        for backend, words in (
            ("auto", "tiles decoded directly"),
            ("openslide", "OpenSlide only"),
        ):
            for threads in sorted({1, THREADS}):
                found[f"ours, {words}, {name}, {threads} threads"] = partial(
                    ours, path, mpp, grid, backend, threads, resize
                )  # fmt: skip
    return found


def drain(items: Any) -> None:
    for _ in items:
        pass


def ours(
    path: Path,
    mpp: float | None,
    grid: PatchGrid,
    backend: str,
    threads: int,
    resize: Any,
) -> None:
    patch_reader.fast_resize = lambda: resize
    with open_slide(path, mpp=mpp, backend=backend) as slide:
        drain(PatchReader(slide, grid, threads=threads))


def tiles_under(slide: Slide, grid: PatchGrid) -> list[tuple[int, int, int]]:
    """Each storage tile under the patches, once."""
    found = set()
    for i in range(len(grid)):
        source = patch_source(slide.info, grid, int(grid.scale[i]))
        region, _ = source.region(grid.coords_xy0[i])
        cells = cell_grid(slide, source.level)
        assert cells is not None
        found.update(cells.keys(region))
    return sorted(found)


def decode_all(path: Path, tiles: list[tuple[int, int, int]]) -> None:
    with open_slide(path) as slide, ThreadPoolExecutor(THREADS) as pool:
        drain(pool.map(lambda key: slide.tile(*key), tiles))


def one_region(slide: Slide, grid: PatchGrid, scale: int) -> tuple[Any, Any, Any]:
    """A patch's source, the level region under it, and its box there."""
    index = int((grid.scale == scale).argmax())
    source = patch_source(slide.info, grid, scale)
    region, box = source.region(grid.coords_xy0[index])
    pixels = slide.read_level(source.level, region[:2], region[2:])
    fast = fast_resize()
    if fast is not None:
        assert (
            source.resample(pixels, box, fast) == read_patch(slide, grid, index)
        ).all()
    return source, pixels, box


def resample_all(grid: PatchGrid, sample: dict[int, Any], resize: Any) -> None:
    extra = () if resize is None else (resize,)

    def one(scale: int) -> None:
        source, pixels, box = sample[scale]
        source.resample(pixels, box, *extra)

    with ThreadPoolExecutor(THREADS) as pool:
        drain(pool.map(one, grid.scale.tolist()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seed", type=Path)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "msamil-engine"
    )
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("reading.json"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    path = aperio_like(args.seed, args.work / f"aperio-like-{SIDE}.svs", SIDE)
    report: dict[str, Any] = {}
    for mpp in (None, 0.5):
        times = in_turns(sides(path, mpp, args.share), args.repeats)
        base = next(iter(times.values()))
        report[f"{mpp or 0.499} µm"] = {
            name: found.row(base) for name, found in times.items()
        }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
