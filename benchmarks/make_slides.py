"""Large slides for benchmarks, made from one small real slide by repeating it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.slide import open_slide
from napari_msamil.slide.write import aperio_description

if TYPE_CHECKING:
    from pathlib import Path

MPP, OBJECTIVE = 0.499, 20.0
TILE = 256


def jpeg_slide(
    seed: Path, path: Path, width: int, height: int, *, pyramid: bool
) -> Path:
    """A tiled JPEG slide with Aperio's description, with or without its coarser levels."""
    import pyvips

    if path.exists():
        return path
    with open_slide(seed) as slide:
        pixels = slide.read_level(0, (0, 0), slide.info.size_wh0)
    image = pyvips.Image.new_from_array(pixels, interpretation="srgb")
    across, down = math.ceil(width / image.width), math.ceil(height / image.height)
    large = (
        image.replicate(across, down)
        .crop(0, 0, width, height)
        .copy(xres=1e3 / MPP, yres=1e3 / MPP)
    )
    text = aperio_description(width, height, MPP, OBJECTIVE)
    large.set_type(pyvips.GValue.gstr_type, "image-description", text)
    beside = path.with_suffix(".partial")
    large.tiffsave(
        str(beside), compression="jpeg", Q=80, tile=True, tile_width=TILE, tile_height=TILE, pyramid=pyramid,
        bigtiff=True, resunit="cm",
    )  # fmt: skip
    beside.replace(path)
    return path


def repeated_png(seed: Path, path: Path, side: int) -> Path:
    """A square PNG of a side."""
    import pyvips

    if not path.exists():
        with open_slide(seed) as slide:
            pixels = slide.read_level(0, (0, 0), slide.info.size_wh0)
        image = pyvips.Image.new_from_array(pixels, interpretation="srgb")
        across, down = math.ceil(side / image.width), math.ceil(side / image.height)
        beside = path.with_name(f".{path.name}")
        image.replicate(across, down).crop(0, 0, side, side).pngsave(
            str(beside), compression=1
        )
        beside.replace(path)
    return path


def jpeg2000_slide(seed: Path, path: Path, width: int, height: int) -> Path:
    """A tiled JPEG 2000 slide of levels 1, 4 and 16; sides are multiples of 4096."""
    import imagecodecs
    import tifffile

    if path.exists():
        return path
    with open_slide(seed) as slide:
        pixels = slide.read_level(0, (0, 0), (2048, 2048))
    beside = path.with_suffix(".partial")
    with tifffile.TiffWriter(beside, bigtiff=True) as writer:
        for level in range(3):
            factor = 4**level
            small = np.asarray(
                Image.fromarray(pixels).resize(
                    (2048 // factor,) * 2, Image.Resampling.BOX
                )
            )
            block = np.tile(small, (max(1, TILE // len(small)),) * 2 + (1,))
            side = len(block) // TILE
            coded = {
                (r, c): imagecodecs.jpeg2k_encode(
                    np.ascontiguousarray(block[r * TILE : (r + 1) * TILE, c * TILE : (c + 1) * TILE]),
                    level=38, codecformat="j2k", reversible=False,
                )
                for r in range(side) for c in range(side)
            }  # fmt: skip
            rows, columns = height // factor // TILE, width // factor // TILE
            tiles = (
                coded[r % side, c % side] for r in range(rows) for c in range(columns)
            )
            writer.write(
                tiles, shape=(rows * TILE, columns * TILE, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
                compression=33005, metadata=None, subfiletype=0 if level == 0 else 1, software=False,
                description=aperio_description(width, height, MPP, OBJECTIVE) if level == 0 else None,
            )  # fmt: skip
    beside.replace(path)
    return path
