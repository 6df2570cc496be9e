"""How sure a figure is: bootstrap over patients, Wilson's interval, DeLong's test, paired comparisons.

The unit of resampling is the patient, since slides of one patient are not independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from .metrics import Figure, Labels, Probabilities

DRAWS = 2000
_NO_SPREAD = 1e-12
"""A standard error below this is rounding."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval (or that of another level)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """Difference of two methods on the same slides.

    Attributes:
        difference: First minus second, with its interval.
        p_value: Two-sided.
        test: Name of the test.
    """

    difference: Interval
    p_value: float
    test: str


def bootstrap_interval(
    figure: Figure,
    probabilities: Probabilities,
    labels: Labels,
    groups: Sequence[object] | None = None,
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a figure, whole patients drawn with replacement.

    Args:
        figure: A function of `metrics.FIGURES`.
        probabilities: (N, C).
        labels: (N,).
        groups: Patient of each slide; None: every slide by itself.
        draws: Number of resamples; those in which the figure is undefined are left out.
        level: Coverage.
        seed: Seed of the draws.
    """
    values = [
        figure(probabilities[rows], labels[rows])
        for rows in resamples(_groups(groups, len(labels)), draws, seed)
    ]
    return _percentiles(figure(probabilities, labels), values, level)


def wilson_interval(successes: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share; honest also where all or none succeed (Wilson 1927)."""
    if total == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z = float(stats.norm.ppf((1 + level) / 2))
    share = successes / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    spread = share * (1 - share) / total + z**2 / (4 * total**2)
    half = z * np.sqrt(spread) / (1 + z**2 / total)
    return Interval(
        share, max(float(middle - half), 0.0), min(float(middle + half), 1.0)
    )


def delong_interval(
    scores: NDArray[np.floating], positive: NDArray[np.bool_], level: float = 0.95
) -> Interval:
    """DeLong's interval of one AUC, on the logit scale so that it stays within 0 … 1; NaN with fewer than two slides of a class."""
    if _too_few(positive):
        return Interval(np.nan, np.nan, np.nan)
    areas, covariance = delong_covariance(np.asarray(scores)[None], positive)
    area = float(np.clip(areas[0], 1e-6, 1 - 1e-6))
    z = float(stats.norm.ppf((1 + level) / 2))
    width = z * float(np.sqrt(covariance[0, 0])) / (area * (1 - area))
    centre = np.log(area / (1 - area))
    low, high = 1 / (1 + np.exp(-(centre - width))), 1 / (1 + np.exp(-(centre + width)))
    return Interval(float(areas[0]), float(low), float(high))


def delong_test(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    positive: NDArray[np.bool_],
    level: float = 0.95,
) -> Comparison:
    """Compare two correlated AUCs (DeLong, DeLong and Clarke-Pearson 1988).

    Interval and p are NaN where the test is undefined: fewer than two slides of a class, or AUCs that differ without any
    spread.
    """
    if _too_few(positive):
        return Comparison(Interval(np.nan, np.nan, np.nan), np.nan, "DeLong")
    areas, covariance = delong_covariance(np.stack([first, second]), positive)
    gap = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = float(np.sqrt(max(variance, 0.0)))
    if not error > _NO_SPREAD:
        same = np.isfinite(error) and abs(gap) <= _NO_SPREAD
        edge, p_value = (gap, 1.0) if same else (np.nan, np.nan)
        return Comparison(Interval(gap, edge, edge), p_value, "DeLong")
    half = float(stats.norm.ppf((1 + level) / 2)) * error
    p_value = float(2 * stats.norm.sf(abs(gap) / error))
    return Comparison(Interval(gap, gap - half, gap + half), p_value, "DeLong")


def delong_covariance(
    scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUCs (K,) of K scores (K, N) on the same slides, and their covariance (K, K).

    Midranks make it O(N log N) (Sun and Xu 2014).
    """
    ranked = np.stack([stats.rankdata(row) for row in scores])
    inside = np.stack([stats.rankdata(row[positive]) for row in scores])
    outside = np.stack([stats.rankdata(row[~positive]) for row in scores])
    n, m = inside.shape[1], outside.shape[1]
    areas = (ranked[:, positive].sum(axis=1) / n - (n + 1) / 2) / m
    from_positive = (ranked[:, positive] - inside) / m
    from_negative = 1 - (ranked[:, ~positive] - outside) / n
    covariance = np.atleast_2d(np.cov(from_positive)) / n
    covariance = covariance + np.atleast_2d(np.cov(from_negative)) / m
    return areas, covariance


def paired_bootstrap(
    figure: Figure,
    first: Probabilities,
    second: Probabilities,
    labels: Labels,
    groups: Sequence[object] | None = None,
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Difference of two methods on the same resampled patients.

    The p-value is twice the smaller share of draws on either side of no difference, never below 1 / draws; NaN where the figure
    is defined in no draw.
    """
    gaps = np.array(
        [
            figure(first[rows], labels[rows]) - figure(second[rows], labels[rows])
            for rows in resamples(_groups(groups, len(labels)), draws, seed)
        ]
    )
    gaps = gaps[~np.isnan(gaps)]
    gap = figure(first, labels) - figure(second, labels)
    if not len(gaps):
        return Comparison(Interval(gap, np.nan, np.nan), np.nan, "paired bootstrap")
    tail = min((gaps <= 0).mean(), (gaps >= 0).mean())
    p_value = float(min(1.0, max(2 * tail, 1 / draws)))
    return Comparison(_percentiles(gap, gaps, level), p_value, "paired bootstrap")


def mcnemar_test(
    first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]
) -> float:
    """Exact McNemar test of two accuracies on the same slides, two-sided p."""
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    total = only_first + only_second
    return float(stats.binomtest(only_first, total).pvalue) if total else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of several p-values, in their order."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values, float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(p) for p in adjusted]


def resamples(
    groups: NDArray[np.int64], draws: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Rows of `draws` resamples in which whole groups are drawn with replacement."""
    rng = np.random.default_rng(seed)
    order = np.argsort(groups, kind="stable")
    edges = np.r_[0, np.cumsum(np.bincount(groups))]
    members = [order[a:b] for a, b in pairwise(edges)]
    for _ in range(draws):
        drawn = rng.integers(0, len(members), len(members))
        yield np.concatenate([members[g] for g in drawn])


def _too_few(positive: NDArray[np.bool_]) -> bool:
    """Whether a class has fewer than two slides: its placements have no variance then."""
    count = int(positive.sum())
    return min(count, len(positive) - count) < 2


def _groups(groups: Sequence[object] | None, size: int) -> NDArray[np.int64]:
    if groups is None:
        return np.arange(size)
    return np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]


def _percentiles(
    value: float, draws: Sequence[float] | NDArray[np.float64], level: float
) -> Interval:
    known = np.asarray(draws)[~np.isnan(draws)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
