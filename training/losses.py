"""Losses of bag classification: the bag's own, and the consistency between teacher and student."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def bag_loss(
    logits: Tensor,
    labels: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of bag logits, averaged over bags.

    Weights multiply each bag's term and the mean is over bags, so that a batch equals its bags one by one
    (torch's own mean divides by the sum of the weights in the batch, and a batch of one loses its weight).

    Args:
        logits: (B, C).
        labels: int64 (B,).
        class_weights: (C,) or None.
        label_smoothing: Share of the target spread over all classes.
    """
    losses = functional.cross_entropy(
        logits.float(), labels, reduction="none", label_smoothing=label_smoothing
    )
    if class_weights is not None:
        losses = losses * class_weights[labels]
    return losses.mean()


def consistency_loss(
    teacher: Tensor,
    student: Tensor,
    teacher_temperature: float = 0.1,
    student_temperature: float = 1.0,
) -> Tensor:
    """Soft cross-entropy between bag embeddings (MHIM-MIL supplementary, Algorithm 1).

    −Σ_d softmax(f_t / τ_t)_d · log_softmax(f_s / τ_s)_d, summed over the D features and averaged over bags; no
    projector or predictor. Near-zero features give ln D (ln 512 = 6.238).

    Args:
        teacher: (B, D); no gradient flows into it.
        student: (B, D).
        teacher_temperature: τ_t; the paper's 0.1.
        student_temperature: τ_s; 1 as in the text.
    """
    target = torch.softmax(teacher.detach().float() / teacher_temperature, dim=-1)
    log_student = torch.log_softmax(student.float() / student_temperature, dim=-1)
    return -(target * log_student).sum(dim=-1).mean()


def class_weights(
    labels: Sequence[int], n_classes: int, mode: str = "balanced"
) -> Tensor | None:
    """Weights per class.

    Args:
        labels: Class index of every training bag.
        n_classes: Number of classes.
        mode: `none`: no weights; `balanced`: bags / (classes · bags of the class), mean weight of a bag 1.

    Raises:
        ConfigError: The mode is unknown, or a class has no bag.
    """
    if mode == "none":
        return None
    if mode != "balanced":
        raise ConfigError(
            f"There is no class weighting {mode!r}. Use none or balanced."
        )
    counts = torch.bincount(torch.as_tensor(labels), minlength=n_classes)
    if (counts == 0).any():
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ConfigError(
            f"No training bag has class {missing}; balanced weights need at least one of each class. "
            "Use class weights none, or another split."
        )
    return counts.sum() / (n_classes * counts.float())


def total_loss(
    parts: Mapping[str, Tensor], weights: Mapping[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of named losses, and each term before weighting, detached, for the log."""
    terms = [value * weights.get(name, 1.0) for name, value in parts.items()]
    return torch.stack(terms).sum(), {k: v.detach() for k, v in parts.items()}
