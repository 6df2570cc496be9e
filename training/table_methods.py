"""MsaMIL-Net Table 2: every method the paper compares with, on the same features and folds.

One encoder makes the features of all methods: a checkpoint that never saw this cohort. Single-scale methods get the
finest scale, the others all scales. The paper gives its own method the lesion filter; here all methods get it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_msamil.checkpoint import read_header, resolve_model
from napari_msamil.errors import ConfigError

from . import plots
from .intervals import holm
from .summary import compare, summarise
from .table_work import TableResult, TableWork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from napari_msamil.config import ModelConfig

    from .prediction_table import Predictions

PAPER = {
    "csmil": ("CSMIL‡", "0.929 / 0.922 / 0.928", "0.899 / 0.897 / 0.913"),
    "milbooster": ("MILBooster‡", "0.944 / 0.947 / 0.946", "0.922 / 0.902 / 0.924"),
    "dasmil": ("DAS-MIL‡", "0.945 / 0.942 / 0.945", "0.921 / 0.906 / 0.926"),
    "dsmil": ("DSMIL‡", "0.921 / 0.903 / 0.922", "0.889 / 0.872 / 0.909"),
    "mambamil": ("MambaMIL†", "0.913 / 0.899 / 0.907", "0.879 / 0.874 / 0.878"),
    "transmil": ("TransMIL†", "0.915 / 0.898 / 0.911", "0.881 / 0.873 / 0.882"),
    "abmil": ("ABMIL†", "0.898 / 0.884 / 0.896", "0.862 / 0.851 / 0.859"),
    "iaam": ("Ours (IAAM)‡", "0.955 / 0.961 / 0.963", "0.932 / 0.945 / 0.949"),
}
"""Paper, Table 2: AUC and ACC on UBC-OCEAN / BCNB / DigestPath2019. † one scale, ‡ several."""
SINGLE_SCALE = ("mambamil", "transmil", "abmil")
EXTRA = {"iaam-20x": ("IAAM, finest scale only†", "-", "-")}
"""Not in the paper's table: what the scales add to IAAM itself."""


COLUMNS = (
    "method",
    "AUC (ours)",
    "AUC (paper)",
    "ACC (ours)",
    "ACC (paper)",
    "ACC over folds",
    "ACC of IAAM minus this",
)


def table_2(work: TableWork) -> TableResult:
    """Cross-validate every method and compare each with IAAM."""
    config = read_header(resolve_model(work.options.model)).config
    chosen = chosen_methods(work.options.methods)
    found = {name: run_method(work, config, name) for name in chosen}
    ours = found["iaam"]
    others = [name for name in found if name != "iaam"]
    tests = {name: compare(ours, found[name])["acc"] for name in others}
    adjusted = dict(zip(others, holm([tests[n].p_value for n in others]), strict=True))
    rows, values, bars = [], {}, {}
    for name, (title, auc, acc) in chosen.items():
        summary = summarise(found[name])
        test = ""
        if name != "iaam":
            test = f"{tests[name].difference.value:+.3f}, p = {adjusted[name]:.3g}"
        rows.append(
            (
                title,
                str(summary.pooled["auc"]),
                auc,
                str(summary.pooled["acc"]),
                acc,
                _folds(summary.mean, summary.spread),
                test,
            )
        )
        values[name] = {k: vars(v) for k, v in summary.pooled.items()}
        bars[title.rstrip("†‡")] = summary.pooled["acc"]
    notes = [
        f"{len(ours)} slides, {len(set(ours.folds))} folds by patient; {_features_of(work)}.",
        "† finest scale only, ‡ all scales. p-values: paired bootstrap over patients, adjusted by Holm.",
    ]
    figure = plots.interval_plot(bars, "ACC (95 % interval)")
    return TableResult(
        "MsaMIL-Net, Table 2: methods",
        COLUMNS,
        rows,
        notes,
        {"table-2": figure},
        values,
    )


