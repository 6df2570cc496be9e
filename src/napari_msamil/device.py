"""Where and how precisely to compute; the only module that asks torch what the machine has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    import torch


class Precision(StrEnum):
    """Number format of the encoder; the aggregator always runs in float32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class Runtime:
    """A device with the precision and memory layout chosen for it.

    Attributes:
        device: torch device string, `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: Never `auto` here.
        channels_last: Whether images are kept channels-last.
        batch_size: Patches per encoder call, or None: found by the engine.
        exact: Whether answers are equal bit for bit whatever the number of threads; `fp32` asked for by name on a CPU.
    """

    device: str
    precision: Precision
    channels_last: bool
    batch_size: int | None = None
    exact: bool = False

    @property
    def torch_device(self) -> torch.device:
        """The device as torch's own type."""
        import torch

        return torch.device(self.device)


def choose_runtime(
    device: str = "auto", precision: str = "auto", batch_size: int | None = None
) -> Runtime:
    """Choose device and precision.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto`, `fp32`, `bf16` or `fp16`; `auto` is bf16 where the hardware has it, fp16 on
            older GPUs, else fp32. `fp32` by name is also exact on a CPU (`Runtime.exact`), which `auto` never is.
        batch_size: Patches per encoder call; None lets the engine find it.

    Raises:
        ConfigError: The device is not there, or the precision cannot run on it.
    """
    import torch

    if device == "auto":
        device = _best_device()
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ConfigError(
            f"There is no device {device!r}. Use auto, cpu, cuda, cuda:N or mps."
        )
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"The device {device!r} was asked for, but torch finds no CUDA device. Use cpu."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "The device mps was asked for, but torch finds none. Use cpu."
        )
    try:
        wanted = Precision(precision)
    except ValueError as error:
        raise ConfigError(
            f"There is no precision {precision!r}. Use auto, fp32, bf16 or fp16."
        ) from error
    if wanted is Precision.AUTO:
        wanted = _best_precision(kind)
    if wanted is Precision.FP16 and kind == "cpu":
        raise ConfigError("fp16 is not useful on a CPU. Use bf16 or fp32.")
    return Runtime(
        device,
        wanted,
        channels_last=kind != "mps",
        batch_size=batch_size,
        exact=kind == "cpu" and precision == Precision.FP32,
    )


def cores() -> int:
    """Processors that this process may use."""
    # neither Windows nor macOS has it
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def require_compiler(device: str, instead: str) -> None:
    """Compile a line of code, so that a machine that cannot is found out before hours are spent.

    Args:
        device: torch device string.
        instead: What to do where torch cannot compile, as an order.

    Raises:
        ConfigError: torch cannot compile on this machine.
    """
    import torch

    try:
        torch.compile(_probe)(torch.zeros(3, device=device))
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise ConfigError(
            f"torch cannot compile on this machine ({reason}). Install a C++ compiler (or Triton for CUDA), or {instead}."
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _best_precision(kind: str) -> Precision:
    import torch

    if kind == "cuda":
        return (
            Precision.BF16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else Precision.FP16
        )
    if kind == "cpu":
        has = torch.cpu.get_capabilities()
        return (
            Precision.BF16
            if has.get("avx512_bf16") or has.get("amx_bf16")
            else Precision.FP32
        )
    return Precision.FP32
