"""One way of training the encoder, run in folds: encoder, features, aggregator, predictions of the test slides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import MsamilError

from .config import model_config, read_recipe
from .prediction_table import Predictions, join_predictions, read_predictions
from .splits import read_splits
from .table_work import say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .table_work import TableWork

DATA = "--cohort {cohort} --splits {splits} --fold {fold}"
UNTRAINED = ("e2e.lr_encoder=0", "e2e.lr_tokens=0", "e2e.batchnorm=frozen", "e2e.epochs=1", "e2e.validate_every=1")  # fmt: skip
"""End-to-end settings that leave the encoder's weights alone; random ones get their batch statistics measured."""


@dataclass(frozen=True)
class Cost:
    """Mean seconds per fold of training the encoder, or the encoders.

    Attributes:
        wall_s: By the clock; says little on a shared machine.
        cpu_s: Processor time of all threads.
    """

    wall_s: float
    cpu_s: float


def run_training(
    work: TableWork,
    name: str,
    way: str,
    changes: Sequence[str] = (),
    folds: Sequence[int] | None = None,
) -> tuple[Predictions, Cost]:
    """Train an encoder in every fold, then extract, train the aggregator and predict; finished folds are used.

    Args:
        work: The table.
        name: Folder of these runs.
        way: `e2e`, `dino` or `frozen`.
        changes: More arguments of the trainings.
        folds: Folds that are run; None runs all.

    Raises:
        MsamilError: A fold failed.
    """
    from .cli import run_verb

    folder = work.folder / name
    recipe = work.folder / f"{name}.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(stages_toml(work, way, changes), encoding="utf-8")
    numbers = range(len(read_splits(work.splits()).folds)) if folds is None else folds
    made = {k: folder / f"fold_{k}" / "predictions.csv" for k in numbers}
    missing = [str(k) for k, path in made.items() if not path.exists()]
    if missing:
        say(f"{way}, folds {', '.join(missing)} → {folder}")
        words = ["--recipe", recipe, "--cohort", work.options.cohort, "--splits", work.splits(), "-o", folder]  # fmt: skip
        words += ["--jobs", work.options.jobs, "--folds", *missing]
        code = run_verb("crossval", [str(w) for w in words])
        if code:
            raise MsamilError(
                f"Folds of {name} failed (code {code}), see {folder}/fold_*/output.log."
            )
    found = join_predictions(
        [read_predictions(path, k).part("test") for k, path in made.items()]
    )
    verb = "dino" if way == "dino" else "e2e"
    spent = [_seconds(path.parent, verb) for path in made.values()]
    return found, Cost(*np.mean(spent, axis=0).tolist())


def _seconds(fold: Path, verb: str) -> tuple[float, float]:
    said = json.loads((fold / "seconds.json").read_text(encoding="utf-8"))
    return said[verb], said.get(f"{verb} cpu", float("nan"))


def stages_toml(work: TableWork, way: str, changes: Sequence[str] = ()) -> str:
    """The stages of one fold as a recipe for `crossval --recipe`."""
    options = work.options
    device = " ".join(work.device_words())
    sets = " ".join([*changes, *(f"--set {o}" for o in options.overrides)])
    config = f"--config {recipe_of(work)} {sets}"
    if way == "dino":
        stages, models = _per_scale(work, config, device)
    else:
        frozen = " ".join(f"--set {c}" for c in UNTRAINED) if way == "frozen" else ""
        stages = _encoder("e2e", f"{config} {frozen} {DATA}", "encoder", device, work)
        models = "{out}/encoder.safetensors"
    # the paper trains the aggregator of the end-to-end run further; the others have none to go on from
    start = "--start {out}/encoder/best.pt" if way == "e2e" else ""
    stages += [
        ("extract", f"{config} --model {models} --cohort {{cohort}} -o {{out}}/bags {device}", "{out}/bags/extracted.json"),
        ("mil", f"{config} {DATA} --bags {{out}}/bags {start} -o {{out}} {device}", "{out}/predictions.csv"),
    ]  # fmt: skip
    return "\n".join(
        f"[[stages]]\nverb = {json.dumps(verb)}\nargs = {json.dumps(' '.join(args.split()))}\n"
        f"makes = {json.dumps(makes)}\n"
        for verb, args, makes in stages
    )


def _encoder(
    verb: str, words: str, name: str, device: str, work: TableWork
) -> list[tuple[str, str, str]]:
    """Train one encoder and make a checkpoint of it with the segmenter of the table's model."""
    made = f"{{out}}/{name}.safetensors"
    return [
        (verb, f"{words} -o {{out}}/{name} {device}", f"{{out}}/{name}/result.json"),
        ("publish", f"{{out}}/{name} -o {made} --base {work.options.model} --data table", made),
    ]  # fmt: skip


def _per_scale(
    work: TableWork, config: str, device: str
) -> tuple[list[tuple[str, str, str]], str]:
    """Stages of one self-supervised encoder per scale, and what `extract --model` gets."""
    raw = read_recipe(recipe_of(work), work.options.overrides)
    names = [s.name for s in model_config(raw, ("a", "b")).patches.scales]
    stages = []
    for name in names:
        words = f"{config} {DATA} --scale {name}"
        stages += _encoder("dino", words, f"encoder-{name}", device, work)
    return stages, " ".join(f"{n}={{out}}/encoder-{n}.safetensors" for n in names)


def recipe_of(work: TableWork) -> Any:
    """The recipe that says how encoders and aggregators are trained."""
    return work.options.recipe or "demo"
