"""Weights of an aggregator that another training starts with: taken only where they are those of the same network."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from napari_msamil.checkpoint import load_checkpoint
from napari_msamil.config import AggregatorSpec, ModelConfig
from napari_msamil.encoding import weights_hash
from napari_msamil.errors import CheckpointError
from napari_msamil.models import aggregator_class
from napari_msamil.models.base import parse_args

from .assemble import made_by, state_file
from .mil_task import weights_of
from .state import differences, load_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

_NOT_IN_THE_ANSWER = ("dropout", "mining_layer")
"""Arguments, by what their names hold, that may differ: the same weights give the same answer."""


def read_weights(path: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    """The aggregator's weights of a training folder or state (`.pt`), or of a checkpoint (`.safetensors`).

    Those of other slides or another fold are taken, with a warning: they may have seen what is tested now.

    Args:
        path: The folder or file.
        description: What the task that starts with them says about itself: `aggregator` (JSON), `classes`,
            `encoder_id`, `data_hash`.

    Raises:
        CheckpointError: The file is neither, or damaged, or its features, classes or network are others.
    """
    if path.suffix == ".safetensors":
        return _of_checkpoint(path, description)
    file = state_file(path)
    state = load_state(file)
    _refuse(file, differences(state, description, ("encoder_id", "classes")))
    about = state.get("description", {})
    if "aggregator" in about:
        known = AggregatorSpec.model_validate_json(about["aggregator"])
        _require_same_network(file, known, description)
    elif "model" in about:
        config = ModelConfig.model_validate_json(about["model"])
        _require_same_network(file, config.aggregator, description)
    if differences(state, description, ("data_hash",)):
        print(  # noqa: T201
            f"{file} was trained on other slides, labels or splits. Make sure that it never saw the slides tested here.",
            file=sys.stderr,
        )
    return weights_of(state, str(file))


def _of_checkpoint(path: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    loaded = load_checkpoint(str(path))
    other = []
    if list(loaded.config.classes) != list(description["classes"]):
        other.append("classes, or the same in another order")
    if loaded.config.ensemble is None:
        made = weights_hash(loaded.model.encoder, loaded.config.encoder)
        if made_by(description["encoder_id"], made) is False:
            other.append("features")
    _refuse(path, other)
    _require_same_network(path, loaded.config.aggregator, description)
    return loaded.model.aggregator.state_dict()


def _refuse(path: Path, other: Sequence[str]) -> None:
    if other:
        raise CheckpointError(
            f"{path} was trained with other {' and other '.join(other)}. Start from a training on the same features."
        )


def _require_same_network(
    path: Path, known: AggregatorSpec, description: Mapping[str, Any]
) -> None:
    wanted = AggregatorSpec.model_validate_json(description["aggregator"])
    other = other_arguments(known, wanted)
    if other:
        raise CheckpointError(
            f"{path} holds another network: {', '.join(other)}. Start from one that was built alike, or set "
            "model.aggregator as it was there."
        )


def other_arguments(known: AggregatorSpec, wanted: AggregatorSpec) -> list[str]:
    """In words, how two aggregators differ whose weights may have the same shapes; empty if they compute the same."""
    if known.name != wanted.name:
        return [f"{known.name} instead of {wanted.name}"]
    kind = aggregator_class(known.name).Args
    old, new = (parse_args(kind, spec).model_dump() for spec in (known, wanted))
    old["in_dim"], new["in_dim"] = known.in_dim, wanted.in_dim
    return [
        f"{key} {old[key]} instead of {new[key]}"
        for key in old
        if old[key] != new[key] and not any(n in key for n in _NOT_IN_THE_ANSWER)
    ]
