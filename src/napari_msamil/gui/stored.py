"""A result folder read back, so that an old answer can be looked at without computing it again."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import MsamilError
from napari_msamil.masks import MaskSource

if TYPE_CHECKING:
    from pathlib import Path

    from napari_msamil.config import PatchSpec
    from napari_msamil.masks import SlideMask
    from napari_msamil.patches import PatchGrid
    from napari_msamil.result import SlideResult
    from napari_msamil.slide.base import SlideInfo


def read_result_folder(folder: Path, info: SlideInfo, spec: PatchSpec) -> SlideResult:
    """Read `result.json`, `patches.csv` and `mask.geojson` of a slide.

    Args:
        folder: The result folder.
        info: The slide it should belong to.
        spec: The model's patch spec, for the scales.

    Returns:
        The answer, without features.

    Raises:
        MsamilError: A file is missing or damaged, or belongs to another slide or model.
    """
    try:
        document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        with (folder / "patches.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        _check_slide(folder, document, info)
        return _result(folder, document, rows, info, spec)
    except (OSError, ValueError, KeyError) as error:
        raise MsamilError(
            f"{folder} is no complete result folder ({error}). Give the folder of one slide, as msamil classify writes it."
        ) from error


def _check_slide(folder: Path, document: dict[str, Any], info: SlideInfo) -> None:
    stored = document["slide"]
    if (stored["width"], stored["height"]) != info.size_wh0:
        raise MsamilError(
            f"{folder} belongs to a slide of {stored['width']} × {stored['height']} px; {info.name} has "
            f"{info.size_wh0[0]} × {info.size_wh0[1]}. Open the slide it belongs to."
        )


def _result(
    folder: Path,
    document: dict[str, Any],
    rows: list[dict[str, str]],
    info: SlideInfo,
    spec: PatchSpec,
) -> SlideResult:
    from napari_msamil.result import SlideResult

    model = document["model"]
    shares = [document["probabilities"][name] for name in model["classes"]]
    queries = [name for name in (rows[0] if rows else {}) if name.startswith("query_")]
    maps = [_column(rows, name) for name in queries]
    return SlideResult(
        info=info,
        model_name=model["name"],
        model_sha256=model["sha256"],
        classes=tuple(model["classes"]),
        logits=np.asarray(document["logits"], np.float32),
        probabilities=np.asarray(shares, np.float32),
        attention=_column(rows, "attention"),
        grid=_grid(folder, float(document["slide"]["mpp"]), rows, info, spec),
        mask=_mask(folder, document["mask"]["source"], info),
        features=np.zeros((0, 0), np.float32),
        valid=np.ones(len(rows), bool),
        query_attention=np.stack(maps) if maps else None,
        timings_s=dict(document["timings_s"]),
        warnings=tuple(document["warnings"]),
        partial=bool(document.get("partial", False)),
        command=document["command"],
        software=dict(document["software"]),
        **_trust(document),
    )


def _trust(document: dict[str, Any]) -> dict[str, Any]:
    """Members, class set and verdicts; older folders and single models have none."""
    from napari_msamil.result import Verdict

    names, members = document["model"]["classes"], document.get("members")
    chosen = document.get("class_set") or {}
    return {
        "member_probabilities": members
        and np.array([[m[name] for name in names] for m in members], np.float32),
        "class_set": tuple(chosen.get("classes", ())),
        "coverage": chosen.get("coverage"),
        "verdicts": tuple(Verdict(**v) for v in document.get("verdicts", ())),
    }


def _grid(
    folder: Path,
    mpp: float,
    rows: list[dict[str, str]],
    info: SlideInfo,
    spec: PatchSpec,
) -> PatchGrid:
    from napari_msamil.patches import PatchGrid, patch_sizes_px0

    codes = {scale.name: code for code, scale in enumerate(spec.scales)}
    unknown = {row["scale"] for row in rows} - set(codes)
    if unknown:
        raise MsamilError(
            f"{folder} has patches of scale {', '.join(sorted(unknown))}, which the chosen model does not have. "
            "Choose the model that made it."
        )
    return PatchGrid(
        spec=spec,
        size_wh0=info.size_wh0,
        mpp=mpp,
        size_px0=patch_sizes_px0(spec, mpp),
        coords_xy0=np.array([[int(r["x"]), int(r["y"])] for r in rows], np.int64),
        scale=np.array([codes[r["scale"]] for r in rows], np.int8),
        lesion_fraction=_column(rows, "lesion_fraction"),
    )


def _mask(folder: Path, source: str, info: SlideInfo) -> SlideMask:
    from napari_msamil.annotations import read_mask
    from napari_msamil.masks import SlideMask

    drawn = read_mask(folder / "mask.geojson", info.size_wh0)
    return SlideMask(drawn.mask, info.size_wh0, MaskSource(source))


def _column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows], np.float32)
