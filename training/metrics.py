"""Figures of a classifier from its probabilities: pure numpy, named as the tables print them.

AUC is one-versus-rest, averaged over the classes without weights (macro); for two classes it is the AUC of the second.
A figure that is not defined (a class without slides) is NaN, never 0 or 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Probabilities = NDArray[np.float64]
    Labels = NDArray[np.int64]
    Figure = Callable[[Probabilities, Labels], float]

ECE_BINS = 15


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Probabilities:
    """Probabilities (N, C) of logits (N, C), in float64."""
    scaled = np.asarray(logits, np.float64) / temperature
    shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def accuracy(probabilities: Probabilities, labels: Labels) -> float:
    """Share of slides whose largest probability is at their class."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def balanced_accuracy(probabilities: Probabilities, labels: Labels) -> float:
    """Mean recall over the classes that occur."""
    right = probabilities.argmax(axis=1) == labels
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))


def macro_f1(probabilities: Probabilities, labels: Labels) -> float:
    """Mean F1 over all classes that occur or are predicted."""
    table = confusion(probabilities.argmax(axis=1), labels, probabilities.shape[1])
    hit = np.diag(table).astype(float)
    total = table.sum(axis=0) + table.sum(axis=1)
    used = total > 0
    return float((2 * hit[used] / total[used]).mean())


def binary_auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve from ranks, ties counted half; NaN where a class is empty."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = float(rankdata(scores)[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def class_aucs(probabilities: Probabilities, labels: Labels) -> NDArray[np.float64]:
    """One-versus-rest AUC of every class (C,)."""
    columns = range(probabilities.shape[1])
    return np.array([binary_auc(probabilities[:, c], labels == c) for c in columns])


def macro_auc(probabilities: Probabilities, labels: Labels) -> float:
    """Mean one-versus-rest AUC over the classes that occur; the second class's for two classes."""
    each = class_aucs(probabilities, labels)
    if len(each) == 2:
        return float(each[1])
    known = each[~np.isnan(each)]
    return float(known.mean()) if len(known) else float("nan")


def calibration_error(
    probabilities: Probabilities, labels: Labels, bins: int = ECE_BINS
) -> float:
    """Expected calibration error: gap of confidence and accuracy over equal bins of the largest probability."""
    table = reliability(probabilities, labels, bins)
    gaps = np.abs(table.confidence - table.accuracy) * table.count
    return float(np.nansum(gaps) / len(labels))


def log_loss(probabilities: Probabilities, labels: Labels) -> float:
    """Mean negative log probability of the true class."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, 1e-12)).mean())


def brier_score(probabilities: Probabilities, labels: Labels) -> float:
    """Mean squared distance to the one-hot truth, summed over classes (0 … 2)."""
    truth = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


FIGURES: dict[str, Figure] = {
    "acc": accuracy,
    "auc": macro_auc,
    "f1": macro_f1,
    "balanced_acc": balanced_accuracy,
    "ece": calibration_error,
    "log_loss": log_loss,
    "brier": brier_score,
}
"""All figures by the name used in tables and files."""


def all_figures(probabilities: Probabilities, labels: Labels) -> dict[str, float]:
    """Every figure of `FIGURES`."""
    return {name: figure(probabilities, labels) for name, figure in FIGURES.items()}


def confusion(predicted: Labels, labels: Labels, n_classes: int) -> NDArray[np.int64]:
    """Counts (C, C): rows are the truth, columns the prediction."""
    table = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(table, (labels, predicted), 1)
    return table


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence against accuracy over equal bins of the largest probability, all (bins,).

    Attributes:
        confidence: Mean largest probability; NaN in an empty bin.
        accuracy: Share of right answers; NaN in an empty bin.
        count: Slides.
    """

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]


def reliability(
    probabilities: Probabilities, labels: Labels, bins: int = ECE_BINS
) -> Reliability:
    """The table behind a reliability diagram."""
    top = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels).astype(float)
    place = np.clip(np.ceil(top * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, top, bins) / count
        share = np.bincount(place, right, bins) / count
    return Reliability(confidence, share, count)


def roc_curve(
    scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """False and true positive rates (K,) and their thresholds, from (0, 0) to (1, 1)."""
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], positive[order]
    last = np.r_[np.nonzero(np.diff(ranked))[0], len(ranked) - 1]
    true, false = np.cumsum(hit)[last], np.cumsum(~hit)[last]
    start = np.zeros(1)
    tpr = np.r_[start, true / max(int(positive.sum()), 1)]
    fpr = np.r_[start, false / max(int((~positive).sum()), 1)]
    return fpr, tpr, np.r_[np.inf, ranked[last]]


def best_threshold(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """Threshold with the largest Youden index; to be drawn on validation slides only.

    The middle between the two neighbouring scores is returned, so that it carries over to other slides.
    """
    fpr, tpr, thresholds = roc_curve(scores, positive)
    best = int(np.argmax(tpr - fpr))
    low = thresholds[best + 1] if best + 1 < len(thresholds) else thresholds[best]
    high = thresholds[best]
    return float(low if np.isinf(high) else (high + low) / 2)
