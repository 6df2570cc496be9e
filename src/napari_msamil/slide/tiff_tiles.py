"""Storage tiles of a TIFF, decoded one by one in any thread.

tifffile reads the directories, imagecodecs decodes the tiles; the colour space of a JPEG tile comes from the
TIFF's photometric tag, never from the JPEG itself (Aperio writes RGB into JPEGs that look like YCbCr).
"""

from __future__ import annotations

import logging
import struct
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import tifffile

from napari_msamil.errors import RegionError, SlideError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Decoder = Callable[..., tuple[Any, Any, Any]]

CACHE_BYTES = 64 << 20
"""Decoded tiles kept per slide, so that neighbouring reads decode a shared tile once."""
LARGEST_TILE_BYTES = 256 << 20
"""No scanner writes larger storage tiles; a header that asks for more is damaged or hostile."""
BROKEN = (
    OSError,
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    struct.error,
    ArithmeticError,
    MemoryError,
    AssertionError,
    NotImplementedError,
    tifffile.TiffFileError,
)
"""What tifffile and imagecodecs raise on damaged files (imagecodecs' own errors are RuntimeErrors)."""


class _Quiet(logging.Filter):
    """Keeps tifffile's log of a damaged file from users, who get one sentence instead; per thread."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.here, "on", False)


_quiet = _Quiet()
logging.getLogger("tifffile").addFilter(_quiet)


class TiffLevel:
    """The tiles of one TIFF directory.

    Args:
        page: The directory; nothing of it refers to the open file afterwards.

    Raises:
        SlideError: The pixels are not 8-bit grey, RGB or YCbCr.
    """

    def __init__(self, page: tifffile.TiffPage) -> None:
        samples = page.samplesperpixel
        if page.dtype != np.uint8 or samples not in (1, 3, 4) or page.planarconfig != 1:
            raise SlideError(
                f"its pixels are {samples} × {page.dtype}, and 8-bit grey or RGB is needed"
            )
        if page.compression not in tifffile.TIFF.DECOMPRESSORS:
            raise SlideError(f"its compression ({int(page.compression)}) is unknown")
        if page.photometric not in (1, 2, 6) or page.imagedepth != 1:
            raise SlideError("its colours are neither grey, RGB nor YCbCr")
        self.size_wh = (int(page.imagewidth), int(page.imagelength))
        if page.is_tiled:
            self.tile_size_wh = (int(page.tilewidth), int(page.tilelength))
        else:
            rows = min(int(page.rowsperstrip), self.size_wh[1])
            self.tile_size_wh = (self.size_wh[0], rows)
        if min(*self.size_wh, *self.tile_size_wh) < 1:
            raise SlideError("its header gives an image or tiles of no size")
        self.tile_bytes = self.tile_size_wh[0] * self.tile_size_wh[1] * samples
        if self.tile_bytes > LARGEST_TILE_BYTES:
            raise SlideError("it is not tiled")
        self.columns = -(-self.size_wh[0] // self.tile_size_wh[0])
        self.rows = -(-self.size_wh[1] // self.tile_size_wh[1])
        listed = min(len(page.dataoffsets), len(page.databytecounts))
        if listed < self.columns * self.rows:
            raise SlideError("its list of tiles is incomplete")
        self.compression = int(page.compression)
        self._offsets = np.asarray(page.dataoffsets, np.uint64)
        self._byte_counts = np.asarray(page.databytecounts, np.uint64)
        self._decode: Decoder = page.decode
        self._tables = page.jpegtables

    @property
    def has_holes(self) -> bool:
        """Whether some tiles are not stored; readers differ in what they show there."""
        return bool((self._byte_counts[: self.columns * self.rows] == 0).any())

    def place(self, column: int, row: int) -> tuple[int, int]:
        """Offset and byte count of a tile in the file; 0 bytes where it is not stored."""
        index = row * self.columns + column
        return int(self._offsets[index]), int(self._byte_counts[index])

    def heaviest(self) -> tuple[int, int]:
        """Column and row of the tile with the most bytes: the one with the most detail."""
        index = int(np.argmax(self._byte_counts[: self.columns * self.rows]))
        return index % self.columns, index // self.columns

    def decode(self, data: bytes, column: int, row: int) -> NDArray[np.uint8]:
        """Pixels of a tile, uint8 (tile height, tile width, 3).

        Raises:
            Exceptions listed in `BROKEN`: The data is damaged.
        """
        index = row * self.columns + column
        segment, _, _ = self._decode(
            data, index, jpegtables=self._tables, _fullsize=True
        )
        if segment is None:
            raise ValueError("the tile is empty")
        pixels = np.asarray(segment)[0]
        width, height = self.tile_size_wh
        if (
            pixels.dtype != np.uint8
            or pixels.shape[1] != width
            or pixels.shape[0] > height
        ):
            raise ValueError(f"the tile decodes to {pixels.dtype} {pixels.shape}")
        if pixels.shape[2] == 1:
            pixels = np.repeat(pixels, 3, axis=2)
        if pixels.shape[0] < height:  # the last strip of an untiled file is shorter
            pixels = np.pad(pixels, ((0, height - pixels.shape[0]), (0, 0), (0, 0)))
        return np.ascontiguousarray(pixels[:, :, :3])


class TileFile:
    """An open file with tiled levels: positioned reads, decoding, a bounded cache. Safe for threads.

    Args:
        path: The file.
        levels: Its levels, finest first.
        background_rgb: Colour of tiles that are not stored.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(
        self, path: Path, levels: list[TiffLevel], background_rgb: tuple[int, int, int]
    ) -> None:
        self.levels = levels
        self.path = path
        self._background = background_rgb
        self._file: BinaryIO | None = path.open("rb")
        self._lock = threading.Lock()
        self._tiles: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = (
            OrderedDict()
        )
        self._held = 0

    def tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        """Decode one tile, past the cache; uint8 (tile height, tile width, 3).

        Raises:
            RegionError: It cannot be read or decoded.
            SlideError: There is no such tile, or the file is closed.
        """
        source = self._level(level, column, row)
        offset, count = source.place(column, row)
        if count == 0:
            width, height = source.tile_size_wh
            return np.full((height, width, 3), self._background, np.uint8)
        try:
            return source.decode(self._bytes(offset, count), column, row)
        except BROKEN as error:
            raise RegionError(
                f"{self.path.name}: tile {column}, {row} of level {level} cannot be decoded "
                f"({_reason(error)}). The file may be damaged; the rest of it stays readable."
            ) from error

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """A region inside a level, in its pixels; uint8 (h, w, 3).

        Raises:
            RegionError: One of its tiles cannot be decoded.
        """
        width, height = self.levels[level].tile_size_wh
        out = np.empty((h, w, 3), np.uint8)
        for row in range(y // height, (y + h - 1) // height + 1):
            top, bottom = max(y, row * height), min(y + h, (row + 1) * height)
            for column in range(x // width, (x + w - 1) // width + 1):
                left, right = max(x, column * width), min(x + w, (column + 1) * width)
                pixels = self._cached_tile(level, column, row)
                out[top - y : bottom - y, left - x : right - x] = pixels[
                    top - row * height : bottom - row * height,
                    left - column * width : right - column * width,
                ]
        return out

    def close(self) -> None:
        """Release the file, after the read in flight; closing twice is fine."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None
            self._tiles.clear()
            self._held = 0

    def _level(self, level: int, column: int, row: int) -> TiffLevel:
        source = self.levels[level]
        if not (0 <= column < source.columns and 0 <= row < source.rows):
            raise SlideError(
                f"{self.path.name}: level {level} has {source.columns} × {source.rows} tiles, "
                f"there is no tile {column}, {row}."
            )
        return source

    def _cached_tile(self, level: int, column: int, row: int) -> NDArray[np.uint8]:
        key = (level, column, row)
        with self._lock:
            pixels = self._tiles.get(key)
            if pixels is not None:
                self._tiles.move_to_end(key)
                return pixels
        pixels = self.tile(level, column, row)
        with self._lock:
            if key not in self._tiles and self._file is not None:
                self._tiles[key] = pixels
                self._held += pixels.nbytes
            while self._held > CACHE_BYTES and len(self._tiles) > 1:
                self._held -= self._tiles.popitem(last=False)[1].nbytes
        return pixels

    def _bytes(self, offset: int, count: int) -> bytes:
        if count > LARGEST_TILE_BYTES:
            raise ValueError(f"a tile of {count} bytes is not plausible")
        with self._lock:
            if self._file is None:
                raise SlideError(
                    f"{self.path.name} is closed; open it again to read from it."
                )
            # Windows has no pread; one seek under the lock costs little beside decoding.
            self._file.seek(offset)
            data = self._file.read(count)
        if len(data) < count:
            raise ValueError(f"the file ends {count - len(data)} bytes too early")
        return data


def read_levels(
    path: Path, pick: Callable[[tifffile.TiffFile], list[Any]]
) -> list[TiffLevel]:
    """The levels of a TIFF that `pick` chooses among its directories; the file is closed again.

    Args:
        path: The TIFF.
        pick: Gets the open `TiffFile`, returns directories, finest first.

    Raises:
        SlideError: It is no readable TIFF, or a directory does not hold plain pixels.
    """
    _quiet.here.on = True
    try:
        with tifffile.TiffFile(path) as tiff:
            return [TiffLevel(page) for page in pick(tiff)]
    except BROKEN as error:
        raise SlideError(
            f"{path.name} is a damaged TIFF ({_reason(error)})."
        ) from error
    except SlideError as error:
        raise SlideError(f"{path.name} cannot be read directly: {error}.") from error
    finally:
        _quiet.here.on = False


def _reason(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160].rstrip(".")
