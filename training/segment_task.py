"""How a thumbnail becomes a loss: the task that `msamil-train segment` gives to the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from .config import LoopSpec
from .segment_augment import changed
from .segment_figures import LevelCounts, count_levels, mean_dice, mean_iou

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from napari_msamil.config import SegmenterSpec
    from napari_msamil.device import Runtime
    from napari_msamil.models.segmenter import Segmenter

    from .loop import Visit
    from .segment_data import SegmentItem


class SegmentSpec(LoopSpec):
    """Training of the lesion segmenter.

    Attributes:
        lr: Learning rate.
        start: Start weights of the encoder: `random` or `imagenet`.
        unlabelled: What an unmarked pixel of tissue means: `negative`, `ignore` (partial annotations), or `auto`.
        negative_labels: Labels of slides that have no lesion and need no mask.
        bce_weight: Weight of the binary cross-entropy.
        dice_weight: Weight of the Dice loss.
        geometry: Flips and quarter turns.
        stain: Largest relative change of each dye; 0 is none.
        stretch: Largest stretching of each side of the thumbnail; 0 is none.
        shift: Largest shift as a share of the side; 0 is none.
        tune_threshold: Store the threshold with the best mean IoU on the validation slides; else the model's own stays.
    """

    epochs: int = Field(default=60, ge=1)
    accumulate: int = Field(default=4, ge=1)
    monitor: Literal["val_loss", "val_iou"] = "val_iou"
    patience: int = Field(default=12, ge=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    lr: float = Field(default=1e-3, gt=0)
    start: Literal["random", "imagenet"] = "random"
    unlabelled: Literal["auto", "negative", "ignore"] = "auto"
    negative_labels: tuple[str, ...] = ()
    bce_weight: float = Field(default=1.0, ge=0)
    dice_weight: float = Field(default=1.0, ge=0)
    geometry: bool = True
    stain: float = Field(default=0.15, ge=0, lt=1)
    stretch: float = Field(default=0.2, ge=0, lt=2)
    shift: float = Field(default=0.1, ge=0, lt=1)
    tune_threshold: bool = True


def segment_losses(
    logits: Tensor, positive: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice loss of each picture, over known pixels only.

    Args:
        logits: (B, C, H, W).
        positive: bool (B, C, H, W).
        known: bool (B, C, H, W).

    Returns:
        Cross-entropy (B,), mean over the known pixels of all channels; Dice loss (B,), 1 − 2|P·T| / (|P| + |T|) per
        channel, mean over the channels that are known anywhere. A picture without known pixels gives 0.
    """
    weight, target = known.float(), positive.float()
    logits = logits.float()
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    bce = (each * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1)
    probability = logits.sigmoid() * weight
    target = target * weight
    overlap = (probability * target).sum((2, 3))
    total = probability.sum((2, 3)) + target.sum((2, 3))
    # One pixel more on both sides keeps slides without lesion defined: no prediction, no loss.
    dice = 1 - (2 * overlap + 1) / (total + 1)
    used = known.any(3).any(2).float()
    return bce, (dice * used).sum(1) / used.sum(1).clamp(min=1)


class SegmentTask:
    """Training of one segmenter on thumbnails that are all in memory.

    Args:
        network: The segmenter, on its device.
        spec: How to train it.
        train: Training slides.
        val: Validation slides; empty: nothing is validated.
        runtime: Device and precision. fp16 is computed in float32: there is no loss scaling here.
        notes: Plain data kept in every state.
    """

    kind = "segment"

    def __init__(
        self,
        network: Segmenter,
        spec: SegmentSpec,
        train: Sequence[SegmentItem],
        val: Sequence[SegmentItem],
        runtime: Runtime,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec, self.train, self.val = spec, train, val
        self.segmenter, self.runtime = network, runtime
        self.network: torch.nn.Module = network
        self.notes = dict(notes or {})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: the whole network."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": self.spec.lr, "name": "segmenter"}]

    def names(self) -> Sequence[str]:
        """Names of the training slides."""
        return [item.name for item in self.train]

    def labels(self) -> Sequence[int]:
        """1 for slides with lesion, 0 for those without."""
        return [int(item.has_lesion) for item in self.train]

    def start_epoch(self, epoch: int, visits: Sequence[Visit]) -> None:
        """Nothing to read ahead: all thumbnails are in memory."""

    def backward(self, visit: Visit) -> float | None:
        """Forward and backward of one slide."""
        return self.backward_window([visit])[0]

    def backward_window(self, visits: Sequence[Visit]) -> list[float | None]:
        """Forward and backward of all slides of a window as one batch."""
        drawn = [self._drawn(visit) for visit in visits]
        pixels, positive, known = (
            torch.stack(part) for part in zip(*drawn, strict=True)
        )
        losses = self._losses(pixels, positive, known)
        weights = losses.new_tensor([v.weight for v in visits])
        torch.autograd.backward((losses * weights).sum())
        return [float(x) for x in losses.tolist()]

    def _drawn(self, visit: Visit) -> tuple[Tensor, Tensor, Tensor]:
        item = self.train[visit.item]
        return changed(*self._tensors(item), self.spec, visit.rng(self.spec.seed))

    def _tensors(self, item: SegmentItem) -> tuple[Tensor, Tensor, Tensor]:
        device = self.runtime.torch_device
        pixels = torch.from_numpy(item.pixels).to(device).permute(2, 0, 1).float()
        positive, known = (
            torch.from_numpy(a).to(device) for a in (item.positive, item.known)
        )
        return pixels, positive, known

    def _losses(self, pixels: Tensor, positive: Tensor, known: Tensor) -> Tensor:
        bce, dice = segment_losses(self.logits(pixels), positive, known)
        return self.spec.bce_weight * bce + self.spec.dice_weight * dice

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (B, C, H, W) at the precision of the run."""
        layout = (
            torch.channels_last
            if self.runtime.channels_last
            else torch.contiguous_format
        )
        half = self.runtime.precision.value == "bf16"
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=half):
            found: Tensor = self.network(pixels.contiguous(memory_format=layout))
        return found.float()

    @torch.no_grad()
    def counts(
        self, items: Sequence[SegmentItem]
    ) -> tuple[list[LevelCounts], list[float]]:
        """Per slide: how many lesion and other pixels have each probability, and the loss; in evaluation mode."""
        was_training = self.network.training
        self.network.eval()
        counts, losses = [], []
        for item in items:
            pixels, positive, known = (t[None] for t in self._tensors(item))
            logits = self.logits(pixels)
            bce, dice = segment_losses(logits, positive, known)
            losses.append(
                float(self.spec.bce_weight * bce + self.spec.dice_weight * dice)
            )
            levels = (logits[0, 0].sigmoid() * 256).clamp(0, 255).byte().cpu().numpy()
            counts.append(count_levels(levels, item))
        self.network.train(was_training)
        return counts, losses

    def validate(self) -> dict[str, float]:
        """Loss, mean IoU and mean Dice on the validation slides, at the model's own threshold."""
        if not self.val:
            return {}
        counts, losses = self.counts(self.val)
        threshold = self.segmenter.spec.threshold
        return {
            "val_loss": float(np.mean(losses)),
            "val_iou": mean_iou(counts, threshold),
            "val_dice": mean_dice(counts, threshold),
        }

    def description(self) -> dict[str, Any]:
        """What `publish` needs beside the weights."""
        spec: SegmenterSpec = self.segmenter.spec
        return {
            "segmenter": spec.model_dump_json(),
            "settings": self.spec.model_dump_json(),
            **self.notes,
        }
