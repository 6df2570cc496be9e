"""Learn from when on a slide is unlike the training data, or has too little tissue.

Mean and covariance (shrunken, Ledoit and Wolf 2004) come from patches of training slides, the two limits from
validation slides by split conformal prediction: of new patients of the same kind each limit calls at most `rate` wrongly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_msamil.config import FamiliaritySpec
from napari_msamil.errors import CohortError, ExtraMissingError
from napari_msamil.models.familiarity import Familiarity

from .bag_cohort import cohort_bags

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from .bag_dataset import BagDataset
    from .cohort import Cohort, CohortRow

RATE = 0.05
"""Share of good patients that each limit may call wrongly."""
FEWEST = 10
"""Patients below which nothing is learnt."""
_FLOOR, _LEAST = 1e-6, 1e-20
"""Least variance of a direction: as a share of the mean one, and where all are zero."""
PER_SLIDE = 200
"""Patches of a training slide that are used, evenly over it: large slides do not outweigh small ones."""


@dataclass(frozen=True)
class Learnt:
    """Limits and the statistics they belong to.

    Attributes:
        spec: For the configuration.
        weights: Buffers of `Familiarity` by name.
        encoder_id: Encoder of the bags.
    """

    spec: FamiliaritySpec
    weights: dict[str, Tensor]
    encoder_id: str


def learn_familiarity(
    folds: Sequence[Cohort], bags: Path, scales: Sequence[str], rate: float = RATE
) -> Learnt:
    """Statistics of training slides, limits from validation slides.

    With several folds every validation slide is measured by the statistics of its own fold's training slides, and those
    of all slides together are stored (cross-conformal prediction, Vovk 2015). A patient counts once, with the most
    extreme slide: slides of one patient are alike, and as many slides of few patients would promise too much.

    Args:
        folds: The cohort with the splits of each fold.
        bags: Folder of bags, made with the encoder that is published.
        scales: Names of the model's scales, in their order.
        rate: Share of patients like these that each limit may call wrongly; larger where there are too few for it.

    Raises:
        CohortError: There are fewer than ten patients for validation.
    """
    extremes: dict[str, tuple[float, int]] = {}
    for cohort in folds:
        parts = cohort_bags(cohort, bags, scales=scales)
        if "val" in parts:
            module = fit_familiarity([parts["train"]], len(scales))
            _note_extremes(extremes, cohort.part("val"), module, parts["val"])
    count = len(extremes)
    if count < FEWEST:
        raise CohortError(
            f"The limits need validation slides of at least {FEWEST} patients; there are {count}. Give --splits, or fill "
            "the column split."
        )
    distances, patches = (np.array(v) for v in zip(*extremes.values(), strict=True))
    spec = FamiliaritySpec(
        distance=upper_limit(distances, rate),
        patches=int(lower_limit(patches, rate)),
        rate=max(rate, 1 / (count + 1)),
        patients=count,
    )
    # one fold: its training slides; several: each slide was left out by some fold, so all of them may count
    known = [p for k, p in parts.items() if k == "train" or len(folds) > 1]
    module = fit_familiarity(known, len(scales))
    return Learnt(spec, dict(module.state_dict()), parts["train"].encoder_id)


def _note_extremes(
    extremes: dict[str, tuple[float, int]],
    rows: Sequence[CohortRow],
    module: Familiarity,
    bags: BagDataset,
) -> None:
    """Largest distance and smallest number of patches of each patient."""
    values = zip(rows, slide_distances(module, bags), bags.lengths, strict=True)
    for row, distance, count in values:
        far, few = extremes.get(row.patient_id, (distance, count))
        extremes[row.patient_id] = (max(far, distance), min(few, count))


def fit_familiarity(parts: Sequence[BagDataset], scales: int) -> Familiarity:
    """Mean per scale and whitening of the features of slides."""
    try:
        from sklearn.covariance import ledoit_wolf
    except ImportError as error:
        raise ExtraMissingError("Learning familiarity", "train") from error
    rows = [torch.cat([_evenly(*ends) for ends in _bounds(part)]) for part in parts]
    known = list(zip(parts, rows, strict=True))
    features = torch.cat([p.features[r] for p, r in known]).cpu().double().numpy()
    scale = torch.cat([p.scale[r] for p, r in known]).cpu().numpy()
    module = Familiarity(scales, features.shape[1])
    centred = features.copy()
    for code in range(scales):
        own = features[scale == code]
        mean = own.mean(axis=0) if len(own) else features.mean(axis=0)
        module.mean[code] = torch.from_numpy(mean)
        centred[scale == code] -= mean
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    # an encoder that gives nearly constant features would leave nothing to invert
    floor = _FLOOR * np.trace(covariance) / len(covariance) + _LEAST
    covariance += floor * np.eye(len(covariance))
    module.whiten.copy_(torch.from_numpy(np.linalg.cholesky(np.linalg.inv(covariance))))
    return module


def slide_distances(module: Familiarity, bags: BagDataset) -> NDArray[np.float64]:
    """Distance of each slide (B,)."""
    return np.array(
        [
            float(module(bags.features[start:stop], bags.scale[start:stop]))
            for start, stop in _bounds(bags)
        ]
    )


def upper_limit(values: NDArray[np.floating], rate: float) -> float:
    """A new value of the same kind is above it with probability `rate` at most: the ⌈(n + 1)(1 − rate)⌉-th smallest.

    The largest value, with probability 1 / (n + 1), where there are too few.
    """
    place = math.ceil((len(values) + 1) * (1 - rate))
    return float(np.sort(values)[min(place, len(values)) - 1])


def lower_limit(values: NDArray[np.integer], rate: float) -> float:
    """A new value of the same kind is below it with probability `rate` at most; see `upper_limit`."""
    return -upper_limit(-values.astype(float), rate)


def _bounds(bags: BagDataset) -> Iterator[tuple[int, int]]:
    """First and last row + 1 of each bag."""
    return zip(bags.offsets[:-1], bags.offsets[1:], strict=True)


def _evenly(start: int, stop: int) -> Tensor:
    """At most `PER_SLIDE` rows, evenly over a bag."""
    count = min(stop - start, PER_SLIDE)
    return torch.from_numpy(np.linspace(start, stop - 1, count).round().astype(int))
