"""Self-distillation without labels (DINO), the paper's alternative to end-to-end training (Table 3, Figure 3b).

A student sees all crops of a patch, an exponentially averaged teacher sees the two large ones; the student must
predict the teacher's distribution over learned prototypes. The teacher's output is centred by a running mean and
sharpened by a low temperature, so that neither one prototype nor the uniform answer wins. Caron et al. 2021,
Algorithm 1; here per scale, as the methods the paper compares with are trained.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.errors import MsamilError

from .augment import augment
from .config import AugmentSpec, PixelSpec
from .ema import make_teacher, update_teacher
from .gradients import StepPlan, encode
from .read_ahead import ReadAhead
from .schedules import MomentumSchedule, momentum_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_msamil.config import ModelConfig
    from napari_msamil.device import Runtime
    from napari_msamil.models.patch_encoder import PatchEncoder

    from .patch_dataset import Draw, PatchPool
    from .visits import Visit


class DinoSpec(PixelSpec):
    """Self-supervised training of the encoder on one scale.

    Attributes:
        patches: Patches of one slide per visit; the `accumulate` slides of a step make one batch.
        lr: Learning rate.
        prototypes: Width of the output the distributions are over.
        hidden: Width of the head's hidden layers.
        bottleneck: Width before the prototypes.
        local_crops: Small crops per patch beside the two large ones.
        global_share: Smallest area of a large crop as a share of the patch.
        local_share: Largest area of a small crop as a share of the patch.
        local_px: Side of a small crop in pixels.
        student_temperature, teacher_temperature: Of the two softmaxes.
        center_momentum: Of the running mean of the teacher's output.
        teacher_momentum: Of the teacher at the start; it rises to 1 along a cosine.
        augment: Colour changes of the crops, drawn per crop set.
    """

    patches: int = Field(default=32, ge=2)
    lr: float = Field(default=5e-4, gt=0)
    prototypes: int = Field(default=1024, ge=2)
    hidden: int = Field(default=256, ge=1)
    bottleneck: int = Field(default=64, ge=1)
    local_crops: int = Field(default=4, ge=0)
    global_share: float = Field(default=0.4, gt=0, le=1)
    local_share: float = Field(default=0.4, gt=0, le=1)
    local_px: int = Field(default=64, ge=16)
    student_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: float = Field(default=0.04, gt=0)
    center_momentum: float = Field(default=0.9, ge=0, le=1)
    teacher_momentum: float = Field(default=0.996, ge=0, le=1)
    accumulate: int = Field(default=1, ge=1)
    weight_decay: float = Field(default=0.04, ge=0)
    clip_norm: float = Field(default=3.0, ge=0)
    augment: AugmentSpec = AugmentSpec(stain=0.2, brightness=0.15)


class DinoHead(nn.Module):
    """Feature → logits over prototypes: an MLP, unit length, unit-length prototypes."""

    def __init__(self, dim: int, spec: DinoSpec) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, spec.hidden),
            nn.GELU(),
            nn.Linear(spec.hidden, spec.hidden),
            nn.GELU(),
            nn.Linear(spec.hidden, spec.bottleneck),
        )
        self.prototypes = nn.Parameter(torch.randn(spec.prototypes, spec.bottleneck))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) → logits (B, prototypes), cosines in −1 … 1."""
        unit = F.normalize(self.mlp(features), dim=-1)
        return unit @ F.normalize(self.prototypes, dim=-1).T


class DinoNetwork(nn.Module):
    """Student, teacher and the teacher's centre: what a state holds."""

    center: Tensor

    def __init__(self, encoder: PatchEncoder, spec: DinoSpec) -> None:
        super().__init__()
        self.student = nn.ModuleDict(
            {"encoder": encoder, "head": DinoHead(encoder.dim, spec)}
        )
        self.teacher = make_teacher(self.student)
        self.register_buffer("center", torch.zeros(spec.prototypes))


