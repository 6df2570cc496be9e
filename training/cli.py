"""`msamil-train`: one verb per step, each in a module of its own that is imported only when it is called."""

from __future__ import annotations

import argparse
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING

from napari_msamil.errors import ConfigError, MsamilError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERBS = {
    "synth": "write a synthetic cohort of slides with known truth",
    "cohort": "check a cohort table and write its splits",
    "segment": "train the lesion segmenter (UNet++ on thumbnails)",
    "e2e": "train encoder and aggregator end to end (Algorithm 2)",
    "extract": "save patch features of a cohort",
    "mil": "train an aggregator on saved features",
    "mhim": "train an aggregator with masked hard instance mining",
    "dino": "train the encoder without labels, one scale or all",
    "crossval": "run a recipe over all folds",
    "evaluate": "figures of a checkpoint or of predictions on a cohort",
    "tables": "make the papers' tables and figures from finished runs",
    "publish": "turn a training state into a checkpoint",
    "run": "run the stages of a recipe in order, skipping finished ones",
}
_EPILOG = "Settings: msamil-train VERB --help. Built-in recipes: --config demo, paper-e2e, laptop-e2e, …"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments without the program name; None takes the process's.

    Returns:
        0 all done; 1 something failed (and was named); 2 the call is wrong.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="msamil-train",
        description="Train the models that napari-msamil runs.",
        epilog=_EPILOG,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in VERBS.items():
        verbs.add_parser(name, help=text, add_help=False)
    first, rest = parser.parse_known_args(words[:1])[0], words[1:]
    try:
        return run_verb(first.verb, rest)
    except ConfigError as error:
        print(f"msamil-train {first.verb}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except MsamilError as error:
        print(f"msamil-train {first.verb}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # noqa: T201
        return 130
    except Exception:  # noqa: BLE001  (the outermost door)
        traceback.print_exc()
        print("msamil-train: unexpected error, see above", file=sys.stderr)  # noqa: T201
        return 1


def run_verb(name: str, words: list[str]) -> int:
    """Run one verb with its arguments; its errors are the caller's."""
    module = import_module(f"{__package__}.{name}")
    parser = argparse.ArgumentParser(
        prog=f"msamil-train {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    result: int = module.run(parser.parse_args(words))
    return result
