"""Training states and checkpoints put together: which parts each holds, and what model they make."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.checkpoint import load_checkpoint
from napari_msamil.config import ModelConfig, SegmenterSpec
from napari_msamil.errors import CheckpointError

from .state import BEST, LAST, load_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from .join_folds import Parts

Stored = tuple[Path, "Mapping[str, Any]"]
"""A state file and its content."""
PARTS_OF = {
    "e2e": ("encoder", "aggregator"),
    "mil": ("aggregator",),
    "mhim": ("aggregator",),
    "dino": ("encoder",),
    "segment": ("segmenter",),
}
"""Which parts of a model each verb trains."""
_HASH = re.compile(r"[0-9a-f]{24}")
_PREFIXES = {"mhim": ("student.",), "dino": ("student.encoder.", "encoder.")}


@dataclass(frozen=True)
class Fold:
    """One member of an ensemble.

    Attributes:
        path: Where it comes from.
        parts: Its configuration and all its weights.
        states: The training state that is its own; none for a checkpoint.
    """

    path: Path
    parts: Parts
    states: tuple[Stored, ...] = ()


@dataclass(frozen=True)
class Head:
    """An aggregator that was trained on features, and the encoder that it gets.

    Attributes:
        path: The state that holds it.
        encoder_id: Who made its features; `unknown` where the bags did not say it.
        over: The state or checkpoint whose encoder is put before it.
    """

    path: Path
    encoder_id: str
    over: str


def head_of(states: Sequence[Stored], base: str | None) -> Head | None:
    """The aggregator that the states leave, where it was trained on features; None where it read pictures, or is the base's."""
    over = base or "the encoder"
    head: tuple[Path, str] | None = None
    for path, state in states:
        parts = _parts(path, state)
        if "encoder" in parts:
            over = str(path)
        if "aggregator" in parts:
            known = state["description"].get("encoder_id")
            head = None if "encoder" in parts else (path, str(known or "unknown"))
    return None if head is None else Head(*head, over)


def made_by(encoder_id: str, weights: str) -> bool | None:
    """Whether features come from an encoder, whatever precision it ran in; None where the name is nobody's we know.

    Args:
        encoder_id: Name of who made them; of several encoders, one per scale, joined with `+`.
        weights: Hash of the encoder's weights.
    """
    hashes = {name.partition("-")[0] for name in encoder_id.split("+")}
    if not all(_HASH.fullmatch(found) for found in hashes):
        return None
    return hashes == {weights}


def read_fold(states: Sequence[Stored], path: Path, base: str | None) -> Fold:
    """A fold's training on top of the shared states and base, or a checkpoint as it is."""
    if path.suffix == ".safetensors":
        return Fold(path, assemble((), str(path)))
    file = state_file(path)
    own = (file, load_state(file))
    return Fold(path, assemble([*states, own], base), (own,))


def assemble(states: Sequence[Stored], base: str | None) -> Parts:
    """Configuration and weights of a base and of states in order, the later ones over the earlier.

    Raises:
        CheckpointError: The base is an ensemble, or nothing says what model this is.
    """
    weights: dict[str, Tensor] = {}
    config = None
    if base is not None:
        loaded = load_checkpoint(base)
        config, weights = loaded.config, dict(loaded.model.state_dict())
        if states and config.ensemble is not None:
            raise CheckpointError(
                f"{base} is an ensemble, whose parts cannot be replaced one by one. Publish from the folds it was made of."
            )
    for path, state in states:
        for part in _parts(path, state):
            gone = (f"{part}.", "familiarity.") if part == "encoder" else (f"{part}.",)
            weights = {k: v for k, v in weights.items() if not k.startswith(gone)}
            weights |= {f"{part}.{k}": v for k, v in _part_weights(state, part).items()}
    return _config_of(config, states), weights


def state_file(path: Path) -> Path:
    """The state of a training folder: its best, else its last; a file stands for itself.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_file():
        return path
    for name in (BEST, LAST):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path} holds neither {BEST} nor {LAST}. Give the output folder of a training."
    )


def _config_of(config: ModelConfig | None, states: Sequence[Stored]) -> ModelConfig:
    """The configuration of all states together: each decides about the parts it holds.

    Raises:
        CheckpointError: No state says what model it belongs to.
    """
    for _, state in states:
        if state["kind"] != "segment" and "model" in state["description"]:
            own = ModelConfig.model_validate_json(state["description"]["model"])
            kept = {} if config is None else _kept(config, own, state["kind"])
            config = own.model_copy(update=kept)
    if config is None:
        raise CheckpointError(
            "None of the states says what model it belongs to. Give an e2e or mil state, or --base."
        )
    for _, state in states:
        segmenter = _as_dict(state["description"].get("segmenter"))
        if state["kind"] == "segment" and segmenter is not None:
            spec = SegmenterSpec.model_validate(segmenter)
            config = config.model_copy(update={"segmenter": spec})
    return config


def _kept(old: ModelConfig, own: ModelConfig, kind: str) -> dict[str, Any]:
    """The parts of an older configuration that a state of this kind does not train; limits belong to their encoder."""
    parts = {
        "encoder": old.encoder,
        "aggregator": old.aggregator,
        "segmenter": old.segmenter,
    }
    kept = {k: v for k, v in parts.items() if k not in PARTS_OF[kind]}
    return {**kept, "familiarity": old.familiarity} if "encoder" in kept else kept


def _as_dict(value: Any) -> dict[str, Any] | None:
    found: dict[str, Any] | None = (
        json.loads(value) if isinstance(value, str) else value
    )
    return found


def _parts(path: Path, state: Mapping[str, Any]) -> tuple[str, ...]:
    if state["kind"] not in PARTS_OF:
        raise CheckpointError(
            f"{path} was made by {state['kind']!r}, which holds no part of a model."
        )
    return PARTS_OF[state["kind"]]


def _part_weights(state: Mapping[str, Any], part: str) -> dict[str, Tensor]:
    """The weights of one part without its prefix."""
    weights: dict[str, Tensor] = dict(state["model"])
    for prefix in (*_PREFIXES.get(state["kind"], ()), f"{part}."):
        found = {
            k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)
        }
        if found:
            return found
    return weights


def story_of(states: Sequence[Stored]) -> dict[str, Any]:
    """Where the weights come from, one entry per state."""
    stages = []
    for path, state in states:
        about, at = state["description"], state["position"]
        stages.append(
            {
                "verb": state["kind"],
                "folder": path.parent.name,
                "epoch": at.get("best_epoch") if path.name == BEST else at.get("epoch"),
                "seconds": round(float(at.get("seconds", 0.0)), 1),
                "validation": state.get("metrics", {}),
                "settings": _as_dict(about.get("settings")),
                "data_hash": about.get("data_hash"),
            }
        )
    return {
        "recipe": stages,
        "data_hash": stages[-1]["data_hash"] if stages else None,
    }
