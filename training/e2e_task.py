"""How a slide becomes a loss end to end: the task that `msamil-train e2e` gives to the training loop.

Algorithm 2 of MsaMIL-Net, section 3.4: draw P_B ⊂ P_all, C_B = {f(P_b)}, y = MIL(C_B), cross-entropy, one step of
both parameter groups (eq. 9).
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.errors import MsamilError, SelectionError

from .gradients import (
    StepPlan,
    backward,
    encode,
    has_batchnorm,
    measure_batchnorm,
    set_batchnorm,
)
from .mil_figures import bag_figures
from .ranks import ONE_RANK, Ranks
from .read_ahead import ReadAhead
from .visit_reader import VisitReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from napari_msamil.config import ModelConfig
    from napari_msamil.device import Runtime
    from napari_msamil.models.msamil import MsamilModel

    from .config import E2ESpec
    from .patch_dataset import Draw, PatchPool
    from .visits import Visit


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
        ranks: The processes that train together.
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
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.network: nn.Module = model
        self.model, self.config, self.spec = model, config, spec
        self.train, self.val = train, val
        self.device, self.plan = runtime.torch_device, plan
        self.notes = dict(notes or {})
        self.ranks = ranks
        self.reader = VisitReader(train, spec, self.device, ranks)

    @property
    def faults(self) -> dict[str, str]:
        """Reason by slide, for training slides that cannot be read."""
        return self.reader.faults

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder and aggregator (the two lines of eq. 9); the Transformer of MSFEM apart where it has a rate of its own."""
        encoder, spec = self.model.encoder, self.spec
        parts = list(encoder.named_parameters())
        rest: list[nn.Parameter] = []
        if spec.lr_tokens is not None:
            rest = [p for n, p in parts if not n.startswith("backbone.")]
            parts = [(n, p) for n, p in parts if n.startswith("backbone.")]
        groups = [
            ("encoder", spec.lr_encoder, [p for _, p in parts]),
            ("tokens", spec.lr_tokens or 0.0, rest),
            ("mil", spec.lr_mil, list(self.model.aggregator.parameters())),
        ]
        return [
            {"name": name, "lr": lr, "params": [p for p in found if p.requires_grad]}
            for name, lr, found in groups
            if found
        ]

    def names(self) -> Sequence[str]:
        """Names of the training slides."""
        return self.train.names

    def labels(self) -> Sequence[int]:
        """Class index of each training slide."""
        return self.train.labels

    def start_epoch(self, epoch: int, visits: Sequence[Visit]) -> None:
        """Freeze batch statistics if it is time, and begin to read ahead."""
        if self.ranks.size > 1:
            torch.manual_seed(hash((self.spec.seed, epoch, self.ranks.rank)))
        begins = epoch == self.freeze_epoch and visits and not visits[0].position
        if begins and has_batchnorm(self.model.encoder):
            self._measure_batchnorm(visits)
        set_batchnorm(self.model.encoder, frozen=epoch >= self.freeze_epoch)
        self.reader.start(visits)

    @property
    def freeze_epoch(self) -> int:
        """First epoch with frozen statistics; -1 where published weights bring good ones."""
        if self.spec.batchnorm == "frozen":
            return 0 if self.spec.start == "random" else -1
        return math.ceil(self.spec.freeze_after * self.spec.epochs)

    def _measure_batchnorm(self, visits: Sequence[Visit]) -> None:
        """Measure the statistics that are frozen from now on, on draws of the first visits."""
        step = self.spec.together
        firsts = range(0, min(len(visits), MEASURED_SLIDES), step)
        found = (self.reader.whole(visits[i : i + step]) for i in firsts)
        measure_batchnorm(self.model.encoder, (p for p in found if len(p)), self.plan)

    def backward(self, visit: Visit) -> float | None:
        """Forward and backward of one slide."""
        return self.backward_window([visit])[0]

    def backward_window(self, visits: Sequence[Visit]) -> list[float | None]:
        """Forward and backward of the slides of one window, `together` at a time, shared by all ranks."""
        places = [i for i, visit in enumerate(visits) if self.reader.mine(visit)]
        mine = [visits[i] for i in places]
        losses: list[float | None] = [None] * len(visits)
        for first in range(0, len(mine), self.spec.together):
            group = slice(first, first + self.spec.together)
            for i, loss in zip(places[group], self._group(mine[group]), strict=True):
                losses[i] = loss
        if self.spec.distributed == "instances":
            self.ranks.sum_gradients(self.model.encoder.parameters())
            return losses
        self.ranks.sum_gradients(self.network.parameters())
        return self.ranks.gather_losses(losses, places)

    def _group(self, visits: Sequence[Visit]) -> list[float | None]:
        found = self.reader.next(visits)
        losses: dict[int, float] = {}
        if found:
            pixels = torch.cat([self.reader.prepared(v, d) for v, d in found])

            def loss_of(features: Tensor) -> Tensor:
                total, start = features.new_zeros(()), 0
                for visit, draw in found:
                    part = features[start : start + len(draw.pixels)]
                    start += len(draw.pixels)
                    loss = self._bag_loss(self._gathered(part, draw), draw, visit)
                    losses[visit.position] = float(loss.detach())
                    total = total + loss * visit.weight
                return total

            backward(self.model.encoder, pixels, loss_of, self.plan)
        return [losses.get(visit.position) for visit in visits]

    def _gathered(self, features: Tensor, draw: Draw) -> Tensor:
        """Features of the whole draw, where ranks share its instances."""
        if self.spec.distributed != "instances":
            return features
        return self.ranks.gather_features(features, len(draw))

    def _bag_loss(self, features: Tensor, draw: Draw, visit: Visit) -> Tensor:
        target = torch.tensor([draw.label], device=features.device)
        smoothing = self.spec.label_smoothing
        with self._same_dropout(visit):
            logits = self._logits(features, draw)
        return F.cross_entropy(logits, target, label_smoothing=smoothing)

    @contextmanager
    def _same_dropout(self, visit: Visit) -> Iterator[None]:
        """Ranks that share a slide must draw the same dropout masks in the aggregator."""
        if self.ranks.size == 1 or self.spec.distributed != "instances":
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(int(visit.rng(self.spec.seed + 2).integers(2**62)))
            yield

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
        mine = self.ranks.share(len(pool))
        rows: dict[int, list[float]] = {}
        ahead = ReadAhead(lambda i: self._eval_draw(pool, i), mine, self.spec.prefetch)
        for item, draw in zip(mine, ahead, strict=False):
            if not isinstance(draw, MsamilError):
                logits = self._logits(self.encode_all(draw.pixels), draw)
                rows[item] = logits[0].float().tolist()
        rows = {k: v for part in self.ranks.gather(rows) for k, v in part.items()}
        if not rows:
            raise SelectionError(
                "None of the validation slides can be read. Check the cohort table."
            )
        order = sorted(rows)
        return torch.tensor([rows[i] for i in order]), [pool.labels[i] for i in order]

    def _eval_draw(self, pool: PatchPool, item: int) -> Draw:
        rng = np.random.default_rng([self.spec.seed, item, 104729])
        return pool.draw(item, self.spec.eval_instances, rng, self.spec.sampling)

    def encode_all(self, pixels: Tensor) -> Tensor:
        """Features (N, D) of uint8 (N, H, W, 3), chunk by chunk without a graph."""
        parts = torch.split(pixels, self.plan.pad or max(self.plan.chunk, 32))
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
            "classes": list(self.config.classes),
            "skipped": json.dumps(self.faults),
            **self.notes,
        }
