"""Recipes: one TOML that reproduces a training, checked field by field before anything runs.

A recipe holds a `[model]` table (a `ModelConfig`, or a preset with changes) and one table per verb. Each verb
validates its own table with its own `Spec`, so a recipe can carry a whole chain. Values can be changed on the
command line with `--set e2e.lr_mil=3e-4`; they pass the same checks, and a misspelt name is answered with the
nearest known one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError

from napari_msamil.config import ModelConfig, Spec, paper_config, small_config
from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

SpecT = TypeVar("SpecT", bound=BaseModel)
RECIPES = Path(__file__).parent / "recipes"
_PRESETS = {"paper": paper_config, "small": small_config}


class AugmentSpec(Spec):
    """Changes of patches during training; made on the device.

    Attributes:
        geometry: Flips and quarter turns, drawn per patch.
        stain: Largest relative change of the optical density per colour channel, drawn per slide visit.
        brightness: Largest relative change of all densities, drawn per patch.
        noise: Standard deviation of pixel noise in grey values (0 … 255).
    """

    geometry: bool = True
    stain: float = Field(default=0.1, ge=0, lt=1)
    brightness: float = Field(default=0.05, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, le=64)


class LoopSpec(Spec):
    """What every training loop has.

    Attributes:
        epochs: Visits of each training slide.
        accumulate: Slides whose gradients are added up before one optimiser step.
        clip_norm: Bound on the gradient norm; 0 is none.
        warmup: Share of all optimiser steps over which the learning rate rises, 0 … 1.
        final_lr: Learning rate at the end of the cosine, as a share of the first.
        optimizer: `adamw` (decoupled weight decay) or `adam` (decay inside the gradient, as MHIM-MIL trains).
        betas: Decay rates of the optimiser's two averages.
        weight_decay: Weight decay of the optimiser.
        anneal: Whether the cosine moves with every optimiser `step` or once per `epoch`.
        balance: Against unequal classes: `none`, `weights` in the loss, or `sampler` (rare classes visited more often).
        label_smoothing: Share of the target spread over all classes.
        monitor: Validation figure that chooses the best state (`val_loss` is minimised, others maximised).
        validate_every: Epochs between validations.
        patience: Validations without improvement before stopping; 0 never stops early.
        min_epochs: Epochs before early stopping may happen.
        tie_resets: Whether a figure equal to the best one starts the patience anew (the best state stays).
        tie_break: Whether, of states with the same best figure, the one with the lowest validation loss is kept.
        save_every: Epochs between saved states; the last epoch is always saved.
        save_minutes: Minutes between saved states inside an epoch; 0 saves after each epoch only.
        seed: Seed of everything that is drawn.
    """

    epochs: int = Field(default=20, ge=1)
    accumulate: int = Field(default=4, ge=1)
    clip_norm: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    final_lr: float = Field(default=0.01, ge=0, le=1)
    optimizer: Literal["adamw", "adam"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=1e-5, ge=0)
    anneal: Literal["step", "epoch"] = "step"
    balance: Literal["none", "weights", "sampler"] = "none"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    monitor: Literal["val_loss", "val_acc", "val_auc", "val_iou"] = "val_loss"
    validate_every: int = Field(default=1, ge=1)
    patience: int = Field(default=0, ge=0)
    min_epochs: int = Field(default=0, ge=0)
    tie_resets: bool = False
    tie_break: bool = False
    save_every: int = Field(default=1, ge=1)
    save_minutes: float = Field(default=10.0, ge=0)
    seed: int = Field(default=0, ge=0)


class PixelSpec(LoopSpec):
    """What every training on pixels has.

    Attributes:
        start: Start weights of the backbone: `random`, `imagenet`, or a name timm knows (`hf-hub:` names too).
        cache_gb: Decoded patches kept in memory, in GB; 0 keeps none.
        cache_dir: Folder for the decoded patches of all slides, used in place of memory and by later trainings
            (uncompressed: 3 bytes per pixel); empty is none.
        cache_dir_gb: Bound on that folder in GB, better with room for all slides: the longest unused are removed.
        prefetch: Slides read ahead while one is computed.
        augment: Changes of the patches.
    """

    start: str = "random"
    cache_gb: float = Field(default=2.0, ge=0)
    cache_dir: str = ""
    cache_dir_gb: float = Field(default=50.0, gt=0)
    prefetch: int = Field(default=1, ge=0, le=16)
    augment: AugmentSpec = AugmentSpec()


class E2ESpec(PixelSpec):
    """End-to-end training, Algorithm 2 of the paper.

    Attributes:
        instances: Patches drawn per visit of a slide (|P_B|, paper: 200); fewer where the slide has fewer.
        sampling: `uniform` over P_all (paper) or `stratified` (equal share of each scale where there are enough).
        lr_encoder: Learning rate of the patch encoder.
        lr_tokens: Learning rate of MSFEM's Transformer behind the backbone; None: `lr_encoder`. Trained from random
            weights, a small backbone needs ten times what the Transformer bears.
        lr_mil: Learning rate of the aggregator.
        batchnorm: `frozen` (running statistics, no update; the exact step; measured once before the first step where
            the weights are random), `batch` or `sync` (statistics of the instances of one step: they leak between
            instances, differ from inference, and break chunked modes).
        freeze_after: Share of all epochs after which `batch`/`sync` statistics are measured and frozen, 1 is never.
        allow_batchnorm_trap: Run `batch` statistics together with a memory mode that recomputes.
        memory: `none`, `selective`, `chunked`, `two-pass`, or `auto`: the fastest that fits.
        memory_gb: Memory the step may use in GB; 0 asks the device.
        chunk: Patches per encoder call where a mode works in chunks.
        together: Slides of one accumulation window that are encoded in one call; more than 1 mixes slides in the
            batch statistics of `batch`.
        compile: Compile the encoder for one number of patches (the chunk, or the whole step in mode `none`); pays on
            long runs only, not with `selective`.
        eval_instances: Patches per slide in validation (drawn once, the same each time); 0 is all of P_all.
        distributed: How ranks share work: over `slides` or over `instances` of one slide.
    """

    monitor: Literal["val_loss", "val_acc", "val_auc"] = "val_loss"
    instances: int = Field(default=200, ge=1)
    sampling: Literal["uniform", "stratified"] = "uniform"
    lr_encoder: float = Field(default=3e-5, ge=0)
    lr_tokens: float | None = Field(default=None, ge=0)
    lr_mil: float = Field(default=1e-4, ge=0)
    batchnorm: Literal["frozen", "batch", "sync"] = "frozen"
    freeze_after: float = Field(default=1.0, ge=0, le=1)
    allow_batchnorm_trap: bool = False
    memory: Literal["auto", "none", "selective", "chunked", "two-pass"] = "auto"
    memory_gb: float = Field(default=0.0, ge=0)
    chunk: int = Field(default=20, ge=1)
    together: int = Field(default=1, ge=1)
    compile: bool = False
    eval_instances: int = Field(default=200, ge=0)
    distributed: Literal["slides", "instances"] = "slides"


class ExtractSpec(Spec):
    """Saving features of the chosen patches.

    Attributes:
        patches: `lesion` (paper section 3.4), `tissue` or `random`.
        mask: Where lesions come from: `model` (the segmenter), `file` (the cohort's mask column), or `auto`
            (the file where there is one, else the segmenter, else tissue).
        max_patches: Upper bound per scale, keeping the largest lesion shares; None leaves the model's.
        format: File format of the bags.
    """

    patches: Literal["lesion", "tissue", "random"] = "lesion"
    mask: Literal["auto", "model", "file"] = "auto"
    max_patches: int | None = Field(default=None, gt=0)
    format: Literal["pt", "h5", "zarr"] = "pt"


def read_recipe(
    path: Path | str | None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a TOML recipe and apply `section.key=value` overrides; values are checked by `section`.

    Args:
        path: A file, or the name of a built-in recipe (`demo`, `paper-e2e`, …); None is an empty recipe.
        overrides: Texts `key=value`; the value is TOML, or else taken as text.

    Raises:
        ConfigError: The file is missing or not TOML, or an override is not `key=value`.
    """
    raw: dict[str, Any] = {} if path is None else _read_toml(Path(path))
    for text in overrides:
        key, sep, value = text.partition("=")
        if not sep or not key.strip():
            raise ConfigError(f"--set {text!r} is not of the form section.key=value.")
        _set_key(raw, key.strip().split("."), _toml_value(value.strip()), text)
    return raw


def section(raw: Mapping[str, Any], name: str, kind: type[SpecT]) -> SpecT:
    """The table `name` of a recipe as a checked `kind`; defaults where it is absent.

    Raises:
        ConfigError: A name is unknown (with the nearest known one) or a value is not allowed.
    """
    return checked(kind, raw.get(name, {}), name)


def checked(kind: type[SpecT], values: Any, where: str) -> SpecT:
    """Validate `values` as `kind`, or raise one `ConfigError` that lists every problem."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, problem, where) for problem in error.errors()]
        raise ConfigError("The recipe is wrong: " + "; ".join(lines) + ".") from error


def model_config(raw: Mapping[str, Any], classes: Sequence[str] = ()) -> ModelConfig:
    """The `[model]` table: a full `ModelConfig`, or `preset = "small" | "paper"` with changes.

    Args:
        raw: The recipe.
        classes: Class names used where the table names none (those of the cohort).

    Raises:
        ConfigError: The table is wrong.
    """
    table = dict(raw.get("model", {}))
    preset = table.pop("preset", "paper")
    if preset not in _PRESETS:
        raise ConfigError(
            f"There is no model preset {preset!r}. Use {' or '.join(_PRESETS)}."
        )
    names = tuple(table.get("classes", ())) or tuple(classes)
    if len(names) < 2:
        raise ConfigError("The recipe names fewer than two classes: set model.classes.")
    base = _PRESETS[preset](table.get("name", "model"), names).model_dump(mode="json")
    if table.get("aggregator", {}).get("name", "iaam") != base["aggregator"]["name"]:
        base["aggregator"]["args"] = {}  # those of another method
    return checked(ModelConfig, _merge(base, table), "model")


def resolved_toml(parts: Mapping[str, BaseModel]) -> str:
    """The configuration in force as JSON text, one key per table."""
    return json.dumps(
        {name: part.model_dump(mode="json") for name, part in parts.items()}, indent=2
    )


def config_hash(values: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change when any value does."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments every training verb shares: recipe, overrides, output, device, precision."""
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        help="recipe (.toml), or the name of a built-in one: "
        + ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml"))),
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of the recipe, for example e2e.epochs=3 (repeatable)",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps"
    )
    parser.add_argument(
        "--precision", default="auto", help="auto, fp32, bf16 or fp16 (encoder only)"
    )


