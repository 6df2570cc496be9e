"""Run a training over all folds of a split file, several at once, and report ACC, AUC, F1 and calibration.

One verb, its own arguments after `--`:
    msamil-train crossval --verb mil --cohort cohort.csv --splits splits.json -o runs/cv -- --config mil --bags features/
Or all stages of a recipe. In the arguments {out} is the fold's folder, {fold} its number, {cohort} and {splits} the files:
    msamil-train crossval --recipe my.toml --cohort cohort.csv --splits splits.json -o runs/cv

Each fold is `fold_<k>/` and must leave `predictions.csv`. A second run skips finished folds and goes on with others.
`--cluster` takes the address or the scheduler file of a Dask cluster (on SLURM: one started by dask-jobqueue).
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from argparse import ArgumentParser
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import CohortError, ConfigError, ExtraMissingError
from napari_msamil.progress import Progress, ProgressGen, Stage, finish

from .cohort import read_cohort
from .config import checked, read_recipe
from .cv_fold import PREDICTIONS, FoldStage, FoldTask, run_fold
from .splits import make_splits, read_splits, splits_of_column, write_splits

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from .summary import Summary

N_FOLDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train crossval`."""
    parser.add_argument("--verb", help="verb run in every fold (mil, mhim, e2e, …)")
    parser.add_argument(
        "words", nargs="*", metavar="-- ARGS", help="arguments of that verb"
    )
    parser.add_argument(
        "--recipe", type=Path, help="recipe whose [[stages]] are run in every fold"
    )
    parser.add_argument("--cohort", type=Path, required=True, help="cohort table (CSV)")
    parser.add_argument(
        "--splits",
        type=Path,
        help="split file; drawn into the output folder where absent",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--n-folds",
        type=int,
        help=f"folds, where splits are drawn (default: {N_FOLDS})",
    )
    parser.add_argument("--seed", type=int, help="seed of that draw (default: 0)")
    parser.add_argument("--folds", type=int, nargs="+", help="run these folds only")
    parser.add_argument(
        "--jobs", type=int, default=1, help="folds at once on this machine"
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        default=[],
        help="for example cuda:0 cuda:1: dealt to the folds in turn",
    )
    parser.add_argument("--cluster", help="address or scheduler file of a Dask cluster")


def run(args: argparse.Namespace) -> int:
    """Run the folds and print the table; 1 if some fold failed."""
    from tqdm import tqdm

    n_folds = N_FOLDS if args.n_folds is None else args.n_folds
    splits = prepare_splits(args.cohort, args.splits, args.out, n_folds, args.seed or 0)
    _check_asked(args, splits)
    tasks = plan_folds(args, splits)
    with tqdm(total=len(tasks), desc="folds", unit="fold", file=sys.stderr) as bar:
        failed = finish(
            run_folds(tasks, jobs=args.jobs, cluster=args.cluster),
            lambda step: _show(bar, step),
        )
    for number, reason in sorted(failed.items()):
        print(f"fold {number}: {reason}", file=sys.stderr)  # noqa: T201
    if not failed and not args.folds:
        from .summary import markdown

        print(markdown(collect(args.out, [t.folder for t in tasks])))  # noqa: T201
    return 1 if failed else 0


def prepare_splits(
    cohort: Path, splits: Path | None, folder: Path, n_folds: int, seed: int
) -> Path:
    """The split file: the one given, the one drawn before, or a new one; all folds are checked for leaks.

    A new one has the folds of the cohort's column `fold`, where every slide has one, else folds that are drawn.

    Raises:
        CohortError: The cohort or the splits are broken.
    """
    table = read_cohort(cohort, need_files=False)
    path = splits or folder / "splits.json"
    if splits is None and not path.exists():
        given = {row.fold for row in table.rows}
        if None in given or len(given) < 2:
            write_splits(path, make_splits(table, n_folds, seed=seed))
        else:
            write_splits(path, splits_of_column(table, seed=seed))
    read_cohort(cohort, splits=path, fold=0, need_files=False)
    return path


def _check_asked(args: argparse.Namespace, path: Path) -> None:
    """Refuse splits that are there already and are others than those asked for.

    Raises:
        ConfigError: The number of folds or the seed is given and is another.
    """
    splits = read_splits(path)
    asked = {
        "--n-folds": (args.n_folds, len(splits.folds)),
        "--seed": (args.seed, splits.seed),
    }
    for option, (wanted, found) in asked.items():
        if wanted is not None and wanted != found:
            raise ConfigError(
                f"{path} was drawn with {option} {found}, but {wanted} is asked for. Leave {option} out, or choose another "
                "split file or output folder."
            )


