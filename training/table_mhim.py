"""The tables and figures of the MHIM-MIL supplementary on any cohort, the paper's numbers beside ours.

AUC is the mean over the folds' test slides with its standard deviation; a difference is paired by fold, with its standard
error. `--set mhim.high=0.02` and the like change what every run shares; Table 2 (time, memory) is `benchmarks/mhim.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from napari_msamil.errors import ConfigError

from .mhim_runs import FoldFigures, MhimRuns, Variant
from .table_work import TableResult, TableWork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from matplotlib.figure import Figure

COLUMNS = (
    "model",
    "setting",
    "AUC (ours)",
    "difference",
    "instance AUC",
    "C16 (paper)",
    "TCGA (paper)",
)
PAIR = ("abmil", "transmil")
NAMES = {
    "abmil": "AB-MIL",
    "transmil": "TransMIL",
    "dsmil": "DSMIL",
    "iaam": "IAAM",
    "clam_sb": "CLAM-SB",
    "dtfd": "DTFD-MIL",
}


@dataclass(frozen=True)
class Line:
    """One row of a table: what is run, and the paper's AUC in per cent."""

    title: str
    variant: Variant
    c16: str = "-"
    tcga: str = "-"
    against: int | None = None
    """Row it is compared with, or None."""


def methods(work: TableWork) -> TableResult:
    """Each method plain and with MHIM; Table 2's AUC columns where the paper has them."""
    paper = {
        ("abmil", False): ("94.00", "93.17"),
        ("abmil", True): ("96.14", "94.97"),
        ("transmil", False): ("93.51", "92.51"),
        ("transmil", True): ("96.49", "94.87"),
    }
    lines: list[Line] = []
    for method in ("abmil", "transmil", "dsmil", "iaam"):
        place = len(lines)
        lines.append(Line("plain", Variant(method), *paper.get((method, False), ())))
        ours = paper.get((method, True), ("-", "-"))
        lines.append(Line("MHIM", Variant(method, {}), *ours, against=place))
    return _table(work, "MHIM-MIL: methods plain and with MHIM", lines)


def table_1(work: TableWork) -> TableResult:
    """Random and low mask ratios."""
    tcga = {(0.7, 0.1): "94.65", (0.7, 0.2): "94.97", (0.8, 0.2): "94.49"}
    c16 = {(0.5, 0.0): "96.14", (0.5, 0.2): "95.92", (0.4, 0.0): "95.90"}
    lines = [
        Line(
            f"random {random:.0%}, low {low:.0%}",
            Variant("abmil", {"random": random, "low": low}),
            c16.get((random, low), "-"),
            tcga.get((random, low), "-"),
        )
        for random, low in (*c16, *tcga)
    ]
    paper = {
        (0.0, 0.7): "96.36",
        (0.0, 0.8): "96.49",
        (0.2, 0.8): "96.33",
        (0.0, 0.9): "96.10",
    }
    lines += [
        Line(
            f"random {random:.0%}, low {low:.0%}",
            Variant("transmil", {"random": random, "low": low}),
            value,
        )
        for (random, low), value in paper.items()
    ]
    return _table(work, "MHIM-MIL Table 1: random and low mask ratios", lines)


def table_3(work: TableWork) -> TableResult:
    """Decay of the high mask ratio."""
    paper = {
        "abmil": (("96.04", "94.34"), ("96.14", "94.97")),
        "transmil": (("96.07", "94.56"), ("96.49", "94.87")),
    }
    return _two(
        work,
        "MHIM-MIL Table 3: decay of the high mask ratio",
        ("constant", {"decay": False}),
        ("decaying", {"decay": True}),
        paper,
    )


def table_4(work: TableWork) -> TableResult:
    """Randomly high attention masking."""
    paper = {
        "abmil": (("95.71", "94.97"), ("96.14", "94.52")),
        "transmil": (("96.37", "94.87"), ("96.49", "94.17")),
    }
    return _two(
        work,
        "MHIM-MIL Table 4: randomly high attention masking",
        ("all candidates", {"high_randomness": 1.0}),
        ("half of twice as many", {"high_randomness": 0.5}),
        paper,
    )


