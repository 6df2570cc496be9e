"""Gradients of a whole bag through the encoder, at any memory: four modes, one result.

`none` keeps every activation. `selective` recomputes only the early stages, which hold most of the memory and few
of the multiplications. `chunked` recomputes chunk by chunk. `two-pass` encodes without a graph, takes the gradient of
the features, and encodes each chunk again with it (a feature-gradient cache). Without batch statistics all four
give the gradient of the un-chunked step; dropout and stochastic depth draw the same masks again on recomputing.

The trap: with BatchNorm on batch statistics a chunk normalises by itself, so chunked modes have another gradient and
move the running statistics once per chunk (and once more on recomputing). `check_batchnorm` refuses that.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MODES = ("none", "selective", "chunked", "two-pass")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepPlan:
    """How one bag is encoded with gradients.

    Attributes:
        mode: One of `MODES`.
        chunk: Patches per encoder call where the mode works in chunks.
        precision: `fp32`, `bf16` or `fp16` for the encoder; features leave it in float32 (float64 stays).
        pad: Fill shorter calls of the encoder up to so many patches, so that a compiled one sees one shape; 0 does not.
    """

    mode: str = "none"
    chunk: int = 20
    precision: str = "fp32"
    pad: int = 0


def backward(
    encoder: nn.Module,
    pixels: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    plan: StepPlan,
) -> Tensor:
    """Add the gradients of one step to encoder and whatever `loss_of` uses.

    Args:
        encoder: Pixels (N, 3, H, W) → features (N, D).
        pixels: All patches of the step.
        loss_of: Features (N, D) → scalar loss with a graph.
        plan: Mode, chunk, precision.

    Returns:
        The loss, detached.
    """
    if plan.mode == "two-pass":
        return _two_pass(encoder, pixels, loss_of, plan)
    if plan.mode == "chunked":
        parts = [
            checkpoint(encode, encoder, part, plan, use_reentrant=False)
            for part in torch.split(pixels, plan.chunk)
        ]
        features = torch.cat(parts)
    elif plan.mode == "selective":
        with recompute_early(encoder, plan.chunk):
            features = encode(encoder, pixels, plan)
    else:
        features = encode(encoder, pixels, plan)
    loss = loss_of(features)
    torch.autograd.backward(loss)
    return loss.detach()


def encode(encoder: nn.Module, pixels: Tensor, plan: StepPlan) -> Tensor:
    """Features (N, D) of patches (N, 3, H, W) at the plan's precision, returned in float32 or float64."""
    dtype = _DTYPES.get(plan.precision)
    count = len(pixels)
    if (
        plan.pad
    ):  # one number of patches and one layout: every other one is compiled anew
        filled = pixels.new_zeros(max(plan.pad, count), *pixels.shape[1:])
        filled = filled.contiguous(memory_format=torch.channels_last)
        filled[:count] = pixels
        pixels = filled
    with torch.autocast(pixels.device.type, dtype, enabled=dtype is not None):
        features: Tensor = encoder(pixels)[:count]
    return features if features.dtype == torch.float64 else features.float()


def _two_pass(
    encoder: nn.Module,
    pixels: Tensor,
    loss_of: Callable[[Tensor], Tensor],
    plan: StepPlan,
) -> Tensor:
    chunks = torch.split(pixels, plan.chunk)
    states = []
    with torch.no_grad():
        parts = []
        for part in chunks:
            states.append(_Generators(pixels.device))
            parts.append(encode(encoder, part, plan))
    features = torch.cat(parts).requires_grad_()
    loss = loss_of(features)
    torch.autograd.backward(loss)
    assert features.grad is not None
    after = _Generators(pixels.device)
    for part, grad, state in zip(
        chunks, torch.split(features.grad, plan.chunk), states, strict=True
    ):
        state.restore()
        torch.autograd.backward(encode(encoder, part, plan), grad)
    after.restore()
    return loss.detach()