def _features_of(work: TableWork) -> str:
    options = work.options
    if options.bags:
        return f"features from {options.bags}"
    return f"features of {options.model!r} from its lesion masks"


def chosen_methods(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """The lines of the table that are run, always with IAAM.

    Raises:
        ConfigError: There is no such method.
    """
    known = PAPER | EXTRA
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(
            f"There is no method {', '.join(unknown)}. Choose among {', '.join(known)}."
        )
    return {k: v for k, v in known.items() if not names or k in names or k == "iaam"}


def run_method(work: TableWork, config: ModelConfig, key: str) -> Predictions:
    """Cross-validate one method on the lesion bags of the checkpoint's encoder."""
    name, _, one = key.partition("-")
    bags = work.options.bags or work.features(work.options.model)
    scales = [config.patches.scales[0].name] if one or name in SINGLE_SCALE else []
    return cross_validate(work, config, name, bags, key, scales)


def cross_validate(
    work: TableWork,
    config: ModelConfig,
    name: str,
    bags: Path | str,
    key: str,
    scales: Sequence[str] = (),
) -> Predictions:
    """Cross-validate one method on bags.

    Args:
        work: The table.
        config: Of the checkpoint whose encoder made the bags.
        name: The method.
        bags: Folder of bags; `{fold}` in it is filled in.
        key: Folder of this run.
        scales: Scales that are used; all if empty.
    """
    recipe = work.write_recipe(key, method_recipe(work, config, name, list(scales)))
    words: list[str | Path] = ["--config", recipe, "--bags", bags]
    for override in work.options.overrides:
        words += ["--set", override]
    return work.crossval(key, "mil", words)


def method_recipe(
    work: TableWork, config: ModelConfig, name: str, scales: list[str]
) -> dict[str, Any]:
    """A recipe that trains one method on features of a checkpoint's encoder."""
    own = config.aggregator if config.aggregator.name == name else None
    used = [s for s in config.patches.scales if not scales or s.name in scales]
    patches = config.patches.model_copy(update={"scales": tuple(used)}).model_dump(
        mode="json", exclude_none=True
    )
    return {
        "model": {
            "preset": "small",
            "name": name,
            "classes": list(config.classes),
            "patches": patches,
            "encoder": config.encoder.model_dump(mode="json", exclude_none=True),
            "aggregator": {
                "name": name,
                "in_dim": config.encoder.dim,
                "args": dict(own.args) if own else method_args(name, config, len(used)),
            },
        },
        "mil": mil_settings(work) | {"scales": scales},
    }


def method_args(name: str, config: ModelConfig, scales: int) -> dict[str, Any]:
    """Widths that follow from the features, the same for all methods: small features, small models."""
    dim = config.encoder.dim
    hidden = {"hidden": dim}
    return {
        "iaam": {"heads": 4, "rank": 16, "mlp_dim": 2 * dim},
        "abmil": {**hidden, "attention_dim": dim // 2},
        "transmil": {**hidden, "heads": 4},
        "mambamil": {**hidden, "layers": 1},
        "dsmil": {"query_dim": dim},
        "csmil": {"hidden": min(dim, 64)},
        "milbooster": {**hidden, "scales": scales},
        "dasmil": {**hidden, "scales": scales},
    }.get(name, {})


def mil_settings(work: TableWork) -> dict[str, Any]:
    """The settings of every method: one slide a step at 2e-4, as is usual in the field, the same for all."""
    return {
        "epochs": work.options.epochs or 60,
        "lr": 2e-4,
        "optimizer": "adamw",
        "weight_decay": 1e-4,
        "accumulate": 1,
        "monitor": "val_loss",
        "patience": 15,
        "min_epochs": 10,
    }


def _folds(mean: dict[str, float], spread: dict[str, float]) -> str:
    return f"{mean['acc']:.3f} ± {spread['acc']:.3f}"