def describe(kind: type[BaseModel], prefix: str) -> str:
    """One line per setting with its default, for `--help`; the text comes from the class's docstring."""
    notes = _attribute_notes(kind)
    lines = []
    for name, info in kind.model_fields.items():
        default = info.get_default(call_default_factory=True)
        shown = "" if isinstance(default, BaseModel) else f" [{default}]"
        lines.append(f"  {prefix}.{name}{shown}: {notes.get(name, '')}")
        if isinstance(default, BaseModel):
            lines.append(describe(type(default), f"{prefix}.{name}"))
    return "\n".join(lines)


def _attribute_notes(kind: type[BaseModel]) -> dict[str, str]:
    notes: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        _, _, block = (owner.__doc__ or "").partition("Attributes:")
        name = ""
        for line in block.splitlines():
            head, sep, text = line.strip().partition(": ")
            if sep and head.isidentifier() and head in kind.model_fields:
                name, notes[head] = head, text
            elif name and line.strip():
                notes[name] += " " + line.strip()
    return notes


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file() and not path.suffix:
        path = RECIPES / f"{path.name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ConfigError(
            f"There is no recipe {path}. Give a .toml file or one of: {known}."
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _set_key(raw: dict[str, Any], keys: list[str], value: Any, text: str) -> None:
    table: Any = raw
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {text!r}: {key} is a value, not a table.")
    table[keys[-1]] = value


def _merge(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _explain(kind: type[BaseModel], problem: Any, where: str) -> str:
    place = ".".join(str(part) for part in (where, *problem["loc"]))
    if problem["type"] != "extra_forbidden":
        return f"{place}: {problem['msg']} (given: {problem.get('input')!r})"
    known = _fields_at(kind, problem["loc"][:-1])
    near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"{place} is not a setting; {hint}"


def _fields_at(kind: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    current: Any = kind
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        models = [
            a
            for a in (annotation, *get_args(annotation))
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not models:
            return []
        current = models[0]
    return list(current.model_fields)
