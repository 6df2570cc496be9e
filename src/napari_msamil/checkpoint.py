"""The travelling file: one `.safetensors` with weights, configuration and provenance. No pickle is ever read.

The header holds three strings: `msamil.format_version`, `msamil.config` (JSON of `ModelConfig`) and
`msamil.provenance` (JSON: recipe, data, metrics, versions, reference logits). Tensor names begin with their part:
`encoder.`, `aggregator.`, `segmenter.`. `docs/checkpoint.md` describes the file field by field.
"""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.checkpoint_header import (
    FORMAT_VERSION,
    CheckpointHeader,
    config_json,
    read_header,
    version_of,
)
from napari_msamil.errors import CheckpointError, ConfigError
from napari_msamil.hub import fetch_from_hub

if TYPE_CHECKING:
    from torch import Tensor

    from napari_msamil.config import ModelConfig
    from napari_msamil.models.msamil import MsamilModel

__all__ = [
    "DEMO",
    "FORMAT_VERSION",
    "CheckpointHeader",
    "LoadedModel",
    "SelftestResult",
    "load_checkpoint",
    "read_header",
    "resolve_model",
    "save_checkpoint",
    "selftest",
    "sha256_of",
]

DEMO = "demo"
SELFTEST_TOLERANCE = 1e-3
"""Largest difference of a logit between machines, relative to max(1, |logit|)."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: In evaluation mode, on its device.
        config: Its configuration.
        provenance: Where it comes from.
        path: The file.
        sha256: Hash of the file, hexadecimal.
    """

    model: MsamilModel
    config: ModelConfig
    provenance: dict[str, Any]
    path: Path
    sha256: str


@dataclass(frozen=True)
class SelftestResult:
    """Recorded logits against those found here.

    Attributes:
        expected: Logits recorded when the file was written.
        found: Logits of the same input on this machine.
        max_abs_diff: Largest absolute difference.
        ok: Whether each difference is at most `SELFTEST_TOLERANCE` · max(1, |logit|).
    """

    expected: tuple[float, ...]
    found: tuple[float, ...]
    max_abs_diff: float
    ok: bool


def save_checkpoint(
    path: Path | str,
    model: MsamilModel,
    provenance: dict[str, Any] | None = None,
    *,
    half: bool = False,
) -> Path:
    """Write a checkpoint beside its place, then move it there.

    Args:
        path: Where to; must end in `.safetensors`.
        model: Networks and configuration.
        provenance: Recipe, data hash, metrics and so on; versions, date and reference logits are added.
        half: Store matrices and kernels as float16: half the size. The reference logits are those of the
            rounded weights.

    Raises:
        CheckpointError: The suffix is wrong, or the file cannot be written.
    """
    from safetensors.torch import save as serialise

    from napari_msamil.models.reference import reference_logits

    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"A checkpoint ends in .safetensors, but {path} does not. Rename it."
        )
    state, model = _state_to_save(model, half=half)
    reference = {"logits": reference_logits(model)}
    header = {
        "format": "pt",
        "msamil.format_version": str(version_of(model.config)),
        "msamil.config": config_json(model.config),
        "msamil.provenance": json.dumps(
            {**_origin(), **(provenance or {}), "reference": reference}
        ),
    }
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not save_file: it makes files that only their owner can read.
        beside.write_bytes(serialise(state, metadata=header))
        beside.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {error}. Choose another place."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return path


def resolve_model(ref: str | Path = DEMO) -> Path:
    """The file behind a model reference.

    Args:
        ref: A path, `hf://owner/name[@revision]`, or `demo` for the built-in model.

    Raises:
        CheckpointError: There is no such file, or the hub cannot be reached.
    """
    if isinstance(ref, str) and ref.startswith("hf://"):
        return fetch_from_hub(ref)
    if ref == DEMO:
        built_in = Path(__file__).parent / "data" / "demo.safetensors"
        if not built_in.is_file():
            raise CheckpointError(
                "The built-in demo model is not part of this installation. Reinstall napari-msamil, "
                "or give a model file with --model."
            )
        return built_in
    path = Path(ref).expanduser()
    if not path.exists():
        raise CheckpointError(
            f"There is no model file {path}. Give a .safetensors file, hf://owner/name, or demo."
        )
    return path


