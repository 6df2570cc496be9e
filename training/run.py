"""Run the stages of a recipe in order: each is one verb with its arguments, and a finished one is skipped.

A recipe lists its stages as `[[stages]]` with `verb`, `args` and `makes` (the file that shows it is finished). In both,
`{out}` is the output folder and `{recipe}` the recipe itself.

    msamil-train run --config demo -o runs/demo
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from napari_msamil.config import Spec
from napari_msamil.errors import ConfigError, MsamilError

from .config import RECIPES, checked, read_recipe
from .made_with import changed, claim, inputs_of

if TYPE_CHECKING:
    import argparse

TIMES = "stages.json"


class StageSpec(Spec):
    """One stage.

    Attributes:
        verb: A verb of msamil-train.
        args: Its arguments, as on a command line.
        makes: What it leaves behind; the stage is skipped where that exists.
    """

    verb: str
    args: str = ""
    makes: str


class RunSpec(Spec):
    """All stages of a recipe."""

    stages: tuple[StageSpec, ...] = Field(min_length=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train run`."""
    parser.add_argument("--config", required=True, metavar="RECIPE")
    parser.add_argument("-o", "--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--only", nargs="+", metavar="VERB", help="run these verbs only, if unfinished"
    )


def run(args: argparse.Namespace) -> int:
    """Run every unfinished stage; the first that fails ends the run."""
    from .cli import run_verb

    recipe = recipe_path(args.config)
    stages = checked(
        RunSpec, {"stages": read_recipe(recipe).get("stages", [])}, "recipe"
    ).stages
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.verb}"
        made = Path(_filled(stage.makes, args.out, recipe))
        words = [_filled(w, args.out, recipe) for w in shlex.split(stage.args)]
        inputs = inputs_of([stage.verb, *words])
        if made.exists() or (args.only and stage.verb not in args.only):
            _say(f"{title}: {_skipped(args.out, made, inputs)}")
            continue
        claim(args.out, _part(args.out, made), inputs, begun=False)
        _say(f"{title} {shlex.join(words)}")
        start = time.monotonic()
        code = run_verb(stage.verb, words)
        if code:
            raise MsamilError(f"The stage {title} ended with code {code}. See above.")
        _note(args.out, {"stage": title, "seconds": round(time.monotonic() - start, 1)})
    return 0


def _skipped(out: Path, made: Path, inputs: dict[str, str]) -> str:
    """Why a stage is not run; a finished one of an older recipe is kept, but said to be one."""
    if not made.exists():
        return "not asked for"
    other = changed(out, _part(out, made), inputs)
    if not other:
        return "done already"
    return f"done already, but with another {', '.join(other)} than now; delete {made} to run it again"


def _part(out: Path, made: Path) -> str:
    return os.path.relpath(made, out)


def recipe_path(name: str) -> Path:
    """The file of a recipe given by path or by built-in name.

    Raises:
        ConfigError: There is none.
    """
    path = Path(name)
    if not path.is_file():
        path = RECIPES / f"{path.stem}.toml"
    if not path.is_file():
        raise ConfigError(f"There is no recipe {name}. Give a .toml file.")
    return path


def _filled(text: str, out: Path, recipe: Path) -> str:
    return text.replace("{out}", str(out)).replace("{recipe}", str(recipe))


def _note(folder: Path, entry: dict[str, Any]) -> None:
    path = folder / TIMES
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    path.write_text(json.dumps([*entries, entry], indent=1) + "\n", encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
