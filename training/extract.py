"""Save the patch features of a cohort, through the plugin's own functions: what is trained on is what is run.

One bag per slide, `<slide_id>.pt` (or .h5 with the keys of CLAM and TRIDENT, or .zarr), with coordinates, scale, µm
per pixel and encoder id. Finished slides are skipped; a slide that fails is named, and the others still finish.

    msamil-train extract --model model.safetensors --cohort cohort.csv -o features/
    msamil-train extract --config mhim-abmil-camelyon16 --model timm:resnet50.tv_in1k --cohort cohort.csv -o features/
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_msamil.annotations import read_mask
from napari_msamil.config import Strategy
from napari_msamil.device import choose_runtime
from napari_msamil.errors import CohortError, MsamilError
from napari_msamil.patches import box_fractions, make_grid
from napari_msamil.pipeline import find_mask
from napari_msamil.slide import open_slide
from napari_msamil.tissue import find_tissue

from .bags import StoredBag, save_bag
from .cohort import read_cohort
from .config import (
    ExtractSpec,
    add_recipe_arguments,
    config_hash,
    describe,
    read_recipe,
    section,
)
from .made_with import claim, inputs_of, note, noted, read_as
from .scale_encoders import load_encoders

if TYPE_CHECKING:
    import argparse

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.device import Runtime
    from napari_msamil.masks import SlideMask
    from napari_msamil.slide import Slide

    from .cohort import CohortRow
    from .scale_encoders import ScaleEncoders

SUMMARY = "extracted.json"
INSTANCE_POSITIVE = 0.5
"""A patch counts as lesion, for instance labels, if the cohort's mask covers more than this share of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train extract`."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--cohort", type=Path, required=True, help="cohort table (.csv)"
    )
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        help="checkpoint, hf://…, demo, or timm:<name> with the sizes of --config; or one per scale: 20x=A 10x=B 5x=C",
    )
    parser.epilog = "settings ([extract] in the recipe):\n" + describe(
        ExtractSpec, "extract"
    )


def run(args: argparse.Namespace) -> int:
    """Extract as the arguments say; 1 if some slide failed."""
    from tqdm import tqdm

    raw = read_recipe(args.config, args.overrides)
    spec = section(raw, "extract", ExtractSpec)
    cohort = read_cohort(args.cohort, need_labels=False)
    runtime = choose_runtime(args.device, args.precision)
    encoders = load_encoders(args.model, raw, runtime.device)
    part = f"*.{spec.format}"
    inputs = _inputs(args.model, spec, raw)
    claim(args.out, part, inputs, begun=any(args.out.glob(part)))
    failed, slides = {}, _Slides(args.out, part)
    for row in tqdm(cohort.rows, desc="extract", unit="slide", file=sys.stderr):
        path = args.out / f"{row.slide_id}.{spec.format}"
        if slides.is_done(row, path):
            continue
        slides.note(row)
        try:
            save_bag(path, extract_slide(row, encoders, spec, runtime))
        except MsamilError as error:
            failed[row.slide_id] = str(error)
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)  # noqa: T201
    done = len(cohort) - len(failed)
    _write_summary(args.out, " ".join(args.model), spec, done, failed)
    print(f"{done} of {len(cohort)} slides have bags in {args.out}")  # noqa: T201
    return 1 if failed else 0


class _Slides:
    """How the slides of the bags in a folder were read, noted beside them: one read in another way is extracted again."""

    def __init__(self, folder: Path, part: str) -> None:
        self._folder, self._part = folder, f"{part}: slides"
        self._known = noted(folder, self._part)

    def is_done(self, row: CohortRow, path: Path) -> bool:
        """Whether the bag is there and the same; another one is removed, so that nothing is trained on it."""
        if not path.exists():
            return False
        # nothing is known of a bag that an older version or the engine made
        if self._known.get(row.slide_id) in (None, read_as(row, mask=True)):
            return True
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        return False

    def note(self, row: CohortRow) -> None:
        """A bag is about to be made."""
        self._known[row.slide_id] = read_as(row, mask=True)
        note(self._folder, self._part, self._known)


def _inputs(
    models: list[str], spec: ExtractSpec, raw: dict[str, Any]
) -> dict[str, str]:
    """What decides the bags; slides may be added. The recipe's model counts where it says what patches timm encoders get."""
    named = any("timm:" in model for model in models)
    return {
        **inputs_of(["--model", *models]),
        "[extract]": config_hash(spec.model_dump(mode="json")),
        "[model]": config_hash(raw.get("model", {}) if named else {}),
    }


def _write_summary(
    folder: Path, model: str, spec: ExtractSpec, done: int, failed: dict[str, str]
) -> None:
    """Say beside the bags how they were made and which slides failed."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {
        "model": model,
        "settings": spec.model_dump(mode="json"),
        "bags": done,
        "failed": failed,
    }
    (folder / SUMMARY).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def extract_slide(
    row: CohortRow, encoders: ScaleEncoders, spec: ExtractSpec, runtime: Runtime
) -> StoredBag:
    """Features of the chosen patches of one slide.

    Raises:
        MsamilError: The slide cannot be read, or no patch is chosen.
    """
    loaded = encoders.first
    with open_slide(row.path, mpp=row.mpp) as slide:
        changes: dict[str, Any] = {"strategy": Strategy(spec.patches)}
        if spec.max_patches is not None:
            changes["max_patches"] = spec.max_patches
        patches = loaded.config.patches.model_copy(update=changes)
        tissue = find_tissue(slide, loaded.config.tissue)
        mask = tissue
        if patches.strategy is Strategy.LESION:
            mask = _lesion(slide, row, loaded, spec, runtime)
        grid = make_grid(slide.info, patches, mask, tissue=tissue)
        bag = encoders.encode(slide, grid, runtime)
        stored = StoredBag.from_feature_bag(bag, row.slide_id)
        if row.mask is None:
            return stored
        truth = read_mask(row.mask, slide.info.size_wh0)
    share = box_fractions(truth, grid.boxes_xywh0)
    labels = torch.from_numpy((share > INSTANCE_POSITIVE).astype(np.int8))
    return replace(stored, instance_labels=labels)


def _lesion(
    slide: Slide,
    row: CohortRow,
    loaded: LoadedModel,
    spec: ExtractSpec,
    runtime: Runtime,
) -> SlideMask:
    """The lesion mask from where the settings say.

    Raises:
        CohortError: The file is asked for, but the row has none.
    """
    if spec.mask == "model" or (spec.mask == "auto" and row.mask is None):
        return find_mask(slide, loaded, runtime)[0]
    if row.mask is None:
        raise CohortError(
            f"{row.slide_id} has no mask file. Fill the column mask, or set extract.mask to 'auto' or 'model'."
        )
    return read_mask(row.mask, slide.info.size_wh0)
