"""Magnification algebra: which level serves a physical resolution, and where a box lies. Pure, no file is read.

Downsamples are the file's own floats and are never rounded: at a downsample of 16.005 a rounded factor drifts by
31 level-0 pixels over a slide of 100 000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_msamil.errors import ResolutionError

if TYPE_CHECKING:
    from napari_msamil.slide.base import SlideInfo

MAX_UPSAMPLING = 1.2
"""A slide may be coarser than a model's finest scale by this factor: scanners sold as 20x lie at 0.44–0.55 µm/px."""

EDGE_NOISE = 1e-6


@dataclass(frozen=True)
class LevelChoice:
    """The level that serves a target resolution.

    Attributes:
        level: Index into the pyramid.
        downsample: True float factor of that level against level 0.
        residual: Target mpp / level mpp: above 1 the level's pixels are shrunk by it, below 1 enlarged.
    """

    level: int
    downsample: float
    residual: float


def require_mpp(info: SlideInfo) -> float:
    """The slide's pixel size in µm.

    Raises:
        ResolutionError: None is known; the sentence names the remedy.
    """
    if info.mpp is None:
        raise ResolutionError(
            f"{info.path.name} has no plausible pixel size (mpp). Pass it with --mpp or enter it in the slide's "
            "“Pixel size” field; scanners at 40x are usually near 0.25, at 20x near 0.5."
        )
    return info.mpp


def require_scale(info: SlideInfo, finest_mpp: float) -> float:
    """The slide's pixel size, if it is fine enough for the finest scale of a model.

    Args:
        info: The slide.
        finest_mpp: µm per pixel of the finest scale asked for.

    Raises:
        ResolutionError: No pixel size is known, or the slide is coarser than `MAX_UPSAMPLING` times that scale.
    """
    mpp = require_mpp(info)
    if mpp > finest_mpp * MAX_UPSAMPLING:
        raise ResolutionError(
            f"{info.path.name} has {mpp:.4g} µm per pixel at its finest, but {finest_mpp:.4g} is needed. Enlarging it "
            "would make the result meaningless: use a finer scan, or a model trained at this resolution."
        )
    return mpp


def level_for_downsample(info: SlideInfo, downsample: float) -> LevelChoice:
    """The level whose downsample is nearest to the one wanted, by ratio; the finer one on a tie.

    Args:
        info: The slide.
        downsample: Level-0 pixels per wanted pixel, above 0.
    """
    if not (downsample > 0 and math.isfinite(downsample)):
        raise ResolutionError(
            f"{info.path.name}: a downsample is above 0, not {downsample}."
        )
    level = min(
        range(info.level_count),
        key=lambda i: (abs(math.log(info.level_downsamples[i] / downsample)), i),
    )
    actual = info.level_downsamples[level]
    return LevelChoice(level, actual, downsample / actual)


def level_for_mpp(info: SlideInfo, mpp: float) -> LevelChoice:
    """The level whose pixel size is nearest to `mpp` by ratio.

    Args:
        info: The slide; its mpp must be known.
        mpp: Wanted µm per pixel.

    Raises:
        ResolutionError: The slide has no pixel size.
    """
    return level_for_downsample(info, mpp / require_mpp(info))


def size_px0(size_px: int, mpp: float, slide_mpp: float) -> int:
    """Side in level-0 pixels of a square of `size_px` pixels of `mpp` µm, at least 1."""
    return max(1, round(size_px * mpp / slide_mpp))


def level_box(
    box_xywh0: tuple[float, float, float, float], downsample: float
) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float]]:
    """The whole-pixel level region that covers a level-0 box, and the box inside it.

    Args:
        box_xywh0: x, y, width, height in level-0 pixels.
        downsample: True factor of the level.

    Returns:
        `(x, y, w, h)` in level pixels, and the exact box `(left, top, right, bottom)` in pixels of that region,
        ready for Pillow's `resize(box=…)`.
    """
    x, y, w, h = (value / downsample for value in box_xywh0)
    # A bound within 1e-6 of a pixel edge is rounding noise of the division, not a pixel more to read.
    left, top = math.floor(x + EDGE_NOISE), math.floor(y + EDGE_NOISE)
    right, bottom = math.ceil(x + w - EDGE_NOISE), math.ceil(y + h - EDGE_NOISE)
    width, height = max(1, right - left), max(1, bottom - top)
    inner = (
        max(x - left, 0.0),
        max(y - top, 0.0),
        min(x + w - left, width),
        min(y + h - top, height),
    )
    return (left, top, width, height), inner


def level_sizes(
    size_wh0: tuple[int, int], factor: int = 2, stop_px: int = 512
) -> tuple[tuple[int, int], ...]:
    """Sizes of a pyramid that shrinks by a whole factor until its longer side is at most `stop_px`; partial pixels count."""
    sizes = [size_wh0]
    while max(sizes[-1]) > stop_px:
        width, height = sizes[-1]
        sizes.append((max(1, -(-width // factor)), max(1, -(-height // factor))))
    return tuple(sizes)
