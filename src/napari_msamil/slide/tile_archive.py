"""A pyramid's tiles as JPEGs in one zip file: written while streaming, readable meanwhile, checked by CRC."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
import zipfile
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np

from napari_msamil.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

TILE_PX = 512
QUALITY = 88
"""JPEG quality: the tiles are only looked at, patches are always read from the slide."""
INDEX = "index.json"
DAMAGED = (OSError, zipfile.BadZipFile, KeyError, ValueError, RuntimeError, EOFError)
STALE_PART_S = 24 * 3600.0


class TileArchive:
    """Tiles of several levels in one file. Safe for threads.

    Args:
        path: The finished file, or the file to become.
        stamp: What the tiles were made from; a finished file with another stamp is refused.
        writing: Make a new one beside `path`; `finish` gives it its name.

    Raises:
        StoreError: There is no finished file of this stamp, or a new one cannot be made.
    """

    def __init__(self, path: Path, stamp: str, *, writing: bool = False) -> None:
        self._final = path
        self._stamp = stamp
        self._lock = threading.Lock()
        self._part = (
            path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part") if writing else None
        )
        try:
            if self._part is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._zip = zipfile.ZipFile(self._part, "w", zipfile.ZIP_STORED)
            else:
                self._zip = zipfile.ZipFile(path)
                self._check()
            self._names = set(self._zip.namelist())
        except DAMAGED as error:
            raise StoreError(
                f"The virtual pyramid {path} cannot be {'written' if writing else 'read'} ({error})."
            ) from error

    def put(self, level: int, column: int, row: int, pixels: NDArray[np.uint8]) -> None:
        """Add one tile, uint8 (H, W, 3).

        Raises:
            StoreError: The disk is full or gone.
        """
        data = imagecodecs.jpeg8_encode(pixels, level=QUALITY)
        name = f"{level}/{row}_{column}.jpg"
        try:
            with self._lock:
                self._zip.writestr(name, data)
                self._names.add(name)
        except OSError as error:
            raise StoreError(
                f"The virtual pyramid {self._final} cannot be written: {error.strerror or error}. Free some space, or "
                "move the cache with MSAMIL_CACHE."
            ) from error

    def get(self, level: int, column: int, row: int) -> NDArray[np.uint8] | None:
        """One tile, uint8 (H, W, 3), or None where there is none yet or it is damaged."""
        name = f"{level}/{row}_{column}.jpg"
        with self._lock:
            if name not in self._names:
                return None
            try:
                data = self._zip.read(name)
            except DAMAGED:
                return None
        try:
            return np.asarray(imagecodecs.jpeg8_decode(data))
        except DAMAGED:
            return None

    def finish(self) -> None:
        """Complete the file and give it its name; it stays readable.

        Raises:
            StoreError: The disk is full or gone.
        """
        if self._part is None:
            return
        with self._lock:
            try:
                self._zip.writestr(INDEX, json.dumps({"stamp": self._stamp}))
                self._zip.close()
                try:
                    self._part.replace(self._final)
                except PermissionError:
                    # Windows: another process finished the same pyramid and is reading it.
                    self._part.unlink(missing_ok=True)
                self._zip = zipfile.ZipFile(self._final)
            except DAMAGED as error:
                raise StoreError(
                    f"The virtual pyramid {self._final} cannot be finished ({error}). Free some space, or move the "
                    "cache with MSAMIL_CACHE."
                ) from error
            self._part = None

    def close(self) -> None:
        """Release the file; an unfinished one is removed."""
        with self._lock:
            self._names = set()
            self._zip.close()
            if self._part is not None:
                self._part.unlink(missing_ok=True)

    def _check(self) -> None:
        try:
            found = json.loads(self._zip.read(INDEX))
            if found != {"stamp": self._stamp}:
                raise ValueError("it was made from another slide")
        except DAMAGED:
            self._zip.close()  # Windows could not replace it otherwise
            raise


def prune(folder: Path, max_bytes: int) -> None:
    """Remove leftovers of killed runs, and the least recently used files beyond a size."""
    now, total = time.time(), 0
    files = [(file, file.stat()) for file in folder.glob("*") if file.is_file()]
    for file, state in sorted(files, key=lambda item: item[1].st_mtime, reverse=True):
        total += state.st_size
        stale = file.suffix == ".part" and now - state.st_mtime > STALE_PART_S
        if stale or (total > max_bytes and file.suffix != ".part"):
            try:
                file.unlink()
            except OSError:
                continue  # in use elsewhere; the next run tries again


def touch(path: Path) -> None:
    """Mark a file as recently used."""
    try:
        os.utime(path)
    except OSError:
        return