def table_5(work: TableWork) -> TableResult:
    """The pretrained projection as a start, for MHIM and for plain methods."""
    lines: list[Line] = []
    paper = {
        "abmil": (
            ("93.98 (-0.02)", "92.75 (-0.42)"),
            ("96.14 (+0.63)", "94.97 (+0.49)"),
        ),
        "transmil": (
            ("94.22 (+0.71)", "93.36 (+0.85)"),
            ("96.49 (+0.90)", "94.87 (+0.95)"),
        ),
    }
    for method, (plain, mhim) in paper.items():
        place = len(lines)
        lines.append(Line("plain", Variant(method)))
        lines.append(
            Line("plain w/ init", Variant(method, init=True), *plain, against=place)
        )
        lines.append(Line("MHIM w/o init", Variant(method, {"start": "none"})))
        lines.append(
            Line("MHIM w/ init", Variant(method, {}), *mhim, against=place + 2)
        )
    other = {
        "clam_sb": ("94.53 (-0.12)", "93.43 (-0.24)"),
        "dsmil": ("94.96 (+0.39)", "93.93 (+0.22)"),
        "dtfd": ("95.23 (+0.08)", "93.80 (-0.03)"),
    }
    for method, values in other.items():
        place = len(lines)
        lines.append(Line("plain", Variant(method)))
        lines.append(
            Line("plain w/ init", Variant(method, init=True), *values, against=place)
        )
    return _table(work, "MHIM-MIL Table 5: initialisation of the student", lines)


def table_6(work: TableWork) -> TableResult:
    """Layer and fusion of TransMIL's attention."""
    first = Variant("transmil", {"layer": "first", "fusion": "voting"})
    last = Variant("transmil", {"layer": "last", "fusion": "voting"})
    mean = Variant("transmil", {"layer": "first", "fusion": "averaging"})
    lines = [
        Line("first layer, voting", first, "96.49", "94.87"),
        Line("last layer", last, "95.58 (-0.91)", "93.90 (-0.97)", against=0),
        Line("averaging", mean, "96.38 (-0.11)", "94.40 (-0.47)", against=0),
    ]
    return _table(work, "MHIM-MIL Table 6: attention of TransMIL", lines)


def figure_3(work: TableWork) -> TableResult:
    """High mask ratio."""
    values = (0.0, 0.005, 0.01, 0.03, 0.05, 0.1)
    return _sweep(work, "MHIM-MIL Figure 3: high mask ratio", "high", values)


def figure_8(work: TableWork) -> TableResult:
    """Weight of the consistency loss."""
    return _sweep(
        work, "MHIM-MIL Figure 8: loss scaling factor", "alpha", (0.0, 0.1, 0.5, 1.0)
    )


def figure_5(work: TableWork) -> TableResult:
    """The teacher's validation AUC over training, with and without the student's initialisation."""
    runs = MhimRuns(work)
    lines, curves = [], {}
    for method in _pair(work):
        for title, start in (("w/ init", "projection"), ("w/o init", "none")):
            line = Line(title, Variant(method, {"start": start, "patience": 0}))
            found = runs.figures(line.variant)
            name = f"{NAMES[method]} {title}"
            curves[name] = mean_curve(found, "teacher_auc")
            lines.append((line, found))
    result = _result(
        "MHIM-MIL Figure 5: teacher with and without initialisation", lines, work
    )
    result.figures["mhim-fig5"] = _lines_plot(
        curves, "epoch", "teacher AUC (validation)"
    )
    return result


def mean_curve(found: FoldFigures, name: str) -> list[float]:
    """Mean over folds of a validation figure, as long as the shortest fold."""
    shortest = min(len(curve) for curve in found.curves)
    return [
        float(np.mean([curve[epoch][name] for curve in found.curves]))
        for epoch in range(shortest)
    ]


