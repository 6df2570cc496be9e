"""Plain and MHIM trainings over the folds of a cohort, each run once and kept: what the supplementary's tables are made of."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from napari_msamil.config import AggregatorSpec

from .bag_cohort import row_bags
from .compare import BagParts, Outcome, train_mhim, train_plain
from .config import config_hash, read_recipe, section
from .mhim_task import MhimSpec
from .mil_task import MilSpec
from .splits import read_splits
from .state import load_state, save_state
from .table_work import say

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from .table_work import TableWork

_ABMIL = {"gated": False, "activation": "relu", "bias": False, "dropout": 0.25}
METHODS: dict[str, dict[str, Any]] = {
    "abmil": {"hidden": 128, "attention_dim": 64, **_ABMIL},
    "transmil": {
        "hidden": 64,
        "heads": 8,
        "landmarks": 32,
        "square": "ppeg",
        "projection_dropout": 0.25,
    },
    "dsmil": {"hidden": 128, "query_dim": 64, "dropout": 0.25},
    "iaam": {"dim": 96, "heads": 4, "rank": 16, "mlp_dim": 192},
    "clam_sb": {"hidden": 128, "attention_dim": 64},
    "dtfd": {"hidden": 128, "attention_dim": 64},
}
"""Sizes for features of small encoders. IAAM's width differs from theirs: without a projection a student has no start."""
MASKS: dict[str, dict[str, Any]] = {
    "abmil": {"high": 0.01, "random": 0.5, "high_randomness": 0.5},
    "transmil": {"high": 0.03, "low": 0.8, "high_randomness": 0.5},
    "dsmil": {"high": 0.01, "random": 0.5, "high_randomness": 0.5},
    "iaam": {"high": 0.01, "random": 0.5, "high_randomness": 0.5},
}
"""Masking of the CAMELYON16 recipes; DSMIL and IAAM take AB-MIL's."""
_LOOP = {"epochs": 50, "patience": 0, "monitor": "val_auc", "tie_break": True}
"""The state with the best AUC on the validation slides, as the authors choose it (the loss of few slides rises while AUC
still does); on a dozen slides many states share it. No early stop: it ends trainings, students first, before they learn."""
_MOMENTUM = 0.999
"""The paper's 0.9999 is made for some 40,000 steps; a small cohort has a few thousand."""


@dataclass(frozen=True)
class Variant:
    """One way to train one method.

    Attributes:
        method: Of `METHODS`.
        mhim: Changes of the MHIM settings, or None for the plain method.
        init: Whether the plain method starts with the pretrained projection.
    """

    method: str
    mhim: Mapping[str, Any] | None = None
    init: bool = False


@dataclass(frozen=True)
class FoldFigures:
    """What a variant came to, fold by fold.

    Attributes:
        auc, acc: Test figures per fold.
        instance_auc: How well attention finds lesion patches, per fold; NaN where no truth is known.
        seconds: Training time per fold.
        curves: Validation figures per fold.
    """

    auc: tuple[float, ...]
    acc: tuple[float, ...]
    instance_auc: tuple[float, ...]
    seconds: tuple[float, ...]
    curves: tuple[tuple[dict[str, float], ...], ...] = field(default=(), repr=False)


