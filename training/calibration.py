"""Honest probabilities: a temperature, sets that hold the true class, and slides the model should not judge.

All three are learnt from validation slides that no weight was trained on. Temperature: Guo et al. 2017. Sets: split
conformal prediction with regularised adaptive scores (Angelopoulos et al. 2021, without randomisation): the set holds the true
class of a new slide with the promised probability, if the slide is of the same kind as the validation slides.
A few slides that are all right say little about the temperature: a weak prior holds it near 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar

from napari_msamil.errors import CohortError

from . import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .metrics import Labels, Probabilities
    from .prediction_table import Predictions

COVERAGE = 0.9
FEWEST = 10
"""Validation slides below which nothing is calibrated."""
PENALTY = 0.05
"""Added to the score of a class for every likelier one."""
_RANGE = (math.log(0.05), math.log(20.0))


@dataclass(frozen=True)
class Calibration:
    """What is stored with a checkpoint.

    Attributes:
        temperature: Divides the logits.
        coverage: Promised share of slides whose set holds the true class.
        set_threshold: Largest score of a class of the set; at least one class is in it.
        set_penalty: Part of the score, for every likelier class.
        slides: Validation slides it was learnt from.
        ece_before, ece_after: Calibration error on those slides as they were predicted, and with the temperature.
    """

    temperature: float
    coverage: float
    set_threshold: float
    set_penalty: float
    slides: int
    ece_before: float
    ece_after: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the provenance of a checkpoint."""
        return asdict(self)


def calibrate(
    found: Predictions,
    coverage: float = COVERAGE,
    *,
    made_at: float = 1.0,
    refit: bool = True,
) -> Calibration:
    """Learn temperature and set threshold from validation predictions.

    The threshold belongs to the probabilities at the temperature that is returned.

    Args:
        found: The predictions.
        coverage: Promised share of slides whose set holds the true class.
        made_at: Temperature they were made with; what is learnt multiplies it.
        refit: Whether the temperature may change. The mean of an ensemble at another temperature does not follow from
            the mean at this one, so a threshold for it would belong to no probabilities.

    Raises:
        CohortError: There are too few labelled slides.
    """
    found = found.labelled()
    if len(found) < FEWEST:
        raise CohortError(
            f"Calibration needs at least {FEWEST} labelled validation slides; there are {len(found)}."
        )
    logits = np.log(np.maximum(found.probabilities, 1e-6))
    factor = fit_temperature(logits, found.labels) if refit else 1.0
    after = metrics.softmax(logits, factor)
    return Calibration(
        temperature=made_at * factor,
        coverage=coverage,
        set_threshold=conformal_threshold(after, found.labels, coverage),
        set_penalty=PENALTY,
        slides=len(found),
        ece_before=metrics.calibration_error(found.probabilities, found.labels),
        ece_after=metrics.calibration_error(after, found.labels),
    )


def fit_temperature(logits: NDArray[np.float64], labels: Labels) -> float:
    """The most likely temperature between 0.05 and 20, its logarithm being normal around 0 with deviation 1 beforehand."""

    def loss(log_temperature: float) -> float:
        shares = metrics.softmax(logits, math.exp(log_temperature))
        return len(labels) * metrics.log_loss(shares, labels) + log_temperature**2 / 2

    return float(math.exp(minimize_scalar(loss, bounds=_RANGE, method="bounded").x))


def conformal_threshold(
    probabilities: Probabilities,
    labels: Labels,
    coverage: float = COVERAGE,
    penalty: float = PENALTY,
) -> float:
    """Score that the true class of `coverage` of slides does not exceed, for finite samples.

    The ⌈(n + 1) · coverage⌉-th smallest of n scores; the largest possible (every class) where n is too small for the promise.
    """
    scores = np.sort(true_class_scores(probabilities, labels, penalty))
    place = math.ceil((len(scores) + 1) * coverage)
    everything = 1.0 + penalty * (probabilities.shape[1] - 1)
    return float(scores[place - 1]) if place <= len(scores) else everything


def true_class_scores(
    probabilities: Probabilities, labels: Labels, penalty: float = PENALTY
) -> NDArray[np.float64]:
    """Sum of probabilities (N,) of all classes at least as likely as the true one, and the penalty for each of the others."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    before = probabilities >= own
    return np.asarray(
        (probabilities * before).sum(axis=1) + penalty * (before.sum(axis=1) - 1)
    )
