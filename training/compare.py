"""A method plain and with masked hard instance mining, on the same bags with the same start: the unit of all tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from .memory_fit import fit_in_memory
from .metrics import binary_auc
from .mhim_task import MhimTask
from .mil_figures import bag_figures
from .mil_task import MilTask, predict
from .state import seed_everything

if TYPE_CHECKING:
    from torch import Tensor

    from napari_msamil.config import AggregatorSpec
    from napari_msamil.models.base import Aggregator

    from .bag_dataset import BagDataset
    from .mhim_task import MhimSpec
    from .mil_task import MilSpec


@dataclass(frozen=True, eq=False)
class BagParts:
    """The bags of one fold.

    Attributes:
        train, val, test: Data sets.
        classes: Class names.
    """

    train: BagDataset
    val: BagDataset
    test: BagDataset
    classes: tuple[str, ...] = ("negative", "positive")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one training came to.

    Attributes:
        figures: `loss`, `acc`, `auc` on the test bags, and `instance_auc` where the truth is known.
        weights: Of the trained aggregator.
        epochs: Epochs until it stopped.
        seconds: Time spent training.
        curve: Figures per validation.
    """

    figures: dict[str, float]
    weights: dict[str, Tensor]
    epochs: int
    seconds: float
    curve: tuple[dict[str, float], ...] = field(default=())


def train_plain(
    spec: AggregatorSpec,
    settings: MilSpec,
    parts: BagParts,
    projection: dict[str, Tensor] | None = None,
) -> Outcome:
    """The method as it is.

    Args:
        spec: What to build.
        settings: How to train it.
        parts: The bags of the fold.
        projection: Weights whose projection the network starts with (supplementary Table 5, "w/ init").
    """
    from .mhim_task import start_student

    seed_everything(settings.seed)
    task = MilTask(spec, settings, parts.train, parts.val, parts.classes)
    if projection is not None:
        start_student(task.aggregator, projection, "projection")
    return _finish(task, task.aggregator, parts)


def train_mhim(
    spec: AggregatorSpec,
    settings: MhimSpec,
    parts: BagParts,
    pretrained: dict[str, Tensor],
) -> Outcome:
    """The method with masked hard instance mining; the student is judged."""
    seed_everything(settings.seed)
    task = MhimTask(spec, settings, parts.train, parts.val, parts.classes, pretrained)
    return _finish(task, task.aggregator, parts)


def _finish(task: MilTask, aggregator: Aggregator, parts: BagParts) -> Outcome:
    fitted = fit_in_memory(task, task.settings)
    figures = bag_figures(predict(aggregator, parts.test), parts.test.labels.cpu())
    if parts.test.truth:
        figures["instance_auc"] = instance_auc(aggregator, parts.test)
    weights = {k: v.detach().clone() for k, v in aggregator.state_dict().items()}
    return Outcome(
        figures, weights, fitted.result.epochs, fitted.result.seconds, fitted.curve
    )


@torch.no_grad()
def instance_auc(aggregator: Aggregator, bags: BagDataset) -> float:
    """How well attention finds the positive instances: AUC inside each bag that has both kinds, averaged."""
    aggregator.eval()
    found = []
    for index, positive in enumerate(bags.truth):
        if 0 < int(positive.sum()) < len(positive):
            bag = bags.one(index)
            output = aggregator(bag.features, bag.coords, bag.scale)
            scores = output.attention[0].float().cpu().numpy()
            found.append(binary_auc(scores, positive.numpy()))
    return float(np.mean(found)) if found else float("nan")
