"""Classify a cohort with the plugin's own engine: what is measured is what a user gets, minutes included."""

from __future__ import annotations

import csv
import hashlib
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.annotations import read_mask
from napari_msamil.config import Strategy
from napari_msamil.encoding import encoder_id
from napari_msamil.errors import MsamilError
from napari_msamil.inference import FeatureBag
from napari_msamil.pipeline import ClassifyOptions, classify_steps
from napari_msamil.progress import Progress, ProgressGen, Stage, finish
from napari_msamil.slide import open_slide

from .bags import save_bag
from .made_with import claim, read_as
from .prediction_table import Predictions, read_predictions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.device import Runtime
    from napari_msamil.patches import PatchGrid
    from napari_msamil.result import SlideResult

    from .cohort_table import CohortRow


_SEPARATOR = " | "


@dataclass(frozen=True)
class EngineSpec:
    """How slides are classified.

    Attributes:
        patches: `lesion`, `tissue` or `random`; empty leaves the model's own.
        mask: `model` (the segmenter) or `file` (the cohort's masks).
        seed: Seed of the random strategy.
        bags: Folder that gets the features of every slide, `<slide_id>.pt`, for trainings; None keeps none.
    """

    patches: str = ""
    mask: str = "model"
    seed: int = 0
    bags: Path | None = None


def predict_cohort(
    rows: Sequence[CohortRow],
    loaded: LoadedModel,
    runtime: Runtime,
    path: Path,
    spec: EngineSpec | None = None,
) -> ProgressGen[dict[str, str]]:
    """Classify slides one by one and write a line for each at once, so that a stopped run goes on where it was.

    A slide whose pixel size or mask file is another than when it was classified is classified again.

    Args:
        rows: Which slides.
        loaded: The model.
        runtime: Device and precision.
        path: Table to write: that of `prediction_table`, with `seconds`, `patches`, `lesion_fraction`, `class_set`, `verdicts`,
            `warnings` and `read_as`.
        spec: How.

    Returns:
        The reason by slide, for slides that cannot be classified.

    Raises:
        ConfigError: The table was begun with another model or other patches.
    """
    spec = spec or EngineSpec()
    claim(path.parent, path.name, _inputs(loaded, spec), begun=path.exists())
    wanted = {row.slide_id: read_as(row, mask=spec.mask == "file") for row in rows}
    done = _finished(path, wanted)
    failed: dict[str, str] = {}
    for number, row in enumerate(rows):
        yield Progress(Stage.VALIDATE, number, len(rows), row.slide_id)
        if row.slide_id in done:
            continue
        try:
            line = _one(row, loaded, runtime, spec)
        except MsamilError as error:
            failed[row.slide_id] = str(error)
        else:
            known = _known(row, loaded.config.classes)
            _append(path, {**known, **line, "read_as": wanted[row.slide_id]})
    yield Progress(Stage.VALIDATE, len(rows), len(rows))
    return failed


def read_engine_run(
    path: Path, rows: Sequence[CohortRow]
) -> tuple[Predictions, dict[str, dict[str, str]]]:
    """The predictions of `predict_cohort` for some slides, and the whole line of each; an earlier run may have left more.

    Patient, split and label are those of the rows: the table says what they were when the slide was classified.
    """
    wanted = {row.slide_id: row for row in rows}
    found = read_predictions(path)
    chosen = [i for i, name in enumerate(found.slide_ids) if name in wanted]
    found = found.take(chosen)
    known = {k: _known(row, found.classes) for k, row in wanted.items()}
    lines = {k: {**v, **known[k]} for k, v in _lines(path).items() if k in wanted}
    labels = [known[name]["label"] for name in found.slide_ids]
    found = replace(
        found,
        patients=tuple(wanted[s].patient_id or s for s in found.slide_ids),
        splits=tuple(wanted[s].split for s in found.slide_ids),
        labels=np.array(
            [found.classes.index(x) if x else -1 for x in labels], np.int64
        ),
    )
    return found, lines


def unknown_class_lines(rows: Iterable[CohortRow], classes: Sequence[str]) -> list[str]:
    """How many slides are of classes that the model does not know; nothing where there are none."""
    count = Counter(r.label for r in rows if r.label and r.label not in classes)
    if not count:
        return []
    names = ", ".join(f"{name} {n}" for name, n in sorted(count.items()))
    return [
        f"{count.total()} slides are of classes that the model does not know ({names}) and are not counted."
    ]


