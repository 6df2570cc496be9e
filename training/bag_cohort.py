"""From a cohort table and a folder of bag files to the data of each split."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from napari_msamil.errors import CohortError, ConfigError, StoreError

from .bag_dataset import BagDataset
from .bags import SUFFIXES, StoredBag, load_bag

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from napari_msamil.config import ModelConfig, ScaleSpec

    from .cohort import Cohort, CohortRow

_SHOWN = 5
_NESTED = ("csmil", "dasmil")
_ROUGHLY = 0.01


def bag_path(folder: Path, slide_id: str) -> Path | None:
    """The bag file of a slide in a folder, whatever its format; None where there is none."""
    for suffix in SUFFIXES:
        path = folder / f"{slide_id}{suffix}"
        if path.exists():
            return path
    return None


def cohort_bags(
    cohort: Cohort,
    folder: Path,
    device: str | torch.device = "cpu",
    scales: Sequence[str] = (),
) -> dict[str, BagDataset]:
    """The bags of each split that has slides.

    Args:
        cohort: With splits.
        folder: Holds `<slide_id>.pt` (or `.h5`, `.zarr`).
        device: Where the bags live.
        scales: Names of the scales that are kept; empty keeps all.

    Raises:
        CohortError: Bags are missing, or no slide is in the training split.
    """
    _all_present(cohort.rows, folder)
    parts = {}
    for split in ("train", "val", "test"):
        rows = cohort.part(split)
        if rows:
            parts[split] = row_bags(cohort, rows, folder, device, scales)
    if "train" not in parts:
        raise CohortError(
            f"No slide of {cohort.path} is in the split 'train'. Fill the column split, or give --splits and --fold."
        )
    for split, data in parts.items():
        _require_alike(split, data, parts["train"])
    return parts


def _require_alike(split: str, data: BagDataset, train: BagDataset) -> None:
    """Raise where the bags of a split were made otherwise than those that are trained on: their features mean other things."""
    pairs = {
        "values per instance": (data.dim, train.dim),
        "the encoder": (data.encoder_id, train.encoder_id),
        "the scales": (data.scale_names, train.scale_names),
        "coordinates": (data.placed, train.placed),
    }
    for what, (own, wanted) in pairs.items():
        if own != wanted:
            raise StoreError(
                f"The bags do not fit together: {what} of the split {split!r} ({data.names[0]}, …): {_told(own)}, and of "
                f"'train' ({train.names[0]}, …): {_told(wanted)}. Extract all with one encoder and model."
            )


def _told(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "none"
    return "/".join(value) if isinstance(value, tuple) else str(value)


def row_bags(
    cohort: Cohort,
    rows: Sequence[CohortRow],
    folder: Path,
    device: str | torch.device = "cpu",
    scales: Sequence[str] = (),
) -> BagDataset:
    """The bags of some rows of a cohort."""
    _all_present(rows, folder)
    paths = [bag_path(folder, row.slide_id) for row in rows]
    bags = [keep_scales(load_bag(path), scales) for path in paths if path is not None]
    names = [row.slide_id for row in rows]
    return BagDataset(bags, cohort.labels(rows), device, names)


def narrowed(model: ModelConfig, names: Sequence[str]) -> ModelConfig:
    """The model with the named scales only, finest first: what is published must look at what it was trained on.

    Args:
        model: Of the recipe.
        names: Scales that are used, in any order; empty keeps all.

    Raises:
        ConfigError: The model has no such scale, or its method needs scales that follow on each other and a gap is left.
    """
    patches, wanted = model.patches, set(names)
    known = [s.name for s in patches.scales]
    unknown = sorted(wanted - set(known))
    if unknown:
        raise ConfigError(
            f"The recipe's model has no scale {', '.join(unknown)}. It has {', '.join(known)}."
        )
    places = [i for i, name in enumerate(known) if not names or name in wanted]
    scales = tuple(patches.scales[i] for i in places)
    if model.aggregator.name in _NESTED:
        _require_nested(model.aggregator.name, scales)
    counts = patches.random_counts
    if len(counts) == len(known):
        counts = tuple(counts[i] for i in places)
    kept = patches.model_copy(update={"scales": scales, "random_counts": counts})
    return model.model_copy(update={"patches": kept})


def _require_nested(method: str, scales: Sequence[ScaleSpec]) -> None:
    for fine, coarse in pairwise(scales):
        if abs(coarse.size_um / fine.size_um - 2) > _ROUGHLY:
            raise ConfigError(
                f"{method} looks up which patch lies in which and needs scales that follow on each other, but {fine.name} "
                f"and {coarse.name} are a factor {coarse.size_um / fine.size_um:g} apart. Keep the scale between them."
            )


def keep_scales(bag: StoredBag, names: Sequence[str]) -> StoredBag:
    """The bag with instances of the named scales only, renumbered in the order of `names`; empty keeps all.

    Raises:
        StoreError: The bag has no such scale.
    """
    if not names:
        return bag
    unknown = [n for n in names if n not in bag.scale_names]
    if unknown:
        raise StoreError(
            f"The bag of {bag.slide} has no scale {', '.join(unknown)} (it has {', '.join(bag.scale_names)})."
        )
    old = [bag.scale_names.index(n) for n in names]
    keep = torch.isin(bag.scale.long(), torch.tensor(old))
    renumber = torch.zeros(len(bag.scale_names), dtype=bag.scale.dtype)
    renumber[old] = torch.arange(len(old), dtype=bag.scale.dtype)
    return replace(
        bag,
        features=bag.features[keep],
        coords_xy0=bag.coords_xy0[keep],
        scale=renumber[bag.scale[keep].long()],
        valid=bag.valid[keep],
        size_px0=tuple(bag.size_px0[i] for i in old),
        scale_names=tuple(names),
        lesion_fraction=_rows(bag.lesion_fraction, keep),
        instance_labels=_rows(bag.instance_labels, keep),
    )


def _rows(values: torch.Tensor | None, keep: torch.Tensor) -> torch.Tensor | None:
    return None if values is None else values[keep]


def _all_present(rows: Iterable[CohortRow], folder: Path) -> None:
    missing = [r.slide_id for r in rows if bag_path(folder, r.slide_id) is None]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise CohortError(
            f"{folder} has no bag of {', '.join(missing[:_SHOWN])}{more}. Run msamil-train extract first."
        )