def load_checkpoint(ref: str | Path = DEMO, device: str = "cpu") -> LoadedModel:
    """Load a model strictly: every weight must be there, none may be left over, every shape must fit.

    Args:
        ref: A path, `hf://owner/name[@revision]`, or `demo`.
        device: torch device string.

    Raises:
        CheckpointError: The file is missing, damaged, too new, not a checkpoint, or does not fit its configuration.
    """
    from safetensors.torch import load_file

    path = resolve_model(ref)
    header = read_header(path)
    model = _build(path, header.config)
    state = load_file(path)
    _check_state(path, state, model.state_dict())
    model.load_state_dict(state, strict=True)
    model.eval().to(device)
    return LoadedModel(model, header.config, header.provenance, path, sha256_of(path))


def selftest(loaded: LoadedModel) -> SelftestResult:
    """Does the model give its recorded logits here?

    Raises:
        CheckpointError: The file has no recorded logits.
    """
    from napari_msamil.models.reference import reference_logits

    recorded = (loaded.provenance.get("reference") or {}).get("logits")
    if not recorded:
        raise CheckpointError(
            f"{loaded.path} has no recorded logits to compare with. Publish it again."
        )
    found = reference_logits(loaded.model)
    differences = [abs(a - b) for a, b in zip(recorded, found, strict=True)]
    allowed = [SELFTEST_TOLERANCE * max(1.0, abs(a)) for a in recorded]
    ok = all(d <= most for d, most in zip(differences, allowed, strict=True))
    return SelftestResult(tuple(recorded), tuple(found), max(differences), ok)


def sha256_of(path: Path) -> str:
    """Hash of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_to_save(
    model: MsamilModel, *, half: bool
) -> tuple[dict[str, Tensor], MsamilModel]:
    """State on the CPU as it is stored, and the model that a reader will have."""
    import copy

    state = {
        k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()
    }
    if not half:
        return state, model
    # Norms and biases stay in float32: they are few, and running variances may not fit float16.
    state = {k: v.half() if _may_be_rounded(k, v) else v for k, v in state.items()}
    rounded = copy.deepcopy(model)
    rounded.load_state_dict(state)
    return state, rounded


def _may_be_rounded(name: str, value: Tensor) -> bool:
    """Weights of matrices and kernels; not the statistics of features, whose squares would not fit."""
    wide = value.is_floating_point() and value.ndim >= 2
    return wide and not name.startswith("familiarity.")


def _origin() -> dict[str, Any]:
    """Versions and date."""
    packages = ("napari-msamil", "torch", "timm", "segmentation-models-pytorch")
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": versions,
    }


def _build(path: Path, config: ModelConfig) -> MsamilModel:
    """Networks with fresh weights; the caller's random numbers do not notice."""
    import torch

    from napari_msamil.models import build_model

    try:
        with torch.random.fork_rng(devices=[]):
            return build_model(config)
    except ConfigError as error:
        raise CheckpointError(
            f"The model in {path} cannot be built: {error}"
        ) from error


def _check_state(
    path: Path, state: dict[str, Tensor], wanted: dict[str, Tensor]
) -> None:
    """Raise one sentence that names what is missing, left over, or misshapen."""
    missing, extra = (
        sorted(wanted.keys() - state.keys()),
        sorted(state.keys() - wanted.keys()),
    )
    shapes = [
        f"{k} is {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted.keys() & state.keys()
        if state[k].shape != wanted[k].shape
    ]
    for what, names in (
        ("lacks", missing),
        ("has too much:", extra),
        ("does not fit:", sorted(shapes)),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{path} {what} {', '.join(names[:3])}{more}. Its weights do not belong to its configuration; "
                "publish it again."
            )
