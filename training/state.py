"""The training state: everything needed to go on exactly where a run was stopped. The plugin never reads it.

A state is plain containers and tensors in one `.pt` file, read with `weights_only=True`; it is written beside
and renamed, so a killed run leaves the last good one. `publish` makes a checkpoint from it.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import torch

from napari_msamil.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

STATE_FORMAT = 1
LAST = "state.pt"
BEST = "best.pt"
_IDENTITY = {
    "data_hash": "slides, labels or splits",
    "classes": "classes, or the same in another order",
    "encoder_id": "features",
    "aggregator": "settings of the aggregator",
}
"""What a state's description says about the data and the network, and what that is in words."""
_LENGTH = frozenset({"epochs", "patience", "min_epochs", "validate_every"})
"""Settings that say when a training ends: one that is to last longer goes on."""
_FREE = _LENGTH | frozenset(
    {
        *("save_every", "save_minutes", "pack", "tune_threshold"),
        *("cache_gb", "cache_dir", "cache_dir_gb", "prefetch"),
        *("memory", "memory_gb", "chunk", "compile"),
    }
)
"""Settings that a training may go on with anew: when it ends, how often it is saved, what the machine is asked for."""


def save_state(path: Path, kind: str, state: Mapping[str, Any]) -> None:
    """Write a state beside its final name, then rename it.

    Args:
        path: The file.
        kind: Which verb made it (`e2e`, `mil`, …); checked when it is loaded.
        state: Plain containers, numbers, texts and tensors only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    torch.save({"format": STATE_FORMAT, "kind": kind, **state}, beside)
    beside.replace(path)


def load_state(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a state onto the CPU.

    Args:
        path: The file.
        kind: The verb that must have made it; None accepts any.

    Raises:
        CheckpointError: The file is missing, damaged, newer, or of another verb.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no training state {path}. Train first, or check the folder."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, BadZipFile, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged and cannot be read ({error}). Use an older state or train again."
        ) from error
    except Exception as error:  # a text read as pickle fails in any way
        raise CheckpointError(
            f"{path} is not a training state of this program. Give the state.pt of a training folder."
        ) from error
    return _checked(state, path, kind)


def _checked(state: Any, path: Path, kind: str | None) -> dict[str, Any]:
    known = isinstance(state, dict) and isinstance(state.get("format"), int)
    if not known or not isinstance(state.get("kind"), str):
        raise CheckpointError(
            f"{path} is not a training state. Give the state.pt of a training folder."
        )
    if state["format"] > STATE_FORMAT:
        raise CheckpointError(
            f"{path} uses state format {state['format']}; this version reads {STATE_FORMAT}. Update napari-msamil."
        )
    if kind is not None and state["kind"] != kind:
        raise CheckpointError(
            f"{path} was made by {state['kind']!r}, but {kind!r} was asked for. Choose the right folder."
        )
    found: dict[str, Any] = state
    return found


def rng_state() -> dict[str, Any]:
    """The state of Python's, torch's and each CUDA device's generator.

    NumPy is used through generators seeded per visit only, so it has no state to keep.
    """
    version, internal, gauss = random.getstate()
    return {
        "python": json.dumps([version, list(internal), gauss]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(saved: Mapping[str, Any]) -> None:
    """Put every generator back to a saved state (CUDA states only where the devices are the same in number)."""
    version, internal, gauss = json.loads(saved["python"])
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.device_count() == len(saved["cuda"]):
        torch.cuda.set_rng_state_all(saved["cuda"])


def require_same_data(
    state: Mapping[str, Any], description: Mapping[str, Any], path: Path
) -> None:
    """Refuse to train a state further on other data: what it has seen may be what it is tested on.

    Args:
        state: A loaded state.
        description: What the task that would go on says about itself.
        path: The state's file, for the message.

    Raises:
        CheckpointError: Slides, labels, splits, classes or their order, features, the aggregator, or a setting differ.
    """
    differing = differences(state, description)
    if differing:
        raise CheckpointError(
            f"{path} was trained with other {' and other '.join(differing)}, perhaps on another fold. Train into another "
            "folder, or give the same data to go on."
        )
    changed = changed_settings(state, description)
    if changed:
        raise CheckpointError(
            f"{path} was trained with another value of {', '.join(changed)}, and half a training with each is neither. Give "
            "the same to go on (epochs, patience and memory may differ), or train into another folder."
        )


def changed_settings(
    state: Mapping[str, Any],
    description: Mapping[str, Any],
    *,
    ended: bool = False,
) -> list[str]:
    """Names of the settings that are not those of a state; unknown ones do not count.

    Args:
        state: A loaded state.
        description: What the task that is to run says about itself.
        ended: Whether when it ends counts, too.
    """
    free = _FREE - _LENGTH if ended else _FREE
    old, new = (
        json.loads(about.get("settings") or "{}")
        for about in (state.get("description", {}), description)
    )
    return [k for k in old if k in new and k not in free and old[k] != new[k]]


def differences(
    state: Mapping[str, Any], description: Mapping[str, Any], names: Sequence[str] = ()
) -> list[str]:
    """In words, what a state was trained with and a task that describes itself so is not; unknown things do not count.

    Args:
        state: A loaded state.
        description: What the task says about itself.
        names: Keys of `_IDENTITY` that are compared; empty compares all.
    """
    known = state.get("description", {})
    pairs = {k: (known.get(k), description.get(k)) for k in names or _IDENTITY}
    return [
        _IDENTITY[k] for k, (old, new) in pairs.items() if old and new and old != new
    ]


def claim(folder: Path, description: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse to overwrite an older run, and to go on with one of other data, before anything is written.

    Args:
        folder: Where the run's state lies.
        description: What the task that is to run says about itself.
        resume: Whether an older run is to go on.

    Raises:
        ConfigError: There is one, and it is not to go on.
        CheckpointError: It was trained on something else.
    """
    last = folder / LAST
    if not last.exists():
        return
    if not resume:
        raise ConfigError(
            f"{folder} holds a training already. Go on with --resume, or choose another folder."
        )
    require_same_data(load_state(last), description, last)


def seed_everything(seed: int) -> None:
    """Seed Python and torch (NumPy generators are seeded where they are made)."""
    random.seed(seed)
    torch.manual_seed(seed)