def _two(
    work: TableWork,
    title: str,
    first: tuple[str, Mapping[str, Any]],
    second: tuple[str, Mapping[str, Any]],
    paper: Mapping[str, Sequence[tuple[str, str]]],
) -> TableResult:
    lines: list[Line] = []
    for method in PAIR:
        place = len(lines)
        for number, (name, change) in enumerate((first, second)):
            against = place if number else None
            lines.append(
                Line(
                    name,
                    Variant(method, change),
                    *paper[method][number],
                    against=against,
                )
            )
    return _table(work, title, lines)


def _sweep(
    work: TableWork, title: str, name: str, values: Sequence[float]
) -> TableResult:
    runs = MhimRuns(work)
    lines, curves = [], {}
    for method in _pair(work):
        found = [(v, runs.figures(Variant(method, {name: v}))) for v in values]
        lines += [
            (Line(f"{name} = {v:g}", Variant(method, {name: v})), f) for v, f in found
        ]
        curves[NAMES[method]] = [float(np.mean(f.auc)) for _, f in found]
    result = _result(title, lines, work)
    result.figures[title.split(":")[0].lower().replace(" ", "-")] = _lines_plot(
        curves, name, "AUC", values
    )
    return result


def _table(work: TableWork, title: str, lines: Sequence[Line]) -> TableResult:
    runs = MhimRuns(work)
    chosen = lines_of(lines, work.options.methods)
    return _result(title, [(line, runs.figures(line.variant)) for line in chosen], work)


def lines_of(lines: Sequence[Line], methods: Sequence[str]) -> list[Line]:
    """The lines of some methods, or all where none is named; each is compared with the same line as before.

    Raises:
        ConfigError: The table has no line of these methods.
    """
    kept = [
        i for i, x in enumerate(lines) if not methods or x.variant.method in methods
    ]
    if not kept:
        known = ", ".join(dict.fromkeys(x.variant.method for x in lines))
        raise ConfigError(
            f"This table has no line of {', '.join(methods)}; it has {known}."
        )
    place = {old: new for new, old in enumerate(kept)}
    return [
        replace(
            lines[i],
            against=None if (base := lines[i].against) is None else place[base],
        )
        for i in kept
    ]


def _pair(work: TableWork) -> list[str]:
    lines = [Line("", Variant(method)) for method in PAIR]
    return [x.variant.method for x in lines_of(lines, work.options.methods)]


def _result(
    title: str, found: Sequence[tuple[Line, FoldFigures]], work: TableWork
) -> TableResult:
    rows, values = [], {}
    for line, figures in found:
        base = None if line.against is None else found[line.against][1]
        model = NAMES[line.variant.method]
        rows.append(
            (
                model,
                line.title,
                _mean(figures.auc),
                _difference(figures, base),
                _mean(figures.instance_auc),
                line.c16,
                line.tcga,
            )
        )
        values[f"{model} {line.title}"] = {
            "auc": list(figures.auc),
            "acc": list(figures.acc),
        }
    notes = [
        (
            f"{len(found[0][1].auc)} folds of {work.options.cohort.name}, tissue patches, features of {work.options.model}; "
            "mean ± standard deviation over folds, paired difference ± standard error."
        ),
        "The paper's figures are for CAMELYON16 and TCGA lung cancer with ResNet-50 features.",
    ]
    return TableResult(title, COLUMNS, rows, notes, {}, values)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _difference(figures: FoldFigures, base: FoldFigures | None) -> str:
    if base is None:
        return ""
    gain = np.subtract(figures.auc, base.auc)
    if len(gain) < 2:
        return f"{gain.mean():+.3f}"
    return f"{gain.mean():+.3f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.3f}"


def _lines_plot(
    curves: Mapping[str, Sequence[float]], x: str, y: str, places: Sequence[float] = ()
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, values in curves.items():
        axis.plot(
            places or range(1, len(values) + 1), values, marker="o", ms=3, label=name
        )
    axis.set(xlabel=x, ylabel=y)
    axis.legend()
    axis.grid(alpha=0.3)
    return figure
