"""Large slides for benchmarks, made from one small real slide by repeating it."""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from napari_msamil.slide import open_slide
from napari_msamil.slide.write import aperio_description

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

MPP, OBJECTIVE = 0.499, 20.0
TILE = 256
BLOCK = 2048


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
    """A square PNG of a side: one band of the seed's height is compressed once and written again and again."""
    if path.exists():
        return path
    with open_slide(seed) as slide:
        pixels = slide.read_level(0, (0, 0), slide.info.size_wh0)
    across = math.ceil(side / pixels.shape[1])
    beside = path.with_name(f".{path.name}")
    checksum = 1
    with beside.open("wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n")
        _chunk(out, b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        _chunk(out, b"IDAT", b"\x78\x01")
        for top in range(0, side, len(pixels)):
            if top == 0 or side - top < len(pixels):
                band = _filtered_rows(pixels[: side - top], across, side)
                last = side - top <= len(pixels)
                packed = _deflated(band, last=last)
            checksum = zlib.adler32(band, checksum)
            _chunk(out, b"IDAT", packed)
        _chunk(out, b"IDAT", struct.pack(">I", checksum))
        _chunk(out, b"IEND", b"")
    beside.replace(path)
    return path


def _filtered_rows(pixels: NDArray[np.uint8], across: int, width: int) -> bytes:
    """Rows repeated sideways, each with PNG's filter byte 0 before it."""
    rows = np.zeros((len(pixels), 1 + 3 * width), np.uint8)
    rows[:, 1:] = np.tile(pixels.reshape(len(pixels), -1), (1, across))[:, : 3 * width]
    return rows.tobytes()


def _deflated(data: bytes, *, last: bool) -> bytes:
    """A piece of a deflate stream that refers to nothing before it."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush(
        zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH
    )


def _chunk(out: BinaryIO, kind: bytes, data: bytes) -> None:
    out.write(struct.pack(">I", len(data)) + kind + data)
    out.write(struct.pack(">I", zlib.crc32(kind + data)))


def jpeg2000_slide(seed: Path, path: Path, width: int, height: int) -> Path:
    """A tiled JPEG 2000 slide of levels 1, 4 and 16."""

    def encode(tile: NDArray[np.uint8]) -> bytes:
        return imagecodecs.jpeg2k_encode(
            tile, level=38, codecformat="j2k", reversible=False
        )

    options = {"photometric": "rgb", "compression": 33005}
    return _block_slide(seed, path, (width, height), 3, encode, options)


def huge_slide(seed: Path, path: Path, width: int, height: int) -> Path:
    """A tiled JPEG slide of levels 1, 4, 16 and 64, made in seconds whatever its size."""

    def encode(tile: NDArray[np.uint8]) -> bytes:
        return imagecodecs.jpeg8_encode(tile, level=80, subsampling="420")

    options = {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)}
    return _block_slide(seed, path, (width, height), 4, encode, options)


def _block_slide(
    seed: Path,
    path: Path,
    size_wh: tuple[int, int],
    levels: int,
    encode: Callable[[NDArray[np.uint8]], bytes],
    options: dict[str, Any],
) -> Path:
    """A slide that repeats one block of 2048², whose tiles are encoded once; levels of factor 4."""
    if path.exists():
        return path
    width, height = size_wh
    with open_slide(seed) as slide:
        pixels = slide.read_level(0, (0, 0), (BLOCK, BLOCK))
    beside = path.with_suffix(".partial")
    text = aperio_description(width, height, MPP, OBJECTIVE)
    with tifffile.TiffWriter(beside, bigtiff=True) as writer:
        for level in range(levels):
            factor = 4**level
            small = Image.fromarray(pixels).resize(
                (BLOCK // factor,) * 2, Image.Resampling.BOX
            )
            coded = _coded_tiles(np.asarray(small), encode)
            wide, high = width // factor, height // factor
            writer.write(
                _repeated(coded, math.ceil(high / TILE), math.ceil(wide / TILE)),
                shape=(high, wide, 3), dtype=np.uint8, tile=(TILE, TILE), metadata=None, software=False,
                subfiletype=0 if level == 0 else 1, description=text if level == 0 else None, **options,
            )  # fmt: skip
    beside.replace(path)
    return path


def _coded_tiles(
    block: NDArray[np.uint8], encode: Callable[[NDArray[np.uint8]], bytes]
) -> list[list[bytes]]:
    """The encoded tiles of a block, which is repeated first where it is smaller than a tile."""
    block = np.tile(block, (max(1, TILE // len(block)),) * 2 + (1,))
    spots = range(0, len(block), TILE)
    return [
        [encode(np.ascontiguousarray(block[y : y + TILE, x : x + TILE])) for x in spots]
        for y in spots
    ]


def _repeated(coded: list[list[bytes]], rows: int, columns: int) -> Iterator[bytes]:
    side = len(coded)
    for row in range(rows):
        for column in range(columns):
            yield coded[row % side][column % side]