class MhimRuns:
    """Runs variants on a cohort's tissue bags; finished ones are read back.

    Args:
        work: Options, splits and features of the table.
    """

    def __init__(self, work: TableWork) -> None:
        self.work = work
        self.folder = work.shared / "mhim_runs"
        self._data = {
            "bags": work.bags_folder(work.options.model, patches="tissue").name,
            "splits": read_splits(work.splits()).sha256,
        }
        raw = read_recipe(work.options.recipe, work.options.overrides)
        self.overrides: dict[str, dict[str, Any]] = {
            name: dict(raw.get(name, {})) for name in ("mil", "mhim")
        }
        if work.options.epochs is not None:
            for table in self.overrides.values():
                table["epochs"] = work.options.epochs
        self._parts: dict[int, BagParts] = {}

    def figures(self, variant: Variant) -> FoldFigures:
        """Test figures of a variant over all folds."""
        count = min(len(read_splits(self.work.splits()).folds), self.work.options.folds)
        found = [self._run(variant, fold) for fold in range(count)]
        return FoldFigures(
            tuple(f["auc"] for f in found),
            tuple(f["acc"] for f in found),
            tuple(f.get("instance_auc", math.nan) for f in found),
            tuple(f["seconds"] for f in found),
            tuple(tuple(f["curve"]) for f in found),
        )

    def _run(self, variant: Variant, fold: int) -> dict[str, Any]:
        settings = self._settings(variant, fold)
        made = {"init": variant.init, "args": METHODS[variant.method], **self._data}
        key = config_hash({**made, "settings": settings.model_dump()})
        path = self.folder / f"{variant.method}_{key}_fold{fold}.json"
        if path.exists():
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return known
        say(
            f"{variant.method} {'plain' if variant.mhim is None else variant.mhim} fold {fold}"
        )
        outcome = self._train(variant, settings, fold)
        found = {
            **outcome.figures,
            "seconds": outcome.seconds,
            "epochs": outcome.epochs,
            "curve": outcome.curve,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(found), encoding="utf-8")
        beside.replace(path)
        return found

    def _train(self, variant: Variant, settings: MilSpec, fold: int) -> Outcome:
        parts = self.parts(fold)
        spec = self.spec(variant.method, parts.train.dim)
        if isinstance(settings, MhimSpec):
            weights = self.pretrained(variant.method, fold)
            return train_mhim(spec, settings, parts, weights)
        start = self.pretrained(variant.method, fold) if variant.init else None
        outcome = train_plain(spec, settings, parts, start)
        if not variant.init:
            self._keep(variant.method, fold, outcome.weights)
        return outcome

    def _settings(self, variant: Variant, fold: int) -> MilSpec:
        plain = {**_LOOP, "xavier": True, "seed": fold, **self.overrides["mil"]}
        if variant.mhim is None:
            return section({"mil": plain}, "mil", MilSpec)
        ours = {**_LOOP, "seed": fold, "momentum": _MOMENTUM, **MASKS[variant.method]}
        table = {**ours, **self.overrides["mhim"], **variant.mhim}
        return section({"mhim": table}, "mhim", MhimSpec)

    def spec(self, method: str, dim: int) -> AggregatorSpec:
        """The method at this module's size."""
        return AggregatorSpec(name=method, in_dim=dim, args=METHODS[method])

    def pretrained(self, method: str, fold: int) -> dict[str, Tensor]:
        """Weights of the plain method on a fold; trained where they are not there yet."""
        path = self._weights_path(method, fold)
        if not path.exists():
            self.figures(Variant(method))
        if not path.exists():
            plain = Variant(method)
            self._train(plain, self._settings(plain, fold), fold)
        weights: dict[str, Tensor] = load_state(path, "mil")["model"]
        return weights

    def _keep(self, method: str, fold: int, weights: dict[str, Tensor]) -> None:
        save_state(self._weights_path(method, fold), "mil", {"model": weights})

    def _weights_path(self, method: str, fold: int) -> Path:
        plain = self._settings(Variant(method), fold).model_dump()
        key = config_hash({**plain, "args": METHODS[method], **self._data})
        return self.folder / f"{method}_{key}_fold{fold}.pt"

    def parts(self, fold: int) -> BagParts:
        """The bags of a fold, read once."""
        if fold not in self._parts:
            bags = self.work.features(self.work.options.model, patches="tissue")
            cohort = self.work.cohort(fold)
            scales = self._settings(Variant("abmil"), fold).scales
            train, val, test = (
                row_bags(cohort, cohort.part(split), bags, self.device, scales)
                for split in ("train", "val", "test")
            )
            self._parts[fold] = BagParts(train, val, test, cohort.classes)
        return self._parts[fold]

    @property
    def device(self) -> str:
        """Where bags live and networks train."""
        from napari_msamil.device import choose_runtime

        return choose_runtime(self.work.options.device).device
