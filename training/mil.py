"""Train an aggregator on feature bags: any method, one scale or several, from scratch or from an end-to-end run.

    msamil-train mil --config mil --cohort cohort.csv --bags features/ -o runs/mil
    msamil-train mil --config mil --cohort cohort.csv --bags features/ --start runs/e2e/best.pt -o runs/mil

The output folder holds `config.json`, `log.jsonl`, `state.pt` (resumes exactly), `best.pt` and `predictions.csv`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import ConfigError

from .bags import FOREIGN_SCALES
from .config import (
    add_recipe_arguments,
    describe,
    model_config,
    read_recipe,
    resolved_toml,
    section,
)
from .mil_task import MilSpec, MilTask, describe_task, load_weights, predict, weights_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from napari_msamil.config import AggregatorSpec, ModelConfig
    from napari_msamil.models.base import Aggregator

    from .bag_dataset import BagDataset
    from .cohort import Cohort
    from .config import LoopSpec
    from .loop import FitResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train mil`."""
    add_bag_arguments(parser)
    parser.add_argument(
        "--start",
        type=Path,
        metavar="FILE",
        help="continue from the aggregator of this training folder, state or checkpoint",
    )
    parser.epilog = "Settings (--set mil.KEY=VALUE):\n" + describe(MilSpec, "mil")


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every verb that trains on bags."""
    add_recipe_arguments(parser)
    parser.add_argument("--cohort", type=Path, required=True, help="cohort table (CSV)")
    parser.add_argument(
        "--bags", type=Path, required=True, help="folder of <slide_id>.pt, .h5 or .zarr"
    )
    parser.add_argument(
        "--splits", type=Path, help="split file; its fold sets the splits"
    )
    parser.add_argument("--fold", type=int, help="fold of the split file")
    parser.add_argument("--resume", action="store_true", help="go on where it stopped")


def run(args: argparse.Namespace) -> int:
    """Train as `add_arguments` describes."""
    from .log import RunLog
    from .loop import fit
    from .start_weights import read_weights
    from .state import seed_everything

    work = BagWork(args)
    spec = section(work.raw, "mil", MilSpec)
    parts = work.bags(spec)
    seed_everything(spec.seed)
    task = MilTask(
        work.model.aggregator,
        spec,
        parts["train"],
        parts.get("val"),
        work.cohort.classes,
        work.notes(),
    )
    if args.start is not None:
        start = read_weights(args.start, task.description())
        load_weights(task.aggregator, start, str(args.start))
    work.write_config({"mil": spec}, task.description())
    with RunLog(args.out, steps_of(spec, len(parts["train"])), title="mil") as log:
        log_data(log, parts, args.start)
        result = fit(task, spec, args.out, log, resume=args.resume)
    finish_run(args.out, task.aggregator, parts, work.cohort, result)
    return 130 if result.reason == "stopped" else 0


class BagWork:
    """What the verbs on bags have in common: recipe, cohort, model, device.

    Args:
        args: The parsed arguments of `add_bag_arguments`.

    Raises:
        ConfigError: The recipe is wrong.
        CohortError: The cohort is wrong.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        from napari_msamil.device import choose_runtime

        from .cohort import read_cohort

        self.args = args
        self.raw = read_recipe(args.config, args.overrides)
        self.cohort: Cohort = read_cohort(
            args.cohort,
            classes=tuple(self.raw.get("model", {}).get("classes", ())),
            splits=args.splits,
            fold=args.fold,
            need_files=False,
        )
        self.model: ModelConfig = model_config(self.raw, self.cohort.classes)
        self.runtime = choose_runtime(args.device, args.precision)

    def bags(self, spec: MilSpec) -> dict[str, BagDataset]:
        """The bags of each split; the model is left with the scales that they have.

        Raises:
            ConfigError: The aggregator takes features of another width, or the model has no such scale.
        """
        from .bag_cohort import cohort_bags, narrowed

        scales: list[str] = []
        if spec.scales:
            self.model = narrowed(self.model, spec.scales)
            scales = [s.name for s in self.model.patches.scales]
        parts = cohort_bags(self.cohort, self.args.bags, self.runtime.device, scales)
        found = parts["train"].scale_names
        if found != FOREIGN_SCALES:
            self.model = narrowed(self.model, found)
            if [s.name for s in self.model.patches.scales] != list(found):
                raise ConfigError(
                    f"The bags in {self.args.bags} have the scales {', '.join(found)}, in another order than the recipe's "
                    "model. Set mil.scales, or extract them with this model."
                )
        width, wanted = parts["train"].dim, self.model.aggregator.in_dim
        if width != wanted:
            raise ConfigError(
                f"The bags in {self.args.bags} have {width} values per instance, but the recipe's aggregator takes "
                f"{wanted}. Set model.aggregator.in_dim and model.encoder.dim to {width}, or use other bags."
            )
        return parts

    def write_config(
        self, specs: Mapping[str, LoopSpec], description: Mapping[str, Any]
    ) -> None:
        """Write the configuration in force beside the results.

        Args:
            specs: Settings by the name of their table.
            description: What the training says about itself.

        Raises:
            ConfigError: The folder holds an older run that is not to go on.
            CheckpointError: The run that is to go on was trained on other data or with other settings.
        """
        from .state import claim

        claim(self.args.out, description, resume=self.args.resume)
        self.args.out.mkdir(parents=True, exist_ok=True)
        text = resolved_toml({"model": self.model, **specs})
        (self.args.out / "config.json").write_text(text, encoding="utf-8")

    def description(
        self, aggregator: AggregatorSpec, spec: MilSpec, parts: Mapping[str, BagDataset]
    ) -> dict[str, Any]:
        """What a training of this work says about itself, before it is built."""
        return {
            **describe_task(aggregator, spec, self.cohort.classes, parts["train"]),
            **self.notes(),
        }

    def notes(self) -> dict[str, Any]:
        """What `publish` must know beside the weights."""
        return {
            "model": self.model.model_dump_json(),
            "cohort": self.args.cohort.name,
            "data_hash": self.cohort.data_hash,
            "fold": self.args.fold,
        }


def steps_of(spec: MilSpec, count: int) -> int:
    """Optimiser steps of a whole run, for the progress bar."""
    return spec.epochs * -(-count // spec.accumulate)


def log_data(log: Any, parts: Mapping[str, BagDataset], start: Path | None) -> None:
    """Say what is trained on."""
    log.event(
        "start",
        bags={name: len(part) for name, part in parts.items()},
        instances={name: sum(part.lengths) for name, part in parts.items()},
        encoder_id=parts["train"].encoder_id,
        start=str(start or ""),
    )


def finish_run(
    folder: Path,
    aggregator: Aggregator,
    parts: Mapping[str, BagDataset],
    cohort: Cohort,
    result: FitResult,
) -> None:
    """Take the best weights and write the predictions of validation and test slides."""
    from .predictions import write_predictions
    from .state import BEST, LAST, load_state

    if result.reason == "stopped":
        return
    best = folder / BEST
    source = best if best.is_file() else folder / LAST
    load_weights(aggregator, weights_of(load_state(source), str(source)), str(source))
    write_predictions(
        folder / "predictions.csv",
        {
            name: (part, predict(aggregator, part))
            for name, part in parts.items()
            if name != "train"
        },
        cohort,
    )
