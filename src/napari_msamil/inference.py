"""Patches to features, and features to the answer of the aggregator."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch

from napari_msamil.device import Precision, Runtime, choose_runtime
from napari_msamil.errors import RegionError
from napari_msamil.feature_store import patch_keys, store_key
from napari_msamil.patch_reader import PatchReader, reading_order
from napari_msamil.progress import Progress, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.config import EncoderSpec
    from napari_msamil.feature_store import FeatureStore
    from napari_msamil.models.outputs import MILOutput
    from napari_msamil.patches import PatchGrid
    from napari_msamil.progress import ProgressGen
    from napari_msamil.slide.base import Slide

FLUSH_PATCHES = 256
"""New features are written to the store when there are this many …"""
FLUSH_S = 5.0
"""… or after this time: what a killed run can lose."""
_HASHES: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()
_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


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


def encoder_id(loaded: LoadedModel, runtime: Runtime) -> str:
    """Name of everything in an encoder that a feature depends on: weights, layout, precision."""
    encoder = loaded.model.encoder
    return f"{_weights_hash(encoder, loaded.config.encoder)}-{runtime.precision}"


def _weights_hash(encoder: nn.Module, spec: EncoderSpec) -> str:
    """Hash of the specification and the weights of an encoder; the aggregator does not enter it.

    It is remembered until a weight is changed in place (torch counts that in `_version`).
    """
    state = tuple(
        (id(v), v._version) for v in encoder.state_dict(keep_vars=True).values()
    )
    known = _HASHES.get(encoder)
    if known is None or known[0] != state:
        known = (state, _hash(encoder, spec))
        _HASHES[encoder] = known
    return known[1]


def _hash(encoder: nn.Module, spec: EncoderSpec) -> str:
    digest = hashlib.sha256(spec.model_dump_json().encode())
    for name, value in sorted(encoder.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name}{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


class PatchEncoder:
    """The encoder of a model at the precision and layout of a runtime; halves its batch when memory runs out."""

    def __init__(self, loaded: LoadedModel, runtime: Runtime) -> None:
        self.runtime = runtime
        self.batch_size = runtime.batch_size or (8 if runtime.device == "cpu" else 64)
        self.notices: list[str] = []
        self.seconds = 0.0
        layout = (
            torch.channels_last if runtime.channels_last else torch.contiguous_format
        )
        encoder = loaded.model.encoder.to(runtime.torch_device)
        self._encoder = encoder.to(memory_format=layout).eval()

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches.

        Args:
            pixels: uint8 (B, H, W, 3).

        Returns:
            float32 (B, D).
        """
        start = time.perf_counter()
        parts: list[Tensor] = []
        done = 0
        while done < len(pixels):
            try:
                part = self._forward(pixels[done : done + self.batch_size])
            except torch.OutOfMemoryError:
                self._halve()
            else:
                parts.append(part)
                done += len(part)
        self.seconds += time.perf_counter() - start
        return torch.cat(parts).numpy()

    def _forward(self, pixels: NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        images = images.to(self.runtime.torch_device, non_blocking=True)
        dtype = _DTYPES.get(self.runtime.precision)
        kind = self.runtime.torch_device.type
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=bool(dtype)):
            features: Tensor = self._encoder(images)
        return features.float().cpu()

    def _halve(self) -> None:
        if self.batch_size == 1:
            raise torch.OutOfMemoryError
        self.batch_size //= 2
        if self.runtime.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        self.notices.append(
            f"Memory ran out; patches are now encoded {self.batch_size} at a time."
        )


def encode_patches(
    slide: Slide,
    grid: PatchGrid,
    loaded: LoadedModel,
    runtime: Runtime | None = None,
    store: FeatureStore | None = None,
) -> ProgressGen[FeatureBag]:
    """Read and encode the patches of a grid, coarse levels first; reading and encoding overlap.

    Args:
        slide: The open slide.
        grid: The patches.
        loaded: The model.
        runtime: Device and precision; None chooses.
        store: Features are taken from it where it has them, and put into it.

    Yields:
        Progress with the bag so far as `partial`: its arrays are filled further while the work goes on.

    Returns:
        The features in grid order.

    Raises:
        RegionError: Not one patch can be read.
    """
    runtime = runtime or choose_runtime()
    encoder = PatchEncoder(loaded, runtime)
    name = encoder_id(loaded, runtime)
    width = loaded.config.encoder.dim
    bag = FeatureBag(
        features=np.zeros((len(grid), width), np.float32),
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
        for index in _encode(slide, bag, order, encoder):
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
) -> Iterator[NDArray[np.int64]]:
    """Read and encode in the given order; yields the positions of each finished batch."""

    def fault(index: int, error: RegionError) -> None:
        bag.faults[index] = str(error)

    reader = PatchReader(
        slide, bag.grid, order=order, batch_size=encoder.batch_size, on_fault=fault
    )
    for batch in reader:
        bag.features[batch.index] = encoder(batch.pixels)
        bag.valid[batch.index] = True
        bag.timings_s["read"] = reader.busy_s / reader.threads
        bag.timings_s["encode"] = encoder.seconds
        yield batch.index


def aggregate(
    loaded: LoadedModel, bag: FeatureBag, runtime: Runtime | None = None
) -> MILOutput:
    """Ask the aggregator, in float32, with the valid patches of a bag as one batch.

    Args:
        loaded: The model.
        bag: Features in grid order.
        runtime: Device; the precision is always float32.

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
    with torch.inference_mode():
        output: MILOutput = aggregator(features, coords, scale, valid)
    return output
