"""What every table of the papers needs: stages that are skipped when finished, cross-validations, engine runs, and output."""

from __future__ import annotations

import csv
import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import ConfigError, MsamilError

from .cohort import read_cohort
from .cv_fold import STATE
from .made_with import claim, inputs_of, model_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from .cohort import Cohort
    from .prediction_table import Predictions


@dataclass(frozen=True)
class TableOptions:
    """What the user gave.

    Attributes:
        cohort: Cohort table.
        out: Output folder; finished parts in it are used again.
        splits: Split file, or None: five folds are drawn into the output folder.
        model: Checkpoint for the engine and as encoder of features.
        recipe: Recipe with the sizes of what is trained, or None: the table's own small sizes.
        overrides: Changes of the recipe, `section.key=value`.
        folds: Number of folds, where they are drawn; also how many are used.
        split: Slides the engine is measured on; all of them are needed to cross-validate on its features.
        jobs: Folds at once.
        device, precision: As everywhere.
        epochs: Epochs of MIL trainings; None leaves the recipe's.
        methods: Methods of Table 2 and of the MHIM tables that are run; empty runs all.
        bags: Bags for Table 2 that are there already; `{fold}` in it stands for the fold whose encoder made them.
            Empty: they are made with `model`.
    """

    cohort: Path
    out: Path
    splits: Path | None = None
    model: str = "demo"
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    folds: int = 5
    split: str = "all"
    jobs: int = 1
    device: str = "auto"
    precision: str = "auto"
    epochs: int | None = None
    methods: tuple[str, ...] = ()
    bags: str = ""


@dataclass
class TableResult:
    """A finished table.

    Attributes:
        title: Its name in the paper.
        columns: Column heads, ours and the paper's side by side.
        rows: Cells as text.
        notes: How it was measured, and what agrees or does not.
        figures: Plots by file name without suffix.
        values: Raw figures, for other programs.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


class TableWork:
    """Runs what is missing for one table, uses what is done.

    Args:
        options: What the user gave.
        name: Name of the table; its parts lie in `out/name`, shared parts in `out/shared`.
    """

    def __init__(self, options: TableOptions, name: str) -> None:
        self.options = options
        self.folder = options.out / name
        self.shared = options.out / "shared"
        self.seconds: dict[str, float] = {}

    def cohort(self, fold: int | None = None) -> Cohort:
        """The cohort, with the splits of a fold."""
        splits = None if fold is None else self.splits()
        return read_cohort(self.options.cohort, splits=splits, fold=fold)

    def splits(self) -> Path:
        """The split file, drawn once."""
        from .crossval import prepare_splits

        options = self.options
        return prepare_splits(
            options.cohort, options.splits, self.shared, options.folds, 0
        )

    def stage(self, verb: str, words: Sequence[str | Path], makes: Path) -> float:
        """Run a verb unless what it makes is there.

        Returns:
            Seconds it took, also where it was run before.

        Raises:
            ConfigError: It was made with something else before.
            MsamilError: It failed.
        """
        from .cli import run_verb

        times = makes.parent / "seconds.json"
        inputs = inputs_of([verb, *words])
        begun = makes.exists() or (makes.parent / STATE).exists()
        claim(makes.parent, makes.name, inputs, begun=begun)
        if not makes.exists():
            say(f"{verb} → {makes}")
            start = time.perf_counter()
            code = run_verb(verb, [str(w) for w in words])
            # one bad slide does not spoil a table, but nothing made does
            if not makes.exists() or code not in (0, 1):
                raise MsamilError(
                    f"The stage {verb} for {makes} ended with code {code}. See above."
                )
            times.write_text(
                json.dumps({verb: time.perf_counter() - start}), encoding="utf-8"
            )
        seconds = (
            json.loads(times.read_text(encoding="utf-8"))[verb]
            if times.exists()
            else float("nan")
        )
        self.seconds[str(makes)] = seconds
        return float(seconds)

    def features(
        self, model: str, patches: str = "lesion", mask: str = "model"
    ) -> Path:
        """Bags of the whole cohort with one encoder, extracted once."""
        folder = self.bags_folder(model, patches, mask)
        words: list[str | Path] = ["--model", model, "--cohort", self.options.cohort]
        words += ["-o", folder, *self.device_words()]
        words += [
            "--set",
            f"extract.patches={patches}",
            "--set",
            f"extract.mask={mask}",
        ]
        self.stage("extract", words, folder / "extracted.json")
        return folder

    def bags_folder(
        self, model: str, patches: str = "lesion", mask: str = "model"
    ) -> Path:
        """Where the bags of one encoder and selection lie."""
        return self.shared / f"bags_{model_key(model)}_{patches}_{mask}"

    def crossval(
        self, name: str, verb: str, words: Sequence[str | Path]
    ) -> Predictions:
        """Cross-validate a verb; the test predictions of all folds.

        Raises:
            MsamilError: A fold failed.
        """
        from .prediction_table import read_predictions

        folder = self.folder / name
        makes = folder / "predictions.csv"
        own: list[str | Path] = [
            "--verb",
            verb,
            "--cohort",
            self.options.cohort,
            "--splits",
            self.splits(),
            "-o",
            folder,
        ]
        own += ["--jobs", str(self.options.jobs), "--", *words, *self.device_words()]
        self.stage("crossval", own, makes)
        return read_predictions(makes)

    def write_recipe(self, name: str, content: Mapping[str, Any]) -> Path:
        """A recipe of this table as TOML, for `--config`."""
        path = self.folder / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(_toml(content)) + "\n", encoding="utf-8")
        return path

    def device_words(self) -> list[str]:
        """Device and precision as arguments of a verb."""
        return ["--device", self.options.device, "--precision", self.options.precision]


def write_result(folder: Path, name: str, result: TableResult) -> Path:
    """Write `<name>.md`, `.csv`, `.json` and the figures."""
    from .plots import save_plot

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([result.columns, *result.rows])
    (folder / f"{name}.json").write_text(
        json.dumps(result.values, indent=1) + "\n", encoding="utf-8"
    )
    for title, figure in result.figures.items():
        save_plot(folder / f"{title}.png", figure)
    path = folder / f"{name}.md"
    path.write_text(as_markdown(result), encoding="utf-8")
    return path


def as_markdown(result: TableResult) -> str:
    """The table as a reader sees it."""
    lines = [f"## {result.title}", ""]
    lines.append("| " + " | ".join(result.columns) + " |")
    lines.append("|---" * len(result.columns) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in result.rows]
    lines += ["", *(f"- {note}" for note in result.notes), ""]
    lines += [f"![{title}]({title}.png)" for title in result.figures]
    return "\n".join(lines) + "\n"


def say(text: str) -> None:
    """A line for the user while a table is made."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def require_test_slides(cohort: Cohort, split: str) -> tuple[Any, ...]:
    """The slides of a split, or all.

    Raises:
        ConfigError: There are none.
    """
    rows = cohort.rows if split == "all" else cohort.part(split)
    if not rows:
        raise ConfigError(
            f"No slide of {cohort.path} is in the split {split!r}. Choose another with --split."
        )
    return rows


def _toml(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines of TOML: tables for nested dictionaries, everything else inline."""
    plain = {k: v for k, v in content.items() if not isinstance(v, dict)}
    nested = {k: v for k, v in content.items() if isinstance(v, dict)}
    lines = [f"[{prefix}]"] if prefix else []
    lines += [f"{key} = {_toml_value(value)}" for key, value in plain.items()]
    for key, value in nested.items():
        lines += ["", *_toml(value, f"{prefix}.{key}" if prefix else key)]
    return lines


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + " }"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value)