def plan_folds(args: argparse.Namespace, splits: Path) -> list[FoldTask]:
    """What is run in each fold.

    Raises:
        ConfigError: Neither a verb nor a recipe is given, or both, or a fold does not exist.
    """
    if bool(args.verb) == bool(args.recipe):
        raise ConfigError("Give either a verb (mil, mhim, …) or --recipe with stages.")
    count = len(read_splits(splits).folds)
    numbers = args.folds or range(count)
    if not all(0 <= n < count for n in numbers):
        raise ConfigError(
            f"{splits} has the folds 0 … {count - 1}. Choose among them with --folds."
        )
    threads = max((os.cpu_count() or 1) // args.jobs, 1) if args.jobs > 1 else 0
    tasks = []
    for number in numbers:
        folder = args.out / f"fold_{number}"
        fill = {
            "out": folder,
            "fold": number,
            "cohort": args.cohort,
            "splits": splits,
            "recipe": args.recipe,
        }
        device = args.devices[number % len(args.devices)] if args.devices else ""
        stages = _stages(args, folder, fill, device)
        tasks.append(FoldTask(number, folder, stages, threads))
    return tasks


def run_folds(
    tasks: Sequence[FoldTask], *, jobs: int = 1, cluster: str | None = None
) -> ProgressGen[dict[int, str]]:
    """Run folds here or on a cluster.

    Returns:
        Why it failed, by fold, for those that did.
    """
    failed: dict[int, str] = {}
    yield Progress(Stage.TRAIN, 0, len(tasks))
    results = _on_cluster(tasks, cluster) if cluster else _here(tasks, jobs)
    for done, (number, reason) in enumerate(results, 1):
        if reason:
            failed[number] = reason
        yield Progress(Stage.TRAIN, done, len(tasks), f"fold {number}")
    return failed


def collect(out: Path, folders: Sequence[Path]) -> Summary:
    """Join the test predictions of all folds and write `predictions.csv`, `figures.json` and `figures.md`.

    Raises:
        CohortError: A slide was predicted twice.
    """
    from .prediction_table import join_predictions, read_predictions, save_predictions
    from .summary import summarise, write_figures

    found = join_predictions(
        [
            read_predictions(f / PREDICTIONS, int(f.name.rpartition("_")[2])).part(
                "test"
            )
            for f in folders
        ]
    )
    if len(set(found.slide_ids)) != len(found):
        raise CohortError(
            f"Some slides were tested in two folds of {out}. Draw the splits anew."
        )
    save_predictions(out / PREDICTIONS, found)
    summary = summarise(found)
    write_figures(out, summary)
    return summary


def _stages(
    args: argparse.Namespace, folder: Path, fill: dict[str, Any], device: str
) -> tuple[FoldStage, ...]:
    if args.recipe is None:
        own = (
            "--cohort",
            str(args.cohort),
            "--splits",
            str(fill["splits"]),
            "--fold",
            str(fill["fold"]),
            "-o",
            str(folder),
        )
        return (
            FoldStage(
                args.verb,
                (
                    *own,
                    *(_filled(w, fill) for w in args.words),
                    *_device_words(args.verb, device),
                ),
                folder / PREDICTIONS,
                folder,
            ),
        )
    return _recipe_stages(args.recipe, fill, device)


def _recipe_stages(
    recipe: Path, fill: dict[str, Any], device: str
) -> tuple[FoldStage, ...]:
    from .run import RunSpec

    found = checked(
        RunSpec, {"stages": read_recipe(recipe).get("stages", [])}, "recipe"
    ).stages
    stages = []
    for stage in found:
        words = tuple(_filled(w, fill) for w in shlex.split(stage.args))
        makes = Path(_filled(stage.makes, fill))
        stages.append(
            FoldStage(
                stage.verb,
                (*words, *_device_words(stage.verb, device)),
                makes,
                makes.parent,
            )
        )
    return tuple(stages)


def _device_words(verb: str, device: str) -> tuple[str, ...]:
    """`--device` with the device of a fold, for verbs that take it.

    Raises:
        ConfigError: There is no such verb.
    """
    from .cli import VERBS

    if not device:
        return ()
    if verb not in VERBS:
        raise ConfigError(
            f"There is no verb {verb!r}. Choose among {', '.join(VERBS)}."
        )
    parser = ArgumentParser(prog=verb)
    import_module(f"{__package__}.{verb}").add_arguments(parser)
    takes = re.search(r"--device\b", parser.format_usage())
    return ("--device", device) if takes else ()


def _filled(text: str, fill: dict[str, Any]) -> str:
    for name, value in fill.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def _here(tasks: Sequence[FoldTask], jobs: int) -> Iterator[tuple[int, str]]:
    if jobs <= 1:
        for task in tasks:
            yield task.number, run_fold(task)
        return
    with ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=get_context("spawn")
    ) as pool:
        number_of = {pool.submit(run_fold, task): task.number for task in tasks}
        try:
            for future in as_completed(number_of):
                yield number_of[future], _outcome(future)
        finally:
            pool.shutdown(cancel_futures=True)


def _outcome(future: Future[str]) -> str:
    """Empty, or why the fold failed; a process that was killed takes the unfinished ones of its pool with it."""
    try:
        return future.result()
    except BrokenExecutor:
        return "a process ended suddenly, perhaps for lack of memory; the same command goes on where the folds stopped"


def _on_cluster(tasks: Sequence[FoldTask], cluster: str) -> Iterator[tuple[int, str]]:
    """Folds on a Dask cluster; its workers must see the same folders."""
    try:
        from distributed import Client, KilledWorker
        from distributed import as_completed as dask_completed
    except ImportError as error:
        raise ExtraMissingError("Running folds on a cluster", "scale") from error
    place = (
        {"scheduler_file": cluster}
        if cluster.endswith(".json")
        else {"address": cluster}
    )
    with Client(**place) as client:  # type: ignore[no-untyped-call]
        number_of = {
            client.submit(run_fold, task, pure=False): task.number for task in tasks
        }
        for future in dask_completed(number_of):  # type: ignore[no-untyped-call]
            try:
                reason = future.result()
            except KilledWorker:
                reason = "its workers died again and again, perhaps for lack of memory; run the same command again"
            yield number_of[future], reason


def _show(bar: Any, step: Progress) -> None:
    bar.update(step.done - bar.n)
