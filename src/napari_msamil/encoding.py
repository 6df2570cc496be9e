"""The encoder of a model at work: precision, memory layout, batches of one fixed shape.

A feature must not depend on what else is in the batch, or a resumed, edited or distributed run would differ from a
plain one. It does depend, in the last bit, on the shape of the batch and on the place in it: vectorised loops treat
the last elements of a small array differently (seen in the squeeze-and-excitation of EfficientNet-B3). So every batch
has the same shape, each patch has a place that follows from its position on the slide, and empty places are black.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch

from napari_msamil.device import Precision, Runtime, require_compiler
from napari_msamil.exact import Crew
from napari_msamil.models.folding import ready_for_inference, state_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.config import EncoderSpec
    from napari_msamil.patch_reader import PatchBatch
    from napari_msamil.patches import PatchGrid

CPU_SHARE = 4
"""Patches of 256 pixels that one thread of a CPU encodes at a time."""
LARGE_PX = 384
"""From this side on each thread takes one patch: no place of a batch stays empty, and a stopped run waits less."""
MAX_CREW = 8
"""Workers of a CPU with many cores: more would wait for Python's lock and fill the memory with their maps."""
CPU_COMPILER: dict[str, str | int | bool | Callable[..., object]] = {
    "freezing": True,
    "cpp_wrapper": True,
}
GPU_BATCH = 64
MAX_QUEUE = 3
"""A batch goes out with empty places rather than let more patches than this wait for one place."""
_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
_HASHES: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()


def encoder_id(loaded: LoadedModel, runtime: Runtime, *, compiled: bool = False) -> str:
    """Name of everything a feature depends on: specification, weights, precision, exactness, compilation."""
    encoder = loaded.model.encoder
    parts = [weights_hash(encoder, loaded.config.encoder), str(runtime.precision)]
    parts.append("exact" if runtime.exact else "folded")
    if compiled:
        parts.append("frozen" if runtime.device == "cpu" else "compiled")
    return "-".join(parts)