class _Generators:
    """State of the CPU's generator and that of a CUDA device, to draw the same dropout masks again."""

    def __init__(self, device: torch.device) -> None:
        self.cpu = torch.get_rng_state()
        self.device = device
        cuda = device.type == "cuda"
        self.cuda = torch.cuda.get_rng_state(device) if cuda else None

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


@contextmanager
def recompute_early(encoder: nn.Module, chunk: int) -> Iterator[None]:
    """While active, the early stages of the encoder run in chunks and keep no activations.

    Raises:
        ConfigError: The backbone has no stages that are known.
    """
    early = early_stages(encoder)
    forwards = [stage.forward for stage in early]

    def run(x: Tensor) -> Tensor:
        for forward in forwards:
            x = forward(x)
        return x

    def chunked(x: Tensor) -> Tensor:
        parts = torch.split(x, chunk)
        return torch.cat([checkpoint(run, p, use_reentrant=False) for p in parts])

    first, *others = early
    try:
        first.forward = chunked
        for stage in others:
            stage.forward = _same
        yield
    finally:
        for stage in early:
            del stage.forward


def _same(x: Tensor) -> Tensor:
    return x


def early_stages(encoder: nn.Module) -> list[nn.Module]:
    """The first half of the backbone's stages: on EfficientNet-B3 two thirds of the memory, 29 % of the work.

    Raises:
        ConfigError: The backbone has no stages that are known.
    """
    net: Any = getattr(encoder, "backbone", encoder)
    net = getattr(net, "net", net)
    stages: list[nn.Module] = []
    for name in ("blocks", "stages"):
        if isinstance(getattr(net, name, None), nn.Sequential):
            stages = list(getattr(net, name))
            break
    else:
        stages = [
            getattr(net, f"layer{i}") for i in range(1, 5) if hasattr(net, f"layer{i}")
        ]
    if len(stages) < 2:
        raise ConfigError(
            "The memory mode 'selective' does not know the stages of this backbone. Use 'chunked' or 'two-pass'."
        )
    return stages[: (len(stages) + 1) // 2]


def set_batchnorm(module: nn.Module, *, frozen: bool) -> None:
    """Put the BatchNorm layers of a module in evaluation mode (`frozen`) or leave them in training mode."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.train(not frozen)


@torch.no_grad()
def measure_batchnorm(
    encoder: nn.Module, batches: Iterable[Tensor], plan: StepPlan
) -> int:
    """Set the running statistics to the plain mean over some batches, as they are with the present weights.

    The running averages of training lag behind the weights; before statistics are frozen they are measured anew.

    Returns:
        Number of batches used; with none the statistics stay.
    """
    layers = [m for m in encoder.modules() if isinstance(m, _BatchNorm)]
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    training = encoder.training
    encoder.eval()
    count = 0
    for pixels in batches:
        for layer in layers:
            if count == 0:
                layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        # unfilled, for filling would count; uncompiled, for a pass or two are not worth a graph
        with torch.compiler.set_stance("force_eager"):
            encode(encoder, pixels, replace(plan, pad=0))
        count += 1
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    encoder.train(training)
    return count


def has_batchnorm(module: nn.Module) -> bool:
    """Whether there is any BatchNorm layer."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def check_batchnorm(batchnorm: str, mode: str, *, allowed: bool) -> None:
    """Refuse batch statistics together with a mode that recomputes or works in chunks.

    Raises:
        ConfigError: They would silently change the gradients.
    """
    if batchnorm != "frozen" and mode != "none" and not allowed:
        raise ConfigError(
            f"e2e.batchnorm = {batchnorm!r} with e2e.memory = {mode!r} would normalise each chunk by itself: other "
            "gradients than the whole step, and running statistics moved several times. Use batchnorm 'frozen', or "
            "memory 'none', or confirm with e2e.allow_batchnorm_trap = true."
        )
