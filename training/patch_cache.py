"""Decoded patches of whole slides in a folder, so that a second training decodes nothing.

One uncompressed `.npy` file per slide, read as a memory map: a draw touches only the pages of its patches. The name is
a hash of all the pixels depend on (identity of the slide, resolution, scales, resampler, each box), so a file is never
stale. Files are written beside and renamed, a damaged one is made again, and the longest unused ones are removed when
the folder outgrows its bound. Several trainings may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_msamil.patches import PatchGrid
    from napari_msamil.slide.base import SlideInfo


class PatchCache:
    """Decoded patches by key.

    Args:
        folder: Made when something is put into it.
        max_bytes: Bound on all files together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._writable = True

    def takes(self, size: int) -> bool:
        """Whether a slide of so many bytes may be put in: not where it is too large, nor after writing has failed."""
        return self._writable and 0 < size <= self.max_bytes

    def get(self, key: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """All patches of a slide as a read-only memory map; None where there is no whole file of that shape."""
        if not key:
            return None
        path = self._path(key)
        try:
            found: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
            os.utime(path)
        except (OSError, ValueError, EOFError):
            return None
        return found if found.shape == shape and found.dtype == np.uint8 else None

    def put(self, key: str, pixels: NDArray[np.uint8]) -> None:
        """Keep the patches of a slide; where that fails (a full disk) nothing breaks and nothing more is put in.

        Args:
            key: Of `pixels_key`; empty keeps nothing.
            pixels: uint8 (N, H, W, 3).
        """
        if not key or not self.takes(pixels.nbytes):
            return
        path = self._path(key)
        beside = path.with_name(f"{key}.{os.getpid()}-{get_ident()}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(pixels.nbytes)
            with beside.open("wb") as file:
                np.save(file, pixels, allow_pickle=False)
            beside.replace(path)
        except OSError:
            self._writable = False
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove the longest unused files, and what killed trainings left, until `size` more bytes fit."""
        files = []
        for path in (*self.folder.glob("*.npy"), *self.folder.glob("*.part")):
            with suppress(OSError):
                stat = path.stat()
                files.append((stat.st_mtime, stat.st_size, path))
        total = sum(length for _, length, _ in files)
        for _, length, path in sorted(files, key=lambda file: file[0]):
            if total + size <= self.max_bytes:
                return
            with suppress(OSError):
                path.unlink()
                total -= length

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"


def pixels_key(info: SlideInfo, grid: PatchGrid) -> str:
    """Name for the pixels of a grid; empty for a slide without identity, which is not kept.

    Args:
        info: The slide.
        grid: Its patches.
    """
    if not info.quickhash:
        return ""
    spec = grid.spec
    facts = {
        "slide": info.quickhash,
        "levels": info.level_sizes_wh,
        "mpp": grid.mpp,
        "scales": [(s.mpp, s.size_px) for s in spec.scales],
        "size_px0": grid.size_px0,
        "resampler": spec.resampler,
        "read_level": spec.read_level,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(grid.coords_xy0.tobytes() + grid.scale.tobytes())
    return digest.hexdigest()[:32]