class DinoTask:
    """Self-distillation on the patches of one scale (or all).

    Args:
        encoder: The encoder to train, on its device.
        config: The model it belongs to.
        spec: How it is trained.
        pool: Training slides.
        scale: Index of the scale whose patches are used; None uses all.
        runtime: Device and precision.
        total_steps: Optimiser steps of the whole run, for the teacher's momentum.
        data_hash: Of the cohort the pool comes from; a run goes on with the same one only.
    """

    kind = "dino"

    def __init__(
        self,
        encoder: PatchEncoder,
        config: ModelConfig,
        spec: DinoSpec,
        pool: PatchPool,
        scale: int | None,
        runtime: Runtime,
        total_steps: int,
        data_hash: str = "",
    ) -> None:
        self.dino = DinoNetwork(encoder, spec).to(runtime.torch_device)
        self.network: nn.Module = self.dino
        self.config, self.spec, self.pool, self.scale = config, spec, pool, scale
        self.device = runtime.torch_device
        self.plan = StepPlan("none", 1, str(runtime.precision))
        self.total_steps, self.data_hash = total_steps, data_hash
        self.faults: dict[str, str] = {}
        self._ahead: ReadAhead[Visit, Draw] | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: the student."""
        found = list(self.dino.student.parameters())
        return [{"name": "student", "lr": self.spec.lr, "params": found}]

    def names(self) -> Sequence[str]:
        """Names of the training slides."""
        return self.pool.names

    def labels(self) -> Sequence[int]:
        """Labels are not used; all are alike, so that nothing can be balanced by them."""
        return [0] * len(self.pool)

    def start_epoch(self, epoch: int, visits: Sequence[Visit]) -> None:
        """Begin to read ahead. The teacher normalises like the student: by the statistics of its batch."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = ReadAhead(self._draw, visits, self.spec.prefetch)

    def _draw(self, visit: Visit) -> Draw:
        rng = visit.rng(self.spec.seed)
        return self.pool.draw(visit.item, self.spec.patches, rng, scale=self.scale)

    def backward(self, visit: Visit) -> float | None:
        """Forward and backward of one visit alone."""
        return self.backward_window([visit])[0]

    def backward_window(self, visits: Sequence[Visit]) -> list[float | None]:
        """Forward and backward of the patches of several slides as one batch.

        Slides are mixed so that neither the centre nor the batch statistics follow a single slide's stain.
        """
        found = []
        for visit in visits:
            draw = self._next(visit)
            if draw is not None:
                found.append((visit, self._crops(visit, draw)))
        if not found:
            return [None] * len(visits)
        views = [torch.cat(same) for same in zip(*(c for _, c in found), strict=True)]
        with torch.no_grad():
            told = torch.stack([self._logits(self.dino.teacher, x) for x in views[:2]])
        loss = self.loss(told, [self._logits(self.dino.student, x) for x in views])
        torch.autograd.backward(loss * sum(visit.weight for visit, _ in found))
        self._move_center(told)
        said = {visit.position: float(loss.detach()) for visit, _ in found}
        return [said.get(visit.position) for visit in visits]

    def _next(self, visit: Visit) -> Draw | None:
        """The patches of the next visit; None, with the reason noted, where they cannot be read."""
        assert self._ahead is not None
        draw = next(self._ahead)
        if isinstance(draw, MsamilError):
            self.faults[self.pool.names[visit.item]] = str(draw)
            return None
        return draw

    def _crops(self, visit: Visit, draw: Draw) -> list[Tensor]:
        """Two large crops of each patch, then the small ones; the visit decides, whatever it is computed with."""
        seed = int(visit.rng(self.spec.seed + 1).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        pixels = draw.pixels.to(self.device).permute(0, 3, 1, 2)
        sizes = [True] * 2 + [False] * self.spec.local_crops
        return [self._crop(pixels, generator, large=large) for large in sizes]

    def _crop(
        self, pixels: Tensor, generator: torch.Generator, *, large: bool
    ) -> Tensor:
        spec = self.spec
        low, high = (spec.global_share, 1.0) if large else (0.05, spec.local_share)
        side = pixels.shape[-1] if large else min(spec.local_px, pixels.shape[-1])
        changed = augment(pixels, spec.augment, generator)
        return random_crops(changed, (low, high), side, generator)

    def _logits(self, network: nn.ModuleDict, pixels: Tensor) -> Tensor:
        logits: Tensor = network["head"](encode(network["encoder"], pixels, self.plan))
        return logits

    def loss(self, told: Tensor, said: Sequence[Tensor]) -> Tensor:
        """Mean cross-entropy over all pairs of a large crop (teacher) with another crop (student).

        Args:
            told: Teacher's logits (2, B, P).
            said: Student's logits (B, P) per crop, the two large ones first.
        """
        targets = torch.softmax(
            (told - self.dino.center) / self.spec.teacher_temperature, -1
        )
        logs = [F.log_softmax(x / self.spec.student_temperature, -1) for x in said]
        pairs = [
            -(target * log).sum(-1).mean()
            for i, target in enumerate(targets)
            for j, log in enumerate(logs)
            if i != j
        ]
        return torch.stack(pairs).mean()

    @torch.no_grad()
    def _move_center(self, told: Tensor) -> None:
        mean = told.mean((0, 1))
        self.dino.center.lerp_(mean, 1 - self.spec.center_momentum)

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student."""
        momentum = momentum_at(
            MomentumSchedule.COSINE, self.spec.teacher_momentum, step, self.total_steps
        )
        update_teacher(self.dino.teacher, self.dino.student, momentum)

    def validate(self) -> dict[str, float]:
        """Nothing is validated without labels."""
        return {}

    def description(self) -> dict[str, Any]:
        """What `publish` needs beside the weights."""
        names = [s.name for s in self.config.patches.scales]
        return {
            "model": self.config.model_dump_json(),
            "settings": json.dumps(self.spec.model_dump(mode="json")),
            "scale": "all" if self.scale is None else names[self.scale],
            "data_hash": self.data_hash,
        }


def random_crops(
    pixels: Tensor, share: tuple[float, float], side: int, generator: torch.Generator
) -> Tensor:
    """A random square of each patch, brought to one size, half of them mirrored.

    Args:
        pixels: uint8 (B, 3, H, H).
        share: Smallest and largest area as a share of the patch.
        side: Side of the result in pixels.
        generator: On the CPU; it alone decides.

    Returns:
        float32 (B, 3, side, side) with values 0 … 255.
    """
    count = len(pixels)
    low, high = math.sqrt(share[0]), math.sqrt(share[1])
    size = low + (high - low) * torch.rand(count, generator=generator)
    shift = (1 - size)[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = size * mirror, size, shift
    grid = F.affine_grid(
        theta.to(pixels.device), [count, 3, side, side], align_corners=False
    )
    return F.grid_sample(
        pixels.float(),
        grid,
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
