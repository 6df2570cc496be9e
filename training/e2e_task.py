"""How a slide becomes a loss end to end: the task that `msamil-train e2e` gives to the training loop.

Algorithm 2 of MsaMIL-Net, section 3.4: draw P_B ⊂ P_all, C_B = {f(P_b)}, y = MIL(C_B), cross-entropy, one step of
both parameter groups (eq. 9).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.errors import MsamilError, SelectionError

from .augment import augment
from .gradients import (
    StepPlan,
    backward,
    encode,
    has_batchnorm,
    measure_batchnorm,
    set_batchnorm,
)
from .mil_figures import bag_figures
from .patch_dataset import Draw, PatchPool, ReadAhead

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from napari_msamil.config import ModelConfig
    from napari_msamil.device import Runtime
    from napari_msamil.models.msamil import MsamilModel

    from .config import E2ESpec
    from .loop import Visit


MEASURED_SLIDES = 32
"""Slides whose draws the BatchNorm statistics are measured on before they are frozen."""


class E2ETask:
    """End-to-end training of encoder and aggregator.

    Args:
        model: Encoder and aggregator, on their device.
        config: What the model is.
        spec: How it is trained.
        train: Training slides.
        val: Validation slides; may be empty.
        runtime: Device and precision.
        plan: Memory mode and chunk.
        notes: Plain data kept in every state (what `publish` needs).
    """

    kind = "e2e"

    def __init__(
        self,
        model: MsamilModel,
        config: ModelConfig,
        spec: E2ESpec,
        train: PatchPool,
        val: PatchPool,
        runtime: Runtime,
        plan: StepPlan,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.network: nn.Module = model
        self.model, self.config, self.spec = model, config, spec
        self.train, self.val = train, val
        self.device, self.plan = runtime.torch_device, plan
        self.notes = dict(notes or {})
        self.faults: dict[str, str] = {}
        self._ahead: ReadAhead[Visit, Draw] | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two groups: encoder and aggregator (the two lines of eq. 9)."""
        groups = [
            ("encoder", self.model.encoder, self.spec.lr_encoder),
            ("mil", self.model.aggregator, self.spec.lr_mil),
        ]
        return [
            {
                "name": name,
                "lr": lr,
                "params": [p for p in m.parameters() if p.requires_grad],
            }
            for name, m, lr in groups
        ]

    def names(self) -> Sequence[str]:
        """Names of the training slides."""
        return self.train.names

    def labels(self) -> Sequence[int]:
        """Class index of each training slide."""
        return self.train.labels

    def start_epoch(self, epoch: int, visits: Sequence[Visit]) -> None:
        """Freeze batch statistics if it is time, and begin to read ahead."""
        begins = epoch == self.freeze_epoch and visits[0].position == 0
        if begins and has_batchnorm(self.model.encoder):
            self.measure_batchnorm(visits)
        set_batchnorm(self.model.encoder, frozen=epoch >= self.freeze_epoch)
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = ReadAhead(self._draw, visits, self.spec.prefetch)

    @property
    def freeze_epoch(self) -> int:
        """First epoch with frozen statistics; -1 where published weights bring good ones."""
        if self.spec.batchnorm == "frozen":
            return 0 if self.spec.start == "random" else -1
        return math.ceil(self.spec.freeze_after * self.spec.epochs)

    def measure_batchnorm(self, visits: Sequence[Visit]) -> None:
        """Measure the statistics that are frozen from now on, on draws of the first visits."""
        windows = [
            visits[i : i + self.spec.together]
            for i in range(0, min(len(visits), MEASURED_SLIDES), self.spec.together)
        ]
        found = (self._pixels(window) for window in windows)
        measure_batchnorm(self.model.encoder, (p for p in found if len(p)), self.plan)

    def _pixels(self, visits: Sequence[Visit]) -> Tensor:
        """Prepared pixels of the slides of some visits that can be read."""
        draws = [(v, ReadAhead(self._draw, [v], 0)) for v in visits]
        found = [(v, d) for v, ahead in draws for d in ahead]
        parts = [self._prepared(v, d) for v, d in found if isinstance(d, Draw)]
        return torch.cat(parts) if parts else torch.empty(0)

    def _draw(self, visit: Visit) -> Draw:
        rng = visit.rng(self.spec.seed)
        return self.train.draw(visit.item, self.spec.instances, rng, self.spec.sampling)

    def backward(self, visit: Visit) -> float | None:
        """Forward and backward of one slide."""
        return self.backward_window([visit])[0]

    def backward_window(self, visits: Sequence[Visit]) -> list[float | None]:
        """Forward and backward of the slides of one window, `together` at a time."""
        losses: list[float | None] = []
        for first in range(0, len(visits), self.spec.together):
            losses += self._group(visits[first : first + self.spec.together])
        return losses

    def _group(self, visits: Sequence[Visit]) -> list[float | None]:
        assert self._ahead is not None
        found: list[tuple[Visit, Draw]] = []
        for visit, draw in zip(visits, self._ahead, strict=False):
            if isinstance(draw, MsamilError):
                self.faults[self.train.names[visit.item]] = str(draw)
            else:
                found.append((visit, draw))
        losses: dict[int, float] = {}
        if found:
            pixels = torch.cat([self._prepared(visit, draw) for visit, draw in found])

            def loss_of(features: Tensor) -> Tensor:
                total, start = features.new_zeros(()), 0
                for visit, draw in found:
                    part = features[start : start + len(draw)]
                    loss = self._bag_loss(part, draw)
                    losses[visit.position] = float(loss.detach())
                    total = total + loss * visit.weight
                    start += len(draw)
                return total

            backward(self.model.encoder, pixels, loss_of, self.plan)
        return [losses.get(visit.position) for visit in visits]

    def _prepared(self, visit: Visit, draw: Draw) -> Tensor:
        """Pixels of one visit on the device, augmented: uint8 (N, 3, H, W), channels last in memory."""
        pixels = draw.pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        seed = int(visit.rng(self.spec.seed + 1).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        return augment(pixels, self.spec.augment, generator)

    def _bag_loss(self, features: Tensor, draw: Draw) -> Tensor:
        target = torch.tensor([draw.label], device=features.device)
        smoothing = self.spec.label_smoothing
        return F.cross_entropy(
            self._logits(features, draw), target, label_smoothing=smoothing
        )

    def _logits(self, features: Tensor, draw: Draw) -> Tensor:
        coords = draw.coords[None].to(features.device, features.dtype)
        scale = draw.scale[None].to(features.device)
        logits: Tensor = self.model.aggregator(features[None], coords, scale).logits
        return logits

    def validate(self) -> dict[str, float]:
        """Loss, accuracy and AUC on a draw of each validation slide that is the same every time."""
        if not len(self.val):
            return {}
        logits, labels = self.predict(self.val)
        return bag_figures(logits, torch.tensor(labels), prefix="val_")

    @torch.no_grad()
    def predict(self, pool: PatchPool) -> tuple[Tensor, list[int]]:
        """Logits (slides, C) and labels of the slides that can be read, in evaluation mode.

        Raises:
            SelectionError: Not one slide can be read.
        """
        self.network.eval()
        rows, labels = [], []
        for draw in ReadAhead(
            lambda item: self._eval_draw(pool, item),
            range(len(pool)),
            self.spec.prefetch,
        ):
            if isinstance(draw, MsamilError):
                continue
            rows.append(self._logits(self.encode_all(draw.pixels), draw).float().cpu())
            labels.append(draw.label)
        if not rows:
            raise SelectionError(
                "None of the validation slides can be read. Check the cohort table."
            )
        return torch.cat(rows), labels

    def _eval_draw(self, pool: PatchPool, item: int) -> Draw:
        rng = np.random.default_rng([self.spec.seed, item, 104729])
        return pool.draw(item, self.spec.eval_instances, rng, self.spec.sampling)

    def encode_all(self, pixels: Tensor) -> Tensor:
        """Features (N, D) of uint8 (N, H, W, 3), chunk by chunk without a graph."""
        parts = torch.split(pixels, max(self.plan.chunk, 32))
        return torch.cat(
            [
                encode(
                    self.model.encoder, p.to(self.device).permute(0, 3, 1, 2), self.plan
                )
                for p in parts
            ]
        )

    def description(self) -> dict[str, Any]:
        """What `publish` needs beside the weights."""
        return {
            "model": self.config.model_dump_json(),
            "settings": json.dumps(self.spec.model_dump(mode="json")),
            "skipped": json.dumps(self.faults),
            **self.notes,
        }
