"""How much memory a step needs in each mode, measured on this encoder, and the fastest mode that fits.

What autograd saves for backward is counted for one and for two patches; the difference is the cost of a patch. An
end-to-end step is bound by these bytes, not by its multiplications: EfficientNet-B3 at 512 px saves 890 MB per patch in
float32, so 200 patches need 178 GB without recomputing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from napari_msamil.errors import ConfigError

from .gradients import (
    MODES,
    StepPlan,
    early_stages,
    encode,
    recompute_early,
    set_batchnorm,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

OVERHEAD = 1.25
"""Working memory of the kernels and fragmentation, as a factor on what is saved."""
CPU_SHARE = 0.6
"""Share of the free main memory a step may use; the rest is for reading ahead and the patch cache."""
FALLBACK_BYTES = 4e9
"""Assumed free memory where the machine does not say."""


@dataclass(frozen=True)
class StepCost:
    """What one patch and the weights cost, in bytes.

    Attributes:
        saved: Saved for backward per patch without recomputing.
        selective: The same where the early stages are recomputed; None where they are not known.
        feature: One feature.
        fixed: Weights, gradients and AdamW's two averages.
    """

    saved: int
    selective: int | None
    feature: int
    fixed: int

    def peak(self, mode: str, count: int, chunk: int) -> float:
        """Bytes of a step of `count` patches; infinite where the mode is not possible."""
        chunk = min(chunk, count)
        if mode == "none":
            patches: float = count * self.saved
        elif mode == "selective":
            if self.selective is None:
                return float("inf")
            patches = count * self.selective + chunk * (self.saved - self.selective)
        else:
            patches = chunk * self.saved + 2 * count * self.feature
        return self.fixed + OVERHEAD * patches


def measure_cost(
    encoder: nn.Module, size_px: int, device: torch.device, precision: str = "fp32"
) -> StepCost:
    """Measure one encoder at one patch size; the encoder is left as it was.

    Args:
        encoder: Pixels → features.
        size_px: Side of a patch.
        device: Where it runs.
        precision: `fp32`, `bf16` or `fp16`.
    """
    pixels = torch.zeros(3, 3, size_px, size_px, dtype=torch.uint8, device=device)
    plan = StepPlan("none", 1, precision)
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    running = {k: v.clone() for k, v in encoder.state_dict().items()}
    # two and three patches: BatchNorm cannot train on a single value per channel
    saved = [_saved_bytes(encoder, pixels[:n], plan, weights) for n in (2, 3)]
    selective = None
    if _has_stages(encoder):
        with recompute_early(encoder, 1):
            few = [_saved_bytes(encoder, pixels[:n], plan, weights) for n in (2, 3)]
        selective = few[1] - few[0]
    encoder.load_state_dict(running)
    parameters = sum(p.numel() * p.element_size() for p in encoder.parameters())
    with torch.no_grad():
        width = encode(encoder.eval(), pixels[:1], plan).shape[1]
    encoder.train()
    return StepCost(saved[1] - saved[0], selective, 4 * width, 4 * parameters)


def choose_plan(
    cost: StepCost, count: int, chunk: int, budget: float, precision: str
) -> StepPlan:
    """The fastest plan that fits: `none`, `selective`, then `two-pass` with ever smaller chunks.

    Args:
        cost: Of this encoder.
        count: Patches of a step.
        chunk: Largest chunk.
        budget: Bytes the step may use.
        precision: Of the encoder.

    Raises:
        ConfigError: Not even one patch at a time fits.
    """
    for mode in ("none", "selective"):
        if cost.peak(mode, count, chunk) <= budget:
            return StepPlan(mode, chunk, precision)
    while chunk >= 1:
        if cost.peak("two-pass", count, chunk) <= budget:
            return StepPlan("two-pass", chunk, precision)
        chunk //= 2
    need = cost.peak("two-pass", count, 1) / 1e9
    raise ConfigError(
        f"One patch at a time needs {need:.2f} GB, but only {budget / 1e9:.2f} GB may be used. "
        "Use smaller patches, a smaller backbone, or more memory (e2e.memory_gb)."
    )


def memory_budget(device: torch.device, memory_gb: float = 0.0) -> float:
    """Bytes a step may use: what the user says, else what is free.

    Args:
        device: Where the step runs.
        memory_gb: The user's bound in GB; 0 asks the machine.
    """
    if memory_gb:
        return memory_gb * 1e9
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return 0.9 * (free + idle)
    try:
        import psutil
    except ImportError:
        return FALLBACK_BYTES
    return CPU_SHARE * float(psutil.virtual_memory().available)


def cost_table(cost: StepCost, count: int, chunk: int) -> dict[str, float]:
    """Estimated peak of a step in GB, by mode."""
    return {mode: cost.peak(mode, count, chunk) / 1e9 for mode in MODES}


def _has_stages(encoder: nn.Module) -> bool:
    try:
        early_stages(encoder)
    except ConfigError:
        return False
    return True


def _saved_bytes(
    encoder: nn.Module, pixels: Tensor, plan: StepPlan, weights: set[int]
) -> int:
    """Bytes autograd keeps after one forward pass, weights not counted, shared storages counted once."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    encoder.train()
    set_batchnorm(
        encoder, frozen=True
    )  # batch statistics of a single patch may not exist
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = encode(encoder, pixels, plan)
    total = sum(seen.values())
    del features
    return total
