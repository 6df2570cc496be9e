"""What the trainings on pixels (`e2e`, `dino`) have in common around the loop: arguments, slides, start weights, the end."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from napari_msamil.errors import CohortError, ConfigError
from napari_msamil.models import build_encoder

from .cohort import read_cohort
from .config import (
    PixelSpec,
    add_recipe_arguments,
    describe,
    model_config,
    read_recipe,
    section,
)
from .log import plain
from .patch_cache import PatchCache
from .patch_dataset import PatchPool

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from napari_msamil.config import EncoderSpec, ModelConfig

    from .cohort import Cohort

RESULT = "result.json"
"""Written when a training has come to its end: other stages wait for it."""
SpecT = TypeVar("SpecT", bound=PixelSpec)


@dataclass(frozen=True)
class PixelRun(Generic[SpecT]):
    """What a recipe and a cohort say.

    Attributes:
        spec: How is trained.
        config: What is trained; without a segmenter.
        cohort: The slides.
    """

    spec: SpecT
    config: ModelConfig
    cohort: Cohort


def add_arguments(
    parser: argparse.ArgumentParser, name: str, kind: type[PixelSpec]
) -> None:
    """Declare the arguments both verbs take; the settings of table `name` are listed in the help."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--cohort", type=Path, required=True, help="cohort table (.csv)"
    )
    parser.add_argument("--splits", type=Path, help="split file of `cohort --folds`")
    parser.add_argument("--fold", type=int, help="which fold of the split file")
    parser.add_argument(
        "--resume", action="store_true", help="go on from state.pt in the output folder"
    )
    parser.epilog = f"settings ([{name}] in the recipe):\n" + describe(kind, name)


def read_run(args: argparse.Namespace, name: str, kind: type[SpecT]) -> PixelRun[SpecT]:
    """Recipe and cohort as the arguments say.

    Raises:
        ConfigError: The recipe is wrong.
        CohortError: The cohort is wrong.
    """
    raw = read_recipe(args.config, args.overrides)
    spec = section(raw, name, kind)
    classes = tuple(raw.get("model", {}).get("classes", ()))
    cohort = read_cohort(
        args.cohort, classes=classes, splits=args.splits, fold=args.fold
    )
    config = model_config(raw, cohort.classes).model_copy(update={"segmenter": None})
    return PixelRun(spec, config, cohort)


def write_config(
    folder: Path, name: str, run: PixelRun[Any], args: argparse.Namespace
) -> None:
    """Write the configuration in force."""
    folder.mkdir(parents=True, exist_ok=True)
    resolved = {
        "model": run.config.model_dump(mode="json"),
        name: run.spec.model_dump(mode="json"),
        "command": " ".join(sys.argv),
        "cohort": str(args.cohort),
    }
    text = json.dumps(resolved, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def make_pool(
    cohort: Cohort, part: str, config: ModelConfig, spec: PixelSpec
) -> PatchPool:
    """The slides of one part of the cohort.

    Raises:
        CohortError: There is no training slide.
    """
    rows = cohort.part(part)
    if not rows and part == "train":
        raise CohortError(
            f"{cohort.path} has no row with split 'train'. Fill the column, or make splits: msamil-train cohort."
        )
    bound = spec.cache_gb if part == "train" else spec.cache_gb / 4
    folder, size = Path(spec.cache_dir).expanduser(), int(spec.cache_dir_gb * 1e9)
    return PatchPool(
        rows, config, bound, PatchCache(folder, size) if spec.cache_dir else None
    )


def published_encoder(encoder: EncoderSpec, start: str) -> Any:
    """An encoder with published start weights.

    Args:
        encoder: What it is.
        start: `imagenet`, or a name timm knows that takes the place of the backbone's.

    Raises:
        ConfigError: The weights cannot be had.
    """
    if start != "imagenet":
        encoder = encoder.model_copy(update={"backbone": start})
    try:
        return build_encoder(encoder, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"The start weights {start!r} for {encoder.backbone} cannot be fetched ({type(error).__name__}: "
            f"{str(error)[:200]}). Connect to the internet once, set HF_HOME to a folder that holds them, or use "
            "start = 'random'."
        ) from error


def conclude(
    folder: Path, result: Mapping[str, Any], faults: Mapping[str, str]
) -> None:
    """Name what was skipped, say how it went, and mark the run as finished unless a signal stopped it."""
    for name, reason in faults.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)  # noqa: T201
    text = json.dumps(plain(result))
    print(text)  # noqa: T201
    if result["reason"] != "stopped":
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")