def reliability_lines(lines: Iterable[Mapping[str, str]]) -> list[str]:
    """How often class sets held the true class, how large they were, and how many slides were called unfit.

    Args:
        lines: Of a table of `predict_cohort`; one of a model that was not calibrated says nothing.
    """
    known = [line for line in lines if line["label"]]
    sets = [
        (r["label"], r["class_set"].split(_SEPARATOR))
        for r in known
        if r.get("class_set")
    ]
    said = []
    if sets:
        held = sum(label in classes for label, classes in sets)
        size = sum(len(classes) for _, classes in sets) / len(sets)
        said.append(
            f"Class sets held the true class of {held} of {len(sets)} slides ({held / len(sets):.3f}) with {size:.2f} classes "
            "in the mean."
        )
    judged = Counter(
        v for r in known for v in r.get("verdicts", "").split(_SEPARATOR) if v
    )
    said += [
        f"{n} of {len(known)} slides were called {name}." for name, n in judged.items()
    ]
    return said


def _inputs(loaded: LoadedModel, spec: EngineSpec) -> dict[str, str]:
    """What decides the answers; slides may be added."""
    own = loaded.config.patches.model_dump_json().encode()
    return {
        "model": loaded.sha256,
        "choice of patches": spec.patches,
        "mask": spec.mask,
        "seed": str(spec.seed),
        "patch settings": hashlib.sha256(own).hexdigest(),
    }


def _one(
    row: CohortRow, loaded: LoadedModel, runtime: Runtime, spec: EngineSpec
) -> dict[str, Any]:
    start = time.perf_counter()
    with open_slide(row.path, mpp=row.mpp) as slide:
        mask = None
        if spec.mask == "file" and row.mask is not None:
            mask = read_mask(row.mask, slide.info.size_wh0)
        options = ClassifyOptions(
            mask=mask,
            strategy=Strategy(spec.patches) if spec.patches else None,
            seed=spec.seed,
            runtime=runtime,
        )
        result = finish(classify_steps(slide, loaded, options))
    seconds = time.perf_counter() - start
    if spec.bags is not None:
        _keep_bag(spec.bags, row.slide_id, result, encoder_id(loaded, runtime))
    return {
        "prediction": result.prediction,
        **{
            f"p_{c}": f"{p:.6f}"
            for c, p in zip(result.classes, result.probabilities, strict=True)
        },
        "seconds": f"{seconds:.3f}",
        "patches": len(result.grid),
        "pixels0": _pixels0(result.grid),
        "lesion_fraction": f"{result.mask.fraction:.4f}",
        "class_set": _SEPARATOR.join(result.class_set),
        "verdicts": _SEPARATOR.join(v.name for v in result.verdicts),
        "warnings": _SEPARATOR.join(result.warnings),
    }


def _keep_bag(folder: Path, name: str, result: SlideResult, encoder: str) -> None:
    """Write the features of an answer as a bag that the trainings read."""
    bag = FeatureBag(result.features, result.grid, encoder, result.valid, {}, {})
    save_bag(folder / f"{name}.pt", bag, name)


def _pixels0(grid: PatchGrid) -> int:
    """Level-0 pixels of all patches, overlap of scales counted: what must be computed."""
    return int(sum(int(grid.size_px0[s]) ** 2 for s in grid.scale.tolist()))


def _known(row: CohortRow, classes: Sequence[str]) -> dict[str, str]:
    """What the cohort says of a slide; the label is empty where the model does not know it."""
    return {
        "slide_id": row.slide_id,
        "patient_id": row.patient_id,
        "split": row.split,
        "label": row.label if row.label in classes else "",
    }


def _finished(path: Path, wanted: Mapping[str, str]) -> set[str]:
    """Slides with an answer; lines of slides that were read in another way than wanted are taken out of the table."""
    if not path.exists():
        return set()
    lines = _lines(path)
    stale = {
        name
        for name, line in lines.items()
        # a table of an older version does not say how its slides were read
        if line.get("read_as") and line["read_as"] != wanted.get(name, line["read_as"])
    }
    kept = [line for name, line in lines.items() if name not in stale]
    if not kept:
        path.unlink()
    elif stale:
        beside = path.with_name(path.name + ".part")
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(kept[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        beside.replace(path)
    return set(lines) - stale


def _lines(path: Path) -> dict[str, dict[str, str]]:
    """The lines of a table by slide."""
    with path.open(newline="", encoding="utf-8") as file:
        return {line["slide_id"]: line for line in csv.DictReader(file)}


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new, columns = not path.exists(), list(line)
    if not new:  # of a run that another version began
        with path.open(newline="", encoding="utf-8") as file:
            columns = next(csv.reader(file))
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, columns, lineterminator="\n", extrasaction="ignore"
        )
        if new:
            writer.writeheader()
        writer.writerow(line)
