"""A result as one HTML page that needs nothing beside it and prints well."""

from __future__ import annotations

import base64
import io
import tempfile
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.errors import RegionError
from napari_msamil.export import write_overview
from napari_msamil.patch_reader import read_patch
from napari_msamil.result import trust_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from napari_msamil.result import SlideResult
    from napari_msamil.slide.base import Slide

TOP_PATCHES = 6
_PATCH_PX = 128
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 1.8rem; }
.note { border-left: 4px solid #b36b00; background: #fff6e6; padding: .5rem .8rem; margin: .5rem 0; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
.bar { background: #3b6ea5; height: .8rem; min-width: 1px; }
.patches { display: flex; flex-wrap: wrap; gap: .6rem; } figure { margin: 0; break-inside: avoid; }
figcaption { font-size: .75rem; color: #555; } img { max-width: 100%; } code { overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; } .note { border: 1px solid #b36b00; } h2 { break-after: avoid; } }
"""


def write_report(result: SlideResult, path: Path, slide: Slide) -> Path:
    """Write the report beside its place, then rename.

    Args:
        result: What it is about.
        path: The HTML file.
        slide: The open slide, for pictures.

    Returns:
        The file.
    """
    info = result.info
    parts = [
        f"<h1>{escape(info.name)}: {escape(result.prediction)}</h1>",
        f"<p>{escape(result.model_name)} · {_patch_words(result)}</p>",
        *(f'<div class="note">{escape(text)}</div>' for text in _notes(result)),
        "<h2>Probabilities</h2>",
        _probabilities(result),
        "<h2>Mask and attention</h2>",
        _picture(_overview(result, slide), "mask and attention over the slide"),
        *_galleries(result, slide),
        "<h2>Provenance</h2>",
        _table(_provenance(result)),
    ]
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(info.name)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    part = path.with_name(path.name + ".part")
    part.write_text(html, encoding="utf-8")
    return part.replace(path)


def _notes(result: SlideResult) -> list[str]:
    notes = ["Research only. Not for diagnosis.", *result.warnings]
    if result.partial:
        notes.insert(0, "Partial result: not every patch was looked at.")
    return notes


def _patch_words(result: SlideResult) -> str:
    counts = ", ".join(f"{n} at {escape(k)}" for k, n in result.counts.items())
    return f"{int(result.valid.sum())} patches ({counts})"


def _probabilities(result: SlideResult) -> str:
    rows = []
    spread = result.spread
    for i in np.argsort(result.probabilities)[::-1]:
        share = float(result.probabilities[i])
        give = "" if spread is None else f" ± {float(spread[i]):.4f}"
        bar = f'<div class="bar" style="width:{18 * share:.2f}rem"></div>'
        name = escape(result.classes[i])
        rows.append(f"<tr><td>{name}</td><td>{share:.4f}{give}</td><td>{bar}</td></tr>")
    words = " ".join(map(escape, trust_lines(result)))
    return f"<table>{''.join(rows)}</table><p>{words}</p>"


def _overview(result: SlideResult, slide: Slide) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overview.png"
        write_overview(result, path, slide)
        return path.read_bytes()


def _picture(png: bytes, words: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">'


def _galleries(result: SlideResult, slide: Slide) -> Iterable[str]:
    """Top patches: by attention, for each class where patches are scored, for each query that counts."""
    yield from _gallery("Most attended patches", result.attention, result, slide)
    if result.instance_logits is not None:
        for i, name in enumerate(result.classes):
            scores = np.where(result.valid, result.instance_logits[:, i], -np.inf)
            yield from _gallery(f"Patches most like {name}", scores, result, slide)
    if result.query_attention is not None:
        gates = result.gates
        count = len(result.query_attention)
        order = range(count) if gates is None else np.argsort(gates)[::-1]
        for q in order:
            gate = "" if gates is None else f", gate {gates[q]:.2f}"
            scores = result.query_attention[q]
            yield from _gallery(f"Query {q}{gate}", scores, result, slide)


def _gallery(
    title: str, scores: NDArray[np.floating], result: SlideResult, slide: Slide
) -> Iterable[str]:
    yield f"<h2>{escape(title)}</h2>"
    best = np.argsort(scores, kind="stable")[::-1][:TOP_PATCHES]
    figures = [
        _figure(int(i), float(scores[i]), result, slide)
        for i in best
        if result.valid[i]
    ]
    yield f'<div class="patches">{"".join(figures)}</div>'


def _figure(index: int, score: float, result: SlideResult, slide: Slide) -> str:
    grid = result.grid
    x, y = grid.coords_xy0[index].tolist()
    words = (
        f"{grid.spec.scales[int(grid.scale[index])].name} at x {x}, y {y}: {score:.4g}"
    )
    try:
        pixels = Image.fromarray(read_patch(slide, grid, index))
    except RegionError:
        return f"<figure><figcaption>{words} (unreadable)</figcaption></figure>"
    pixels.thumbnail((_PATCH_PX, _PATCH_PX))
    stream = io.BytesIO()
    pixels.save(stream, "PNG")
    picture = _picture(stream.getvalue(), words)
    return f"<figure>{picture}<figcaption>{words}</figcaption></figure>"


def _provenance(result: SlideResult) -> Sequence[tuple[str, str]]:
    info = result.info
    width, height = info.size_wh0
    mpp = "unknown" if info.mpp is None else f"{info.mpp:.5g} µm/px"
    spec = result.grid.spec
    return [
        ("Slide", str(info.path)),
        ("Size", f"{width} × {height} px, {mpp} (source: {info.mpp_source})"),
        ("Identity", info.quickhash),
        ("Model", f"{result.model_name}, SHA-256 {result.model_sha256}"),
        ("Mask", f"{result.mask.source}, {result.mask.fraction:.2%} of the slide"),
        ("Selection", f"{spec.strategy}, lesion share above {spec.lesion_threshold}"),
        ("Seconds", ", ".join(f"{k} {v:.2f}" for k, v in result.timings_s.items())),
        ("Software", ", ".join(f"{k} {v}" for k, v in result.software.items())),
        ("Command", result.command),
    ]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = (
        f"<tr><th>{escape(k)}</th><td><code>{escape(v)}</code></td></tr>"
        for k, v in rows
    )
    return f"<table>{''.join(cells)}</table>"
