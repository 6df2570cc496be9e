"""Figures as PNG files, drawn without a display."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from .intervals import Interval
    from .prediction_table import Predictions

DPI = 110


def confusion_plot(found: Predictions) -> Figure:
    """Counts: rows are the truth, columns the prediction."""
    table = metrics.confusion(found.predicted, found.labels, len(found.classes))
    figure, axes = _figure(1.4 + 0.9 * len(table), 1.2 + 0.8 * len(table))
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(table):
        colour = "white" if share[row, column] > 0.6 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(table)), found.classes, rotation=30, ha="right")
    axes.set_yticks(range(len(table)), found.classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def roc_plot(found: Predictions) -> Figure:
    """One-versus-rest ROC curve of every class."""
    figure, axes = _figure(5, 4.5)
    areas = metrics.class_aucs(found.probabilities, found.labels)
    for index, name in enumerate(found.classes):
        fpr, tpr, _ = metrics.roc_curve(
            found.probabilities[:, index], found.labels == index
        )
        axes.plot(fpr, tpr, label=f"{name} ({areas[index]:.3f})")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.legend(title="class (AUC)", loc="lower right", fontsize=8)
    return figure


def reliability_plot(found: Predictions) -> Figure:
    """Confidence against accuracy; the bars below show how many slides."""
    figure, axes = _figure(5, 4.5)
    table = metrics.reliability(found.probabilities, found.labels)
    full = table.count > 0
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot(table.confidence[full], table.accuracy[full], marker="o")
    bins = len(table.count)
    axes.bar(
        (np.arange(bins) + 0.5) / bins,
        table.count / len(found),
        width=0.9 / bins,
        alpha=0.25,
    )
    error = metrics.calibration_error(found.probabilities, found.labels)
    axes.set_title(f"expected calibration error {error:.3f}", fontsize=10)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy, share of slides")
    return figure


def interval_plot(rows: Mapping[str, Interval], title: str) -> Figure:
    """One figure of several methods with intervals, the first on top."""
    figure, axes = _figure(6, 0.9 + 0.35 * len(rows))
    for place, (_name, found) in enumerate(rows.items()):
        axes.plot([found.low, found.high], [-place, -place], color="tab:blue")
        axes.plot(found.value, -place, marker="o", color="tab:blue")
    axes.set_yticks([-i for i in range(len(rows))], list(rows))
    axes.set_xlabel(title)
    axes.grid(axis="x", alpha=0.3)
    return figure


def curve_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Curves by name, with horizontal reference lines."""
    figure, axes = _figure(5.5, 4)
    for name, (x, y) in curves.items():
        axes.plot(x, y, marker="o", markersize=3, label=name)
    for name, level in (levels or {}).items():
        axes.axhline(level, color="grey", linestyle="--", label=name)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def histogram_plot(
    values: Sequence[float] | NDArray[np.float64], xlabel: str, ylabel: str
) -> Figure:
    """How often which value occurs."""
    figure, axes = _figure(5, 3.2)
    axes.hist(values, bins=20)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure


def save_plot(path: Path, figure: Figure) -> Path:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png_bytes(figure))
    return path


def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG for an `img` element of a page without other files."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    return figure, axes
