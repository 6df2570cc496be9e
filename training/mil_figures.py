"""Loss, accuracy and AUC of bags from their logits, for the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch.nn import functional

from .metrics import accuracy, macro_auc, softmax

if TYPE_CHECKING:
    from torch import Tensor


def bag_figures(logits: Tensor, labels: Tensor, prefix: str = "") -> dict[str, float]:
    """Mean cross-entropy, accuracy at the largest probability, and AUC; NaN where it is not defined.

    Args:
        logits: (bags, C) on the CPU.
        labels: int64 (bags,) on the CPU.
        prefix: Before each name, for example `val_`.
    """
    probabilities = softmax(logits.numpy())
    truth = np.asarray(labels)
    return {
        f"{prefix}loss": float(functional.cross_entropy(logits.float(), labels)),
        f"{prefix}acc": accuracy(probabilities, truth),
        f"{prefix}auc": macro_auc(probabilities, truth),
    }
