"""Loss, accuracy and AUC of bags from their logits, for the training loop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def rank_auc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve from ranks, ties counted half; NaN where a class is empty."""
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if n_pos == 0 or n_neg == 0:
        return math.nan
    rank_sum = float(rankdata(scores)[positive].sum())
    return (rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def macro_auc(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """AUC of the second class for two classes, else the mean of one-versus-rest over the classes present."""
    n_classes = probabilities.shape[1]
    if n_classes == 2:
        return rank_auc(probabilities[:, 1], labels == 1)
    each = [rank_auc(probabilities[:, c], labels == c) for c in range(n_classes)]
    known = [value for value in each if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def bag_figures(logits: Tensor, labels: Tensor, prefix: str = "") -> dict[str, float]:
    """Mean cross-entropy, accuracy at the largest probability, and AUC; AUC 0.5 where it is not defined.

    Args:
        logits: (bags, C) on the CPU.
        labels: int64 (bags,) on the CPU.
        prefix: Before each name, for example `val_`.
    """
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    auc = macro_auc(probabilities, labels.numpy())
    return {
        f"{prefix}loss": float(functional.cross_entropy(logits.float(), labels)),
        f"{prefix}acc": float((logits.argmax(1) == labels).double().mean()),
        f"{prefix}auc": 0.5 if math.isnan(auc) else auc,
    }