def weights_hash(encoder: nn.Module, spec: EncoderSpec) -> str:
    """Hash of the specification and the weights of an encoder; the aggregator does not enter it.

    It is remembered until a weight is changed.
    """
    state = state_version(encoder)
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
    """The encoder of a model at the precision and layout of a runtime; halves its batch when memory runs out.

    Attributes:
        batch_size: Patches per forward pass, always exactly so many.
        notices: Sentences for the user that were not shown yet.
        seconds: Time spent encoding.
        width: Width of a feature.
    """

    def __init__(
        self, loaded: LoadedModel, runtime: Runtime, *, compiled: bool = False
    ) -> None:
        self.runtime = runtime
        on_cpu = runtime.torch_device.type == "cpu"
        self._crew = Crew(None if runtime.exact else MAX_CREW) if on_cpu else None
        self.batch_size = self._wanted_batch(loaded)
        self.notices: list[str] = []
        self.seconds = 0.0
        self.width = loaded.config.feature_dim
        layout = (
            torch.channels_last if runtime.channels_last else torch.contiguous_format
        )
        encoder = loaded.model.encoder.to(runtime.torch_device)
        self._encoder = encoder.to(memory_format=layout).eval()
        self._compiled = compiled
        self._call: Callable[[Tensor], Tensor] | None = None

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches, as many at a time as the batch holds; an incomplete one is filled up with black.

        Args:
            pixels: uint8 (N, H, W, 3).

        Returns:
            float32 (N, dim).

        Raises:
            torch.OutOfMemoryError: Not even one patch fits into memory.
        """
        start = time.perf_counter()
        out = np.empty((len(pixels), self.width), np.float32)
        done = 0
        while done < len(pixels):
            part = _filled_up(pixels[done : done + self.batch_size], self.batch_size)
            try:
                features = self._features(part)
            except RuntimeError as error:
                self._halve(error)
                continue
            count = min(len(part), len(pixels) - done)
            out[done : done + count] = features[:count]
            done += count
        self.seconds += time.perf_counter() - start
        return out

    def _features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The batch at once on a GPU; on a CPU a share of it for each worker, which computes alone.

        On few cores that is one thread, a sixth faster than all threads for one patch (seen: 71 against 82 ms, B3 at
        512 pixels, two cores).
        """
        if self._call is None:
            self._call = self._made_ready(pixels.shape[1])
            if self._compiled and self._crew is not None:
                self._crew.map(self._forward, self._shares(pixels)[:1])
        if self._crew is None:
            return self._forward(pixels)
        return np.concatenate(self._crew.map(self._forward, self._shares(pixels)))

    def _shares(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """What each worker encodes; the first share is compiled alone, or each worker would compile for itself."""
        assert self._crew is not None
        share = math.ceil(self.batch_size / self._crew.size)
        return [pixels[i : i + share] for i in range(0, len(pixels), share)]

    def _made_ready(self, size_px: int) -> Callable[[Tensor], Tensor]:
        """At the first patches: a run that finds all features in the store does not wait for it."""
        module: nn.Module = self._encoder
        if not self.runtime.exact:
            dtype = _DTYPES.get(self.runtime.precision)
            module = ready_for_inference(self._encoder, size_px, dtype)
        return self._compile(module) if self._compiled else module

    def _compile(self, module: nn.Module) -> nn.Module:
        """On a CPU frozen, so that oneDNN packs weights once and fuses activations into convolutions, and called from C++.

        What calls the parts from Python holds its lock while a fused part computes, and the workers wait for each
        other (seen, B3 at 512 pixels on two cores, ms per patch: 117 plain, 116 frozen, 95 frozen and from C++).
        """
        require_compiler(self.runtime.device, "run without --compile")
        options = None if self._crew is None else CPU_COMPILER
        return cast("nn.Module", torch.compile(module, options=options))

    def _forward(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Bytes go to the device as they are; permuted they already are channels-last."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        images = images.to(self.runtime.torch_device, non_blocking=True)
        if not self.runtime.channels_last:
            images = images.contiguous()
        dtype = _DTYPES.get(self.runtime.precision)
        kind = self.runtime.torch_device.type
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=bool(dtype)):
            assert self._call is not None
            features: Tensor = self._call(images)
        array: NDArray[np.float32] = features.float().cpu().numpy()
        return array

    def _wanted_batch(self, loaded: LoadedModel) -> int:
        wanted = self.runtime.batch_size
        if self._crew is None:
            return wanted or GPU_BATCH
        largest = max(scale.size_px for scale in loaded.config.patches.scales)
        share = CPU_SHARE if largest < LARGE_PX else 1
        if wanted:
            share = math.ceil(wanted / self._crew.size)
        return self._crew.size * (1 if self.runtime.exact else share)

    def _halve(self, error: RuntimeError) -> None:
        """Go on with half the batch if memory ran out; any other error is raised again."""
        out_of_memory = isinstance(error, torch.OutOfMemoryError)
        if not (out_of_memory or "not enough memory" in str(error)):
            raise error
        if self.batch_size == 1:
            raise error
        self.batch_size //= 2
        if self.runtime.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        self.notices.append(
            f"Memory ran out; patches are now encoded {self.batch_size} at a time."
        )


def _filled_up(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if len(pixels) == size:
        return pixels
    full = np.zeros((size, *pixels.shape[1:]), np.uint8)
    full[: len(pixels)] = pixels
    return full


def batch_places(grid: PatchGrid, batch_size: int) -> NDArray[np.int64]:
    """Place of each patch in its batch, int64 (N,): neighbours get different ones, selection does not matter."""
    side = np.asarray(grid.size_px0, np.int64)[grid.scale]
    column, row = grid.coords_xy0[:, 0] // side, grid.coords_xy0[:, 1] // side
    places: NDArray[np.int64] = (column + math.isqrt(batch_size) * row) % batch_size
    return places


def in_places(
    batches: Iterable[PatchBatch], places: NDArray[np.int64], batch_size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]]:
    """Put patches into batches of one shape, each at its place.

    Args:
        batches: Patches as they are read.
        places: From `batch_places`.
        batch_size: Places of a batch.

    Yields:
        Positions in the grid (K,), their places (K,), and pixels uint8 (batch_size, H, W, 3), black where empty.
    """
    rooms: dict[int, _Room] = {}
    for batch in batches:
        room = rooms.setdefault(batch.pixels.shape[1], _Room(batch_size))
        for index, pixels in zip(batch.index.tolist(), batch.pixels, strict=True):
            room.add(index, int(places[index]), pixels)
            if room.ready:
                yield room.take()
    for room in rooms.values():
        while room.waiting:
            yield room.take()


class _Room:
    """Patches of one size that wait for a batch, a queue per place."""

    def __init__(self, places: int) -> None:
        self._queues: list[deque[tuple[int, NDArray[np.uint8]]]] = [
            deque() for _ in range(places)
        ]
        self._longest = 0
        self.waiting = 0

    def add(self, index: int, place: int, pixels: NDArray[np.uint8]) -> None:
        self._queues[place].append((index, pixels))
        self._longest = max(self._longest, len(self._queues[place]))
        self.waiting += 1

    @property
    def ready(self) -> bool:
        return self._longest > MAX_QUEUE or all(self._queues)

    def take(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """The first of each queue."""
        places = [place for place, queue in enumerate(self._queues) if queue]
        taken = [self._queues[place].popleft() for place in places]
        self._longest = max(map(len, self._queues))
        self.waiting -= len(taken)
        shape = taken[0][1].shape
        pixels = np.zeros((len(self._queues), *shape), np.uint8)
        for place, (_, one) in zip(places, taken, strict=True):
            pixels[place] = one
        index = np.array([i for i, _ in taken], np.int64)
        return index, np.array(places, np.int64), pixels
