"""The folds of a cross-validation as one model: members with one shared encoder, or each with its own.

A member is the training of a fold on top of the parts that all share, or a checkpoint of its own. Sizes and classes
must agree. The lesion segmenter is the first member's: it chooses the patches before there is an ensemble.
Limits of familiarity stay where the encoder stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from napari_msamil.config import EnsembleSpec
from napari_msamil.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from napari_msamil.config import ModelConfig

Parts = tuple["ModelConfig", dict[str, "Tensor"]]
"""Configuration, and weights by name as a checkpoint holds them."""
_ALIKE = ("classes", "patches", "encoder", "aggregator")


def join_members(
    members: Sequence[tuple[str, Parts]], *, calibrated: bool = False
) -> Parts:
    """One model of all members.

    Args:
        members: Name (for messages) and parts of each, in order.
        calibrated: Whether a temperature for all follows, so that theirs do not count.

    Raises:
        CheckpointError: A member lacks a part, or differs from the first in size, classes or temperature.
    """
    (_, (config, first)), *others = members
    for name, (other, _) in others:
        _check_alike(name, other, config)
        if not calibrated and other.temperature != config.temperature:
            raise CheckpointError(
                f"{name} has the temperature {other.temperature:g} and the first fold {config.temperature:g}, but an ensemble "
                "has one. Give --calibrate with the predictions of the trainings, or join what has not been calibrated."
            )
    shared = _part(first, "encoder")
    own = not all(_same(shared, _part(w, "encoder")) for _, (_, w) in others)
    kept = ("segmenter.",) if own else ("segmenter.", "familiarity.")
    weights = {k: v for k, v in first.items() if k.startswith(kept)}
    for number, (_, (_, found)) in enumerate(members):
        for part in ("encoder", "aggregator"):
            if part == "encoder" and not own:
                continue
            for key, value in _part(found, part).items():
                weights[f"{part}.members.{number}.{key}"] = value
    if not own:
        weights |= {f"encoder.{k}": v for k, v in shared.items()}
    spec = EnsembleSpec(members=len(members), own_encoders=own)
    limits = None if own else config.familiarity
    return config.model_copy(update={"ensemble": spec, "familiarity": limits}), weights


def _part(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    start = f"{part}."
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


def _same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[k], second[k]) for k in first
    )


def _check_alike(name: str, config: ModelConfig, first: ModelConfig) -> None:
    if config.ensemble is not None:
        raise CheckpointError(
            f"{name} is an ensemble already. Join the folds it was made of."
        )
    for field in _ALIKE:
        mine: Any = getattr(config, field)
        if mine != getattr(first, field):
            raise CheckpointError(
                f"{name} differs from the first fold in {field!r}, so they cannot be joined. Join folds of one recipe."
            )
