"""What the rows of `engine.py` share: the slide, models with seeded random weights, clocks."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import torch

from napari_msamil.checkpoint import LoadedModel, load_checkpoint, save_checkpoint
from napari_msamil.config import Strategy
from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.models import build_model
from napari_msamil.patches import PatchGrid, make_grid
from napari_msamil.slide import open_slide
from napari_msamil.slide.write import aperio_description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from napari_msamil.config import ModelConfig
    from napari_msamil.slide import Slide

SIDE, TILE, MPP = 20_480, 256, 0.499


@dataclass(frozen=True)
class Setting:
    """What the command line asked for.

    Attributes:
        seed: Small real slide of which the large one is made.
        work: Folder for slides and models.
        repeats: Turns of each side; medians are reported.
        patches: About how many patches the end-to-end row has, of 2100.
        share: Part of the slide that the reading rows read.
        slides: Slides of the cluster row.
        trials: Interruptions of the ctrl_c row, for each way of running.
        compiled: Whether torch.compile is measured too.
        peer: An interpreter that has LazySlide, or None.
        peer_side: Side of the peer's slide in pixels.
        peer_options: Options of `engine_peer.py`.
    """

    seed: Path
    work: Path
    repeats: int = 3
    patches: int = 84
    share: float = 0.2
    slides: int = 8
    trials: int = 3
    compiled: bool = False
    peer: Path | None = None
    peer_side: int = 4096
    peer_options: str = ""

    @property
    def slide(self) -> Path:
        """The large slide; made if it is not there."""
        return self.slide_of(SIDE)

    def slide_of(self, side: int) -> Path:
        """A slide of another size."""
        return aperio_like(self.seed, self.work / f"aperio-like-{side}.svs", side)


def aperio_like(seed: Path, path: Path, side: int) -> Path:
    """A JPEG pyramid of levels 1, 4 and 16, as Aperio scanners write, made of a small slide by repeating it."""
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
            size = side >> 2 * level
            writer.write(
                _tiles(unit.mean((1, 3)).astype(np.uint8), math.ceil(size / TILE)),
                shape=(size, size, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
                compression="jpeg", compressionargs={"level": 80}, subfiletype=int(level > 0), metadata=None,
                description=aperio_description(side, side, MPP, 20.0) if level == 0 else None,
            )  # fmt: skip
    beside.replace(path)
    return path


def _tiles(unit: np.ndarray, count: int) -> Iterator[np.ndarray]:
    for row in range(count):
        for column in range(count):
            y = np.arange(row * TILE, (row + 1) * TILE) % len(unit)
            x = np.arange(column * TILE, (column + 1) * TILE) % len(unit)
            yield np.ascontiguousarray(unit[y][:, x])


def left_part(slide: Slide, share: float, *, square: bool = False) -> SlideMask:
    """A mask of a share of the slide: its left part, or a square in its corner."""
    mask = np.zeros((1024, 1024), bool)
    width = round(1024 * (math.sqrt(share) if square else share))
    mask[: width if square else 1024, :width] = True
    return SlideMask(mask, slide.info.size_wh0, MaskSource.USER)


def everything(slide: Slide, config: ModelConfig, share: float = 1.0) -> PatchGrid:
    """All patches of a square part of a slide, a share of its area."""
    mask = left_part(slide, share, square=True)
    return make_grid(slide.info, config.patches, mask)


def some_of(grid: PatchGrid, count: int) -> PatchGrid:
    """A random few patches of a grid, always the same, in its order."""
    keep = np.sort(np.random.default_rng(0).permutation(len(grid))[:count])
    return replace(
        grid,
        coords_xy0=grid.coords_xy0[keep],
        scale=grid.scale[keep],
        lesion_fraction=grid.lesion_fraction[keep],
    )


def model_file(config: ModelConfig, work: Path) -> LoadedModel:
    """A checkpoint with seeded random weights."""
    path = work / f"{config.name}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        spec = config.patches.model_copy(update={"strategy": Strategy.LESION})
        config = config.model_copy(update={"segmenter": None, "patches": spec})
        save_checkpoint(path, build_model(config).eval(), {"data": "random weights"})
    return load_checkpoint(path)


@dataclass
class Times:
    """Turns of one side: wall seconds, and processor seconds of all threads (which do not feel what else runs)."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median wall time."""
        return statistics.median(self.wall)

    def row(self, base: Times | None = None) -> dict[str, Any]:
        """Medians, the single turns, and how many times faster than another side."""
        busy = statistics.median(self.processor)
        cells: dict[str, Any] = {"wall s": self.seconds, "processor s": busy}
        if base is not None:
            cells["times faster"] = base.seconds / self.seconds
            cells["times less processor"] = statistics.median(base.processor) / busy
        return {**cells, "turns s": [round(v, 3) for v in self.wall]}


def in_turns(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Times]:
    """Every side once, then all of them again: what slows the machine down slows all sides down."""
    found = {name: Times() for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            start = time.perf_counter(), time.process_time()
            work()
            found[name].wall.append(time.perf_counter() - start[0])
            found[name].processor.append(time.process_time() - start[1])
    return found
