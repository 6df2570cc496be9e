"""The header of a checkpoint: configuration and provenance, read without weights and without torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from napari_msamil.config import ModelConfig
from napari_msamil.errors import CheckpointError

FORMAT_VERSION = 2
"""Raised whenever an older program could misread the file. 2: ensembles and limits of familiarity."""
_PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint says of itself, read without its weights and without torch.

    Attributes:
        config: Everything needed to run it.
        provenance: Where it comes from: recipe, data, metrics, versions, reference logits.
        format_version: Version of the file format.
        parameters: Number of weights, all parts together.
    """

    config: ModelConfig
    provenance: dict[str, Any]
    format_version: int
    parameters: int = 0


def version_of(config: ModelConfig) -> int:
    """The oldest format that holds a model: files without new parts stay readable by older programs."""
    new = config.ensemble is not None or config.familiarity is not None
    return 2 if new else 1


def config_json(config: ModelConfig) -> str:
    """The configuration as a file holds it, without keys that its format does not know."""
    unknown = {"ensemble", "familiarity"} if version_of(config) == 1 else None
    return config.model_dump_json(exclude=unknown)


def read_header(path: Path | str) -> CheckpointHeader:
    """Configuration and provenance of a checkpoint, without its weights and without torch.

    Raises:
        CheckpointError: The file is missing, damaged, too new, or not a checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    _refuse_other_files(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            sizes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or no .safetensors file ({error}). Copy or download it again."
        ) from error
    if "msamil.format_version" not in metadata or "msamil.config" not in metadata:
        raise CheckpointError(
            f"{path} holds weights but no msamil configuration. Use a file made by `msamil-train publish`."
        )
    found = _format_version(path, metadata["msamil.format_version"])
    provenance = _read_provenance(path, metadata.get("msamil.provenance") or "{}")
    parameters = sum(math.prod(shape) for shape in sizes)
    return CheckpointHeader(
        _read_config(path, metadata["msamil.config"]), provenance, found, parameters
    )


def _refuse_other_files(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise CheckpointError(
            f"The model file {path} {what}. Give a .safetensors file."
        )
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix.lower() in _PICKLE_SUFFIXES or start.startswith(_PICKLE_STARTS):
        raise CheckpointError(
            f"{path} is a training state or a pickle, which is never loaded here. "
            f"Make a checkpoint from it: msamil-train publish {path.name}"
        )


def _format_version(path: Path, text: str) -> int:
    if not text.isdigit():
        raise CheckpointError(
            f"{path} has the unreadable format version {text!r}. Publish it again."
        )
    if int(text) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} uses checkpoint format {text}; this version reads up to {FORMAT_VERSION}. Update napari-msamil."
        )
    return int(text)


def _read_config(path: Path, text: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise CheckpointError(
            f"The configuration in {path} is not understood at {where!r}: {first['msg']}. "
            "Update napari-msamil or publish the model again."
        ) from error


def _read_provenance(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"The provenance in {path} is damaged. Copy or download it again."
        ) from error
    return found if isinstance(found, dict) else {}
