"""Make the papers' tables and figures: run what is missing, use what is done, print ours beside the paper's.

    msamil-train tables msamil-1 msamil-2 --cohort cohort.csv --model model.safetensors -o tables/
    msamil-train tables --list

Each table writes `<name>.md`, `.csv`, `.json` and its figures; `tables.md` joins all that are there. A second run uses
finished parts. `--model` is a checkpoint that was not trained on this cohort: its encoder makes the features of all
methods, and the engine runs it for Table 1 and Figure 2.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.errors import ConfigError

from .table_names import MHIM_TABLES
from .table_work import TableOptions, TableWork, as_markdown, write_result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from .table_work import TableResult

TABLES: dict[str, tuple[str, str, str]] = {
    "msamil-1": (
        "table_patches",
        "table_1",
        "MsaMIL-Net Table 1: all, random and lesion patches, with time",
    ),
    "msamil-2": (
        "table_methods",
        "table_2",
        "MsaMIL-Net Table 2: eight methods, cross-validated",
    ),
    "msamil-3": (
        "table_training",
        "table_3",
        "MsaMIL-Net Table 3: end-to-end against self-supervised",
    ),
    "msamil-fig2": (
        "table_patches",
        "figure_2",
        "MsaMIL-Net Figure 2: area saved by the lesion filter",
    ),
    "msamil-fig3a": (
        "table_training",
        "figure_3a",
        "MsaMIL-Net Figure 3(a): IoU of the segmenter over training",
    ),
    "msamil-fig3b": (
        "table_training",
        "figure_3b",
        "MsaMIL-Net Figure 3(b): patches in the graph against self-supervision",
    ),
    **MHIM_TABLES,
}
"""Name → module of this package, function `(TableWork) -> TableResult`, what it is."""
TABLES |= MHIM_TABLES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train tables`."""
    default = TableOptions(Path(), Path())
    parser.add_argument(
        "names", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}, or all"
    )
    parser.add_argument("--list", action="store_true", help="say what each table is")
    parser.add_argument("--cohort", type=Path, help="cohort table (CSV)")
    parser.add_argument("-o", "--out", type=Path, help="output folder")
    parser.add_argument(
        "--splits",
        type=Path,
        help="split file (default: five folds drawn into the output folder)",
    )
    parser.add_argument(
        "--folds", type=int, default=default.folds, help="folds, where they are drawn"
    )
    parser.add_argument(
        "--model",
        default=default.model,
        help="checkpoint that never saw this cohort (default: demo)",
    )
    parser.add_argument("--config", help="recipe with the sizes of what is trained")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of it",
    )
    parser.add_argument(
        "--split",
        default=default.split,
        help="slides of Table 1 and Figure 2: all (cross-validated), or train, val, test (the checkpoint as it is)",
    )
    _add_training(parser, default)


def _add_training(parser: argparse.ArgumentParser, default: TableOptions) -> None:
    parser.add_argument("--epochs", type=int, help="epochs of each MIL training")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=[],
        help="of msamil-2: only these, and iaam; of the mhim tables: only these",
    )
    parser.add_argument(
        "--bags",
        default=default.bags,
        help="of msamil-2: bags that are there already, {fold} stands for the fold (default: made with --model)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="folds at once")
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--precision", default=default.precision)


def run(args: argparse.Namespace) -> int:
    """Make the tables asked for and print them."""
    if args.list:
        for name, (_, _, what) in TABLES.items():
            print(f"{name:14} {what}")  # noqa: T201
        return 0
    names = list(TABLES) if args.names == ["all"] else args.names
    unknown = sorted(set(names) - set(TABLES))
    if unknown or not names or args.cohort is None or args.out is None:
        raise ConfigError(
            f"Give tables ({', '.join(TABLES)}, or all), --cohort and -o. Unknown: {', '.join(unknown) or 'none'}."
        )
    options = options_of(args)
    for name in names:
        print(as_markdown(make_table(name, options)))  # noqa: T201
    join_tables(args.out)
    return 0


def options_of(args: argparse.Namespace) -> TableOptions:
    """What the user gave."""
    return TableOptions(
        cohort=args.cohort,
        out=args.out,
        splits=args.splits,
        model=args.model,
        recipe=args.config,
        overrides=tuple(args.overrides),
        folds=args.folds,
        split=args.split,
        jobs=args.jobs,
        device=args.device,
        precision=args.precision,
        epochs=args.epochs,
        methods=tuple(args.methods),
        bags=args.bags,
    )


def make_table(name: str, options: TableOptions) -> TableResult:
    """Make one table and write its files."""
    module, function, _ = TABLES[name]
    make: Callable[[TableWork], TableResult] = getattr(
        import_module(f".{module}", __package__), function
    )
    result = make(TableWork(options, name))
    write_result(options.out, name, result)
    return result


def join_tables(folder: Path) -> Path:
    """One page of all tables that are there."""
    pages = [folder / f"{name}.md" for name in TABLES]
    text = "\n".join(p.read_text(encoding="utf-8") for p in pages if p.exists())
    path = folder / "tables.md"
    path.write_text(text, encoding="utf-8")
    return path
