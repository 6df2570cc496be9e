"""Patches to features, and features to the answer of the aggregator."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_msamil.device import Runtime, choose_runtime
from napari_msamil.encoding import PatchEncoder, batch_places, encoder_id, in_places
from napari_msamil.errors import RegionError
from napari_msamil.exact import one_thread
from napari_msamil.feature_store import patch_keys, store_key
from napari_msamil.patch_reader import PatchReader, reading_order
from napari_msamil.progress import Progress, Stage

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.feature_store import FeatureStore
    from napari_msamil.models.outputs import MILOutput
    from napari_msamil.patches import PatchGrid
    from napari_msamil.progress import ProgressGen
    from napari_msamil.slide.base import Slide

FLUSH_PATCHES = 256
"""New features are written to the store when there are this many …"""
FLUSH_S = 5.0
"""… or after this time: what a killed run can lose."""


@dataclass(frozen=True, eq=False)
class FeatureBag:
    """Features of the patches of a grid, in grid order.

    Attributes:
        features: float32 (N, D), zero where `valid` is False.
        grid: The patches.
        encoder_id: Weights, layout and precision that made the features.
        valid: bool (N,), False where a patch has no features: it cannot be read, or its turn has not come.
        faults: Reason by position, for patches that cannot be read.
        timings_s: Seconds spent in `read` (waiting excluded) and in `encode`.
    """

    features: NDArray[np.float32]
    grid: PatchGrid
    encoder_id: str
    valid: NDArray[np.bool_]
    faults: dict[int, str]
    timings_s: dict[str, float]

    def __len__(self) -> int:
        return len(self.features)


def encode_patches(
    slide: Slide,
    grid: PatchGrid,
    loaded: LoadedModel,
    runtime: Runtime | None = None,
    store: FeatureStore | None = None,
    *,
    compiled: bool = False,
) -> ProgressGen[FeatureBag]:
    """Read and encode the patches of a grid, coarse levels first; reading and encoding overlap.

    Args:
        slide: The open slide.
        grid: The patches.
        loaded: The model.
        runtime: Device and precision; None chooses.
        store: Features are taken from it where it has them, and put into it.
        compiled: Compile the encoder first (`torch.compile`: a wait of up to minutes that pays on many patches).

    Yields:
        Progress with the bag so far as `partial`: its arrays are filled further while the work goes on.

    Returns:
        The features in grid order.

    Raises:
        RegionError: Not one patch can be read.
    """
    runtime = runtime or choose_runtime()
    encoder = PatchEncoder(loaded, runtime, compiled=compiled)
    name = encoder_id(loaded, runtime, compiled=compiled)
    bag = FeatureBag(
        features=np.zeros((len(grid), encoder.width), np.float32),
        grid=grid,
        encoder_id=name,
        valid=np.zeros(len(grid), np.bool_),
        faults={},
        timings_s={"read": 0.0, "encode": 0.0},
    )
    cache = _CachedFeatures(slide, bag, store)
    order = reading_order(slide.info, grid)
    order = order[~bag.valid[order]]
    yield Progress(Stage.ENCODE, len(grid) - len(order), len(grid), partial=bag)
    try:
        with closing(_encode(slide, bag, order, encoder)) as finished:
            for index in finished:
                cache.add(index)
                done = int(bag.valid.sum()) + len(bag.faults)
                notice = encoder.notices.pop() if encoder.notices else ""
                yield Progress(Stage.ENCODE, done, len(grid), notice, partial=bag)
    finally:
        cache.close()
    if not bag.valid.any():
        reason = next(iter(bag.faults.values()), "the grid is empty")
        raise RegionError(f"No patch of {slide.info.path} can be read: {reason}")
    return bag


class _CachedFeatures:
    """A bag and the store it is filled from and written to, some patches at a time."""

    def __init__(
        self, slide: Slide, bag: FeatureBag, store: FeatureStore | None
    ) -> None:
        self._bag = bag
        self._store = store
        self._waiting: list[NDArray[np.int64]] = []
        self._written = time.monotonic()
        if store is None:
            return
        self._key = store_key(slide.info, bag.grid, bag.encoder_id)
        self._patches = patch_keys(bag.grid)
        found, features = store.get(self._key, self._patches)
        if found.any():
            bag.features[found] = features
            bag.valid[found] = True

    def add(self, index: NDArray[np.int64]) -> None:
        """Note new features; they are written once they are many or old enough."""
        if self._store is None:
            return
        self._waiting.append(index)
        many = sum(map(len, self._waiting)) >= FLUSH_PATCHES
        if many or time.monotonic() - self._written > FLUSH_S:
            self._flush()

    def close(self) -> None:
        """Write what is left, also when the work was stopped."""
        if self._store is not None and self._waiting:
            self._flush()
            self._store.tidy(self._key)

    def _flush(self) -> None:
        assert self._store is not None
        index = np.concatenate(self._waiting)
        self._store.put(self._key, self._patches[index], self._bag.features[index])
        self._waiting.clear()
        self._written = time.monotonic()


def _encode(
    slide: Slide,
    bag: FeatureBag,
    order: NDArray[np.int64],
    encoder: PatchEncoder,
) -> Generator[NDArray[np.int64]]:
    """Read and encode in the given order; yields the positions of each finished batch."""

    def fault(index: int, error: RegionError) -> None:
        bag.faults[index] = str(error)

    size = encoder.batch_size
    reader = PatchReader(slide, bag.grid, order=order, batch_size=size, on_fault=fault)
    places = batch_places(bag.grid, size)
    with closing(reader.__iter__()) as batches:
        for index, place, pixels in in_places(batches, places, size):
            bag.features[index] = encoder(pixels)[place]
            bag.valid[index] = True
            bag.timings_s["read"] = reader.busy_s / reader.threads
            bag.timings_s["encode"] = encoder.seconds
            yield index


def aggregate(
    loaded: LoadedModel, bag: FeatureBag, runtime: Runtime | None = None
) -> MILOutput:
    """Ask the aggregator, in float32, with the valid patches of a bag as one batch.

    An exact runtime lets one thread compute, so that the bits are the same on any number of them.

    Args:
        loaded: The model.
        bag: Features in grid order.
        runtime: Device and exactness; the precision is always float32.

    Returns:
        Output for a batch of one bag; invalid patches have attention 0.
    """
    device = torch.device(runtime.device if runtime else "cpu")
    aggregator = loaded.model.aggregator.to(device).eval()
    size = np.asarray(bag.grid.size_wh0, np.float64)
    shares = (bag.grid.coords_xy0 / size).astype(np.float32)
    inputs = [bag.features, shares, bag.grid.scale.astype(np.int64)]
    features, coords, scale = (torch.from_numpy(a)[None].to(device) for a in inputs)
    valid = None if bag.valid.all() else torch.from_numpy(bag.valid)[None].to(device)
    with torch.inference_mode(), one_thread(bool(runtime and runtime.exact)):
        output: MILOutput = aggregator(features, coords, scale, valid)
    return output
