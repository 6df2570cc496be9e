"""Figures with intervals from predictions: per fold, pooled, and one method against another."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import intervals, metrics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .intervals import Comparison, Interval
    from .prediction_table import Predictions

SHOWN = ("acc", "auc", "f1", "balanced_acc", "ece")
TITLES = {
    "acc": "ACC",
    "auc": "AUC (macro, one-vs-rest)",
    "f1": "F1 (macro)",
    "balanced_acc": "balanced ACC",
    "ece": "ECE",
    "log_loss": "log loss",
    "brier": "Brier",
}


@dataclass(frozen=True)
class Summary:
    """Figures of one run or of all folds.

    Attributes:
        slides: Number of labelled slides.
        patients: Number of patients.
        pooled: Every figure over all slides, with a 95 % interval over patients.
        folds: Figures of each fold with intervals; empty for a single run.
        mean: Mean over folds; the pooled value for a single run.
        spread: Standard deviation over folds; NaN for a single run.
    """

    slides: int
    patients: int
    pooled: dict[str, Interval]
    folds: tuple[dict[str, Interval], ...]
    mean: dict[str, float]
    spread: dict[str, float]


def summarise(found: Predictions, *, draws: int = intervals.DRAWS) -> Summary:
    """All figures of the labelled slides."""
    found = found.labelled()
    numbers = sorted(set(found.folds))
    pooled = figures_with_intervals(found, draws=draws)
    if len(numbers) < 2:
        values = {name: i.value for name, i in pooled.items()}
        spread = dict.fromkeys(values, math.nan)
        return Summary(len(found), len(set(found.patients)), pooled, (), values, spread)
    folds = tuple(figures_with_intervals(found.fold(n), draws=draws) for n in numbers)
    table = {name: np.array([f[name].value for f in folds]) for name in pooled}
    return Summary(
        slides=len(found),
        patients=len(set(found.patients)),
        pooled=pooled,
        folds=folds,
        mean={name: float(np.nanmean(v)) for name, v in table.items()},
        spread={name: float(np.nanstd(v, ddof=1)) for name, v in table.items()},
    )


def figures_with_intervals(
    found: Predictions, *, draws: int = intervals.DRAWS
) -> dict[str, Interval]:
    """Every figure with its interval; ACC takes Wilson's where the bootstrap has no spread (all right or all wrong)."""
    p, labels = found.probabilities, found.labels
    values = {
        name: intervals.bootstrap_interval(
            figure, p, labels, found.patients, draws=draws
        )
        for name, figure in metrics.FIGURES.items()
    }
    if values["acc"].low == values["acc"].high:
        right = int((found.predicted == labels).sum())
        values["acc"] = intervals.wilson_interval(right, len(found))
    return values


def compare(
    first: Predictions, second: Predictions, *, draws: int = intervals.DRAWS
) -> dict[str, Comparison]:
    """First minus second on the same slides: paired bootstrap over patients; for two classes also DeLong's test."""
    second = second.labelled().aligned_with(first.labelled())
    first = first.labelled()
    found = {
        name: intervals.paired_bootstrap(
            metrics.FIGURES[name],
            first.probabilities,
            second.probabilities,
            first.labels,
            first.patients,
            draws=draws,
        )
        for name in ("acc", "auc")
    }
    if len(first.classes) == 2:
        found["auc (DeLong)"] = intervals.delong_test(
            first.probabilities[:, 1], second.probabilities[:, 1], first.labels == 1
        )
    return found


def thresholded(
    found: Predictions, validation: Predictions
) -> tuple[dict[str, float], str]:
    """For two classes: accuracy, sensitivity and specificity at thresholds drawn on validation slides only.

    Each fold has a threshold of its own: its validation slides are test slides of other folds, so that one threshold of all
    would be drawn on the labels it is judged by.

    Returns:
        `threshold`, or `threshold_low` and `threshold_high` of several folds, and the figures; and why there are none.
    """
    found, validation = found.labelled(), validation.labelled()
    threshold = {}
    for number in sorted(set(found.folds)):
        own = validation.fold(number)
        if len(set(own.labels.tolist())) < 2:
            why = f"No threshold is drawn: the validation slides of fold {number} are not of both classes."
            return {}, why
        threshold[number] = metrics.best_threshold(
            own.probabilities[:, 1], own.labels == 1
        )
    low, high = min(threshold.values()), max(threshold.values())
    limits = np.array([threshold[n] for n in found.folds])
    called, truth = found.probabilities[:, 1] >= limits, found.labels == 1
    several = {"threshold_low": low, "threshold_high": high}
    return {
        **(several if len(threshold) > 1 else {"threshold": low}),
        "acc": float((called == truth).mean()),
        "sensitivity": float(called[truth].mean()) if truth.any() else math.nan,
        "specificity": float((~called)[~truth].mean()) if (~truth).any() else math.nan,
    }, ""


def markdown(summary: Summary) -> str:
    """A table: one row per fold, then mean ± spread, then pooled with intervals."""
    lines = [
        "| | " + " | ".join(TITLES[name] for name in SHOWN) + " |",
        "|---" * (len(SHOWN) + 1) + "|",
    ]
    for number, fold in enumerate(summary.folds):
        lines.append(
            f"| fold {number} | " + " | ".join(str(fold[n]) for n in SHOWN) + " |"
        )
    if summary.folds:
        cells = (f"{summary.mean[n]:.3f} ± {summary.spread[n]:.3f}" for n in SHOWN)
        lines.append("| mean ± sd | " + " | ".join(cells) + " |")
    lines.append(
        "| pooled | " + " | ".join(str(summary.pooled[n]) for n in SHOWN) + " |"
    )
    note = f"{summary.slides} slides of {summary.patients} patients; 95 % intervals, bootstrap over patients."
    return "\n".join([*lines, "", note, ""])


def write_figures(
    folder: Path, summary: Summary, extra: dict[str, Any] | None = None
) -> Path:
    """Write `figures.json` and `figures.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = _plain({**asdict(summary), **(extra or {})})
    (folder / "figures.md").write_text(markdown(summary), encoding="utf-8")
    beside = folder / "figures.json.part"
    beside.write_text(
        json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    beside.replace(folder / "figures.json")
    return folder / "figures.json"


def comparison_lines(name: str, found: dict[str, Comparison]) -> Sequence[str]:
    """One sentence per figure of a comparison; where a test is undefined it says so instead of its figures."""
    return [
        f"{TITLES.get(key, key)} against {name}: "
        + (
            f"{c.difference.value:+.3f} [{c.difference.low:+.3f}, {c.difference.high:+.3f}], p = {c.p_value:.3g} ({c.test})"
            if math.isfinite(c.p_value)
            else f"not compared, {c.test} is undefined on these slides (too few of a class, or no spread)"
        )
        for key, c in found.items()
    ]


def _plain(value: Any) -> Any:
    """NaN and infinity are no JSON: they become null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
