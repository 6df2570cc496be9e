"""How a bag becomes a loss: the task that `msamil-train mil` gives to the training loop."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from napari_msamil.errors import CheckpointError, CohortError, StoreError
from napari_msamil.models import build_aggregator
from napari_msamil.models.base import OwnStart

from .config import LoopSpec
from .losses import bag_loss
from .metrics import macro_auc
from .mil_figures import bag_figures

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from napari_msamil.config import AggregatorSpec
    from napari_msamil.models.base import Aggregator
    from napari_msamil.models.outputs import MILOutput

    from .bag_dataset import BagBatch, BagDataset
    from .loop import Visit

_EVAL_INSTANCES = 20_000  # instances per padded validation batch: bounds its memory


class MilSpec(LoopSpec):
    """Training of an aggregator on feature bags; the defaults are those of the MHIM-MIL supplementary, section 4.

    Attributes:
        lr: Learning rate.
        scales: Names of the scales that are used, for example ["20x"]; empty uses all.
        pack: Whether the bags of one accumulation window are computed together (the same within rounding).
        loss_weights: Factors on the losses by name: `bag`, and those of the method, which come weighted as its
            paper says.
        xavier: Start from Xavier-normal weights and zero biases in all linear layers, as MHIM-MIL does.
    """

    epochs: int = Field(default=200, ge=1)
    accumulate: int = Field(default=1, ge=1)
    optimizer: Literal["adamw", "adam"] = "adam"
    anneal: Literal["step", "epoch"] = "epoch"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    final_lr: float = Field(default=0.0, ge=0, le=1)
    monitor: Literal["val_loss", "val_acc", "val_auc"] = "val_auc"
    patience: int = Field(default=20, ge=0)
    tie_resets: bool = True
    lr: float = Field(default=2e-4, gt=0)
    scales: tuple[str, ...] = ()
    pack: bool = True
    loss_weights: dict[str, float] = Field(default_factory=dict)
    xavier: bool = False


class MilTask:
    """Plain training of one aggregator.

    Args:
        spec: What to build.
        settings: How to train it.
        train: Training bags.
        val: Validation bags, or None: then nothing is validated and the last state counts.
        classes: Class names.
        notes: Plain data kept in every state (what `publish` needs).

    Raises:
        StoreError: The method needs coordinates and the bags have none.
        CohortError: The validation slides cannot tell the best state.

    Attributes:
        on_epoch: Called with each epoch that begins; None is nobody.
    """

    kind = "mil"

    def __init__(
        self,
        spec: AggregatorSpec,
        settings: MilSpec,
        train: BagDataset,
        val: BagDataset | None,
        classes: Sequence[str],
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.spec, self.settings = spec, settings
        self.train, self.val = train, val
        self.classes = tuple(classes)
        self.notes = dict(notes or {})
        self.on_epoch: Callable[[int], None] | None = None
        self.aggregator = build_aggregator(spec, len(self.classes))
        if self.aggregator.needs_positions and not train.placed:
            raise StoreError(
                f"{spec.name} needs to know where patches lie, but the bags hold no coordinates. Extract them again, or use "
                "files that hold coords beside the features."
            )
        if settings.monitor == "val_auc" and val is not None:
            _require_auc(val, len(self.classes))
        if settings.xavier:
            xavier_start(self.aggregator)
        self.network: torch.nn.Module = self.aggregator.to(train.features.device)
        if self.aggregator.needs_negatives:
            self.aggregator.fit(negative_features(train))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group: the aggregator."""
        parameters = [p for p in self.aggregator.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": self.settings.lr, "name": "aggregator"}]

    def names(self) -> Sequence[str]:
        """Names of the training slides."""
        return self.train.names

    def labels(self) -> Sequence[int]:
        """Class index of each training slide."""
        return self.train.label_list

    def start_epoch(self, epoch: int, visits: Sequence[Visit]) -> None:
        """Nothing to read ahead: all bags are in memory. `on_epoch` is told the epoch that begins."""
        if self.on_epoch is not None:
            self.on_epoch(epoch)

    def backward_window(self, visits: Sequence[Visit]) -> list[float | None]:
        """Forward and backward of all visits of a window, together where the method allows it."""
        if len(visits) == 1 or not self.settings.pack:
            return [self.backward(visit) for visit in visits]
        if self.aggregator.pads:
            return self._backward_packed(visits)
        return self._backward_grouped(visits)

    def _backward_packed(self, visits: Sequence[Visit]) -> list[float | None]:
        """All bags in one pass: projected without padding, pooled with a mask."""
        batch = self.train.packed([v.item for v in visits])
        projected = self.aggregator.project(batch.features[None])[0]
        padded = batch.pad(projected)
        output = self.aggregator.aggregate(
            padded.features, padded.coords, padded.scale, padded.valid
        )
        rows = range(len(visits))
        share = self._bag_share()
        losses = torch.stack(
            [
                share * self.loss_of(output.logits[i, None], padded.labels[i, None])
                for i in rows
            ]
        )
        weights = losses.new_tensor([v.weight for v in visits])
        torch.autograd.backward((losses * weights).sum())
        return [float(x) for x in losses.tolist()]

    def _backward_grouped(self, visits: Sequence[Visit]) -> list[float | None]:
        """Bags of equal length and weight in one pass each, which needs no padding and suits every method."""
        groups: dict[tuple[int, float], list[int]] = defaultdict(list)
        for place, visit in enumerate(visits):
            groups[self.train.lengths[visit.item], visit.weight].append(place)
        losses: list[float | None] = [None] * len(visits)
        for (_, weight), places in groups.items():
            batch = self.train.padded([visits[i].item for i in places])
            output = self.aggregator(
                batch.features, batch.coords, batch.scale, label=batch.labels
            )
            loss = self.objective(output, batch)
            torch.autograd.backward(loss * (weight * len(places)))
            for i in places:
                losses[i] = float(loss.detach())
        return losses

    def backward(self, visit: Visit) -> float | None:
        """Forward and backward of one bag."""
        batch = self.train.one(visit.item)
        output = self.aggregator(
            batch.features, batch.coords, batch.scale, label=batch.labels
        )
        loss = self.objective(output, batch)
        torch.autograd.backward(loss * visit.weight)
        return float(loss.detach())

    def objective(self, output: MILOutput, batch: BagBatch) -> Tensor:
        """The method's whole loss: that of the bag, and its own (already weighted by the method)."""
        factor = self.settings.loss_weights
        loss = self._bag_share() * self.loss_of(output.logits, batch.labels)
        for name, extra in (output.losses or {}).items():
            loss = loss + factor.get(name, 1.0) * extra
        return loss

    def _bag_share(self) -> float:
        return self.aggregator.bag_loss_weight * self.settings.loss_weights.get(
            "bag", 1.0
        )

    def loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of bags."""
        return bag_loss(logits, labels, None, self.settings.label_smoothing)

    def validate(self) -> dict[str, float]:
        """Loss, accuracy and AUC on the validation bags."""
        if self.val is None:
            return {}
        logits = predict(self.aggregator, self.val)
        return bag_figures(logits, self.val.labels.cpu(), prefix="val_")

    def description(self) -> dict[str, Any]:
        """What `publish` needs beside the weights."""
        own = describe_task(self.spec, self.settings, self.classes, self.train)
        return {**own, **self.notes}


def describe_task(
    spec: AggregatorSpec, settings: MilSpec, classes: Sequence[str], train: BagDataset
) -> dict[str, Any]:
    """What decides a training, as plain data: kept in its states and compared when it goes on."""
    return {
        "aggregator": spec.model_dump_json(),
        "classes": list(classes),
        "settings": settings.model_dump_json(),
        "encoder_id": train.encoder_id,
    }


def _require_auc(val: BagDataset, n_classes: int) -> None:
    """Refuse to choose by a figure that is not defined: the first state would stay the best.

    Raises:
        CohortError: The validation slides do not have two classes.
    """
    truth = np.asarray(val.label_list)
    if math.isnan(macro_auc(np.full((len(truth), n_classes), 1 / n_classes), truth)):
        raise CohortError(
            "The validation slides have one class only, so the state cannot be chosen by their AUC. Give other splits, or "
            "set monitor to val_loss."
        )


def negative_features(train: BagDataset) -> Tensor:
    """Features (M, D) of all bags of the first class, which is the negative one.

    Raises:
        CohortError: There is none.
    """
    bags = [i for i, label in enumerate(train.label_list) if label == 0]
    if not bags:
        raise CohortError(
            "This method learns from negative slides, but no training slide has the first class. "
            "Order the classes so that the negative one comes first."
        )
    return train.packed(bags).features


@torch.no_grad()
def predict(aggregator: Aggregator, bags: BagDataset) -> Tensor:
    """Logits of all bags in evaluation mode: float32 (bags, C) on the CPU. The mode is put back afterwards."""
    was_training = aggregator.training
    aggregator.eval()
    logits = torch.empty(len(bags), aggregator.n_classes)
    for window in eval_windows(bags.lengths):
        batch = bags.padded(window)
        output = aggregator(batch.features, batch.coords, batch.scale, batch.valid)
        logits[window] = output.logits.float().cpu()
    aggregator.train(was_training)
    return logits


def eval_windows(
    lengths: Sequence[int], budget: int = _EVAL_INSTANCES
) -> list[list[int]]:
    """Bags sorted by length, cut into windows whose padded size stays below `budget` (one bag at least)."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    windows: list[list[int]] = []
    for index in order:
        if windows and (len(windows[-1]) + 1) * lengths[index] <= budget:
            windows[-1].append(index)
        else:
            windows.append([index])
    return windows


def xavier_start(network: torch.nn.Module) -> None:
    """Xavier-normal weights and zero biases in all linear layers but those whose start is part of their method."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear) and not isinstance(layer, OwnStart):
            torch.nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)


def load_weights(
    network: torch.nn.Module, weights: Mapping[str, Tensor], source: str
) -> None:
    """Fill a network, refusing any silent mismatch.

    Raises:
        CheckpointError: Names or shapes differ; the message lists them.
    """
    own = network.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unknown = sorted(weights.keys() - own.keys())
    shapes = sorted(
        f"{k} {tuple(weights[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & weights.keys()
        if weights[k].shape != own[k].shape
    )
    problems = [
        f"{title}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
        for title, names in (
            ("missing", missing),
            ("not in this network", unknown),
            ("shapes", shapes),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"The weights of {source} do not fit this aggregator ({'; '.join(problems)}). "
            "Use the recipe it was trained with."
        )
    network.load_state_dict(dict(weights), strict=True)


def weights_of(state: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The aggregator's weights in a training state of any verb: `aggregator.…`, `student.…`, or all of them."""
    weights: dict[str, Tensor] = dict(state["model"])
    for prefix in ("aggregator.", "student."):
        found = {
            k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)
        }
        if found:
            return found
    if not weights:
        raise CheckpointError(f"{source} holds no weights. Train again.")
    return weights
