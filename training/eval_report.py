"""The evaluation as one HTML page without other files."""

from __future__ import annotations

import html
import io
import math
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import MsamilError

from . import plots
from .summary import SHOWN, TITLES, Summary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from .cohort_table import Cohort
    from .prediction_table import Predictions

THUMBNAIL_PX = 320
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:62em;color:#222}"
    "table{border-collapse:collapse}td,th{border-bottom:1px solid #ccc;padding:.3em .7em;text-align:left}"
    "figure{display:inline-block;margin:.5em;vertical-align:top}figcaption{max-width:22em;font-size:13px}"
    ".note{color:#555}"
)


def write_report(
    path: Path,
    found: Predictions,
    summary: Summary,
    figures: Mapping[str, Figure],
    worst: Sequence[int],
    cohort: Cohort | None,
    extra: Mapping[str, Any],
) -> Path:
    """Write the page.

    Args:
        path: The HTML file.
        found: The slides reported on.
        summary: Their figures.
        figures: Plots by title.
        worst: Indices of the errors to show, worst first.
        cohort: Where slides are, for pictures; None shows none.
        extra: Further figures (threshold, comparison, notes).
    """
    parts = [
        "<h1>Evaluation</h1>",
        f"<p>{summary.slides} slides of {summary.patients} patients, classes: {html.escape(', '.join(found.classes))}.</p>",
        _table(summary),
        "<p class=note>95 % intervals by bootstrap over patients. Research only, not for diagnosis.</p>",
        *(
            f"<p>{html.escape(str(line))}</p>"
            for line in (*extra.get("notes", ()), *extra.get("against", ()))
        ),
        *_threshold(extra.get("threshold_from_validation")),
        *(
            _figure(title, plots.png_bytes(figure), title)
            for title, figure in figures.items()
        ),
        *_errors(found, worst, cohort),
    ]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style>"
    beside = path.with_suffix(".part")
    beside.write_text(page + "\n".join(parts) + "</html>\n", encoding="utf-8")
    beside.replace(path)
    return path


def _table(summary: Summary) -> str:
    head = "".join(f"<th>{TITLES[n]}</th>" for n in SHOWN)
    rows = [(f"fold {i}", f) for i, f in enumerate(summary.folds)] + [
        ("all slides", summary.pooled)
    ]
    body = "".join(
        f"<tr><th>{name}</th>"
        + "".join(f"<td>{values[n]}</td>" for n in SHOWN)
        + "</tr>"
        for name, values in rows
    )
    return f"<table><tr><th></th>{head}</tr>{body}</table>"


def _threshold(found: Mapping[str, float] | None) -> list[str]:
    if not found:
        return []
    cells = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}"
        for name, value in found.items()
        if not math.isnan(value)
    )
    return [
        f"<p>With the threshold drawn on the validation slides of each fold: {cells}.</p>"
    ]


def _errors(
    found: Predictions, worst: Sequence[int], cohort: Cohort | None
) -> list[str]:
    if not worst:
        return ["<h2>Errors</h2><p>None.</p>"]
    parts = ["<h2>Worst errors</h2>"]
    for i in worst:
        true, called = found.classes[found.labels[i]], found.classes[found.predicted[i]]
        chance = found.probabilities[i, found.predicted[i]]
        text = f"{found.slide_ids[i]}: {called} ({chance:.2f}) instead of {true}"
        picture = _thumbnail(found.slide_ids[i], cohort)
        parts.append(
            _figure(text, picture, found.slide_ids[i])
            if picture
            else f"<p>{html.escape(text)}</p>"
        )
    return parts


def _figure(caption: str, png: bytes, alt: str) -> str:
    image = f'<img src="{plots.data_uri(png)}" alt="{html.escape(alt, quote=True)}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _thumbnail(slide_id: str, cohort: Cohort | None) -> bytes | None:
    """A picture of a slide; None where it cannot be read (the report says the rest)."""
    from PIL import Image

    from napari_msamil.slide import open_slide

    rows = [] if cohort is None else [r for r in cohort.rows if r.slide_id == slide_id]
    if not rows:
        return None
    try:
        with open_slide(rows[0].path, mpp=rows[0].mpp) as slide:
            width, height = slide.info.size_wh0
            factor = THUMBNAIL_PX / max(width, height)
            pixels = slide.thumbnail(
                (max(round(width * factor), 1), max(round(height * factor), 1))
            )
    except MsamilError:
        return None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
