"""Features on disk, so that no patch is ever encoded twice.

One folder per slide and encoder holds shards; a shard is a safetensors file that is written beside and renamed,
and never changed. So a killed process loses at most what it had not written, two processes cannot harm each other
(at worst a patch is stored twice, with the same values), and no lock is needed, on network drives either.
Each entry carries a checksum: a damaged one is dropped and its patch encoded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.cache import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_msamil.patches import PatchGrid
    from napari_msamil.slide.base import SlideInfo

LAYOUT = 2
"""Part of every key: raised when the meaning of stored numbers changes."""

_BITS = 29
_STALE_PART_S = 24 * 3600.0
_log = logging.getLogger(__name__)


def store_key(info: SlideInfo, grid: PatchGrid, encoder_id: str) -> str:
    """Name of the folder for a slide, patch geometry and encoder.

    Everything the numbers depend on is in it, except the box of each patch (that is the patch key) and what only
    selects patches (mask, threshold, strategy). It is empty for a slide without identity: nothing is stored then.
    """
    if not info.quickhash:
        return ""
    spec = grid.spec
    facts = {
        "layout": LAYOUT,
        "slide": info.quickhash,
        "levels": info.level_sizes_wh,
        "mpp": grid.mpp,
        "scales": [(s.mpp, s.size_px) for s in spec.scales],
        "size_px0": grid.size_px0,
        "resampler": spec.resampler,
        "read_level": spec.read_level,
        "encoder": encoder_id,
    }
    whole = all(factor == round(factor) for factor in info.level_downsamples)
    if info.backend == "openslide" and not whole:
        facts["interpolated"] = (
            True  # see `Slide.read_level`: other pixels than those stored
        )
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def patch_keys(grid: PatchGrid) -> NDArray[np.int64]:
    """int64 (N,): scale, x and y of each patch packed into one number."""
    x, y = grid.coords_xy0[:, 0], grid.coords_xy0[:, 1]
    return (grid.scale.astype(np.int64) << 2 * _BITS) | (x << _BITS) | y


@dataclass(frozen=True, eq=False)
class _Shard:
    """Entries of one file that passed their checksums."""

    keys: NDArray[np.int64]
    features: NDArray[np.float32]


class FeatureStore:
    """The feature cache of one folder, shared by every program that uses it.

    Attributes:
        folder: Where it lies.
        max_bytes: When it grows beyond this, slides that were not used for longest are dropped.
    """

    def __init__(
        self, folder: Path | None = None, max_bytes: int = 20 * 1024**3
    ) -> None:
        self.folder = folder or cache_dir() / "features"
        self.max_bytes = max_bytes
        self._writable = True

    def get(
        self, key: str, patches: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Look patches up.

        Args:
            key: From `store_key`.
            patches: From `patch_keys`, (N,).

        Returns:
            bool (N,), which were found, and float32 (K, D), the features of those, in order.
        """
        found = np.zeros(len(patches), np.bool_)
        features = np.zeros((len(patches), 0), np.float32)
        for shard in self._shards(key):
            if not features.shape[1]:
                features = np.zeros((len(patches), shard.features.shape[1]), np.float32)
            place = np.searchsorted(shard.keys, patches)
            place[place == len(shard.keys)] = 0
            hit = shard.keys[place] == patches
            features[hit] = shard.features[place[hit]]
            found |= hit
        if found.any():
            self._touch(key)
        return found, features[found]

    def put(
        self, key: str, patches: NDArray[np.int64], features: NDArray[np.float32]
    ) -> bool:
        """Store features; a full or read-only disk is reported once and never stops the work.

        Args:
            key: From `store_key`; nothing is stored for an empty one.
            patches: From `patch_keys`, (N,).
            features: float32 (N, D).

        Returns:
            Whether they are on disk.
        """
        if not key or not len(patches) or not self._writable:
            return False
        try:
            self._write(self.folder / key, patches, features)
        except OSError as error:
            self._writable = False
            _log.warning(
                "The feature cache %s cannot be written (%s). Work goes on without it.",
                self.folder,
                error,
            )
            return False
        return True

    def tidy(self, key: str = "") -> None:
        """Join the shards of a slide, and drop slides not used for longest until the cache fits its size."""
        try:
            if key:
                self._join(self.folder / key)
            self._shrink(keep=key)
        except OSError as error:
            _log.info(
                "The feature cache %s could not be tidied: %s", self.folder, error
            )

    def _shards(self, key: str) -> Iterator[_Shard]:
        if key:
            for path in sorted((self.folder / key).glob("*.safetensors")):
                shard = _read_shard(path)
                if shard is not None and len(shard.keys):
                    yield shard

    def _touch(self, key: str) -> None:
        try:
            os.utime(self.folder / key)
        except OSError:
            _log.debug("cannot mark %s as used", key)

    def _write(
        self,
        folder: Path,
        patches: NDArray[np.int64],
        features: NDArray[np.float32],
    ) -> Path:
        from safetensors.numpy import save

        folder.mkdir(parents=True, exist_ok=True)
        order = np.argsort(patches, kind="stable")
        keys = np.ascontiguousarray(patches[order])
        rows = np.ascontiguousarray(features[order], np.float32)
        data = save({"keys": keys, "features": rows, "checks": _checks(keys, rows)})
        path = folder / f"{uuid.uuid4().hex}.safetensors"
        part = path.with_suffix(".part")
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def _join(self, folder: Path, most: int = 8) -> None:
        """Make one shard of many; a reader meanwhile sees the old ones, the new one, or both."""
        paths = sorted(folder.glob("*.safetensors"))
        if len(paths) <= most:
            return
        shards = [s for s in map(_read_shard, paths) if s is not None and len(s.keys)]
        if shards:
            keys = np.concatenate([s.keys for s in shards])
            features = np.concatenate([s.features for s in shards])
            keys, first = np.unique(keys, return_index=True)
            self._write(folder, keys, features[first])
        for path in paths:
            path.unlink(missing_ok=True)

    def _shrink(self, keep: str) -> None:
        now = time.time()
        sizes: dict[Path, int] = {}
        for folder in self.folder.iterdir():
            sizes[folder] = 0
            for path in folder.iterdir():
                stat = path.stat()
                if path.suffix == ".part" and now - stat.st_mtime > _STALE_PART_S:
                    path.unlink(missing_ok=True)
                sizes[folder] += stat.st_size
        total = sum(sizes.values())
        for folder in sorted(sizes, key=lambda f: f.stat().st_mtime):
            if total <= self.max_bytes:
                return
            if folder.name != keep:
                shutil.rmtree(folder, ignore_errors=True)
                total -= sizes[folder]


def _checks(
    keys: NDArray[np.int64], features: NDArray[np.float32]
) -> NDArray[np.uint32]:
    """CRC-32 of each entry: its key, then its values."""
    return np.array(
        [
            zlib.crc32(row, zlib.crc32(key))
            for key, row in zip(keys, features, strict=True)
        ],
        np.uint32,
    )


def _read_shard(path: Path) -> _Shard | None:
    """Read a shard without the entries that are damaged; a file that makes no sense is removed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(path.read_bytes())
        keys, features, checks = (tensors[n] for n in ("keys", "features", "checks"))
        good = _checks(keys, features) == checks
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        _log.warning("The cache file %s is damaged and was removed: %s", path, error)
        _remove(path)
        return None
    if not good.all():
        _log.warning(
            "%d damaged entries in the cache file %s", int((~good).sum()), path
        )
    return _Shard(keys[good], features[good])


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        _log.debug("cannot remove %s", path)
