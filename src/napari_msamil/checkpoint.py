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

from pydantic import ValidationError

from napari_msamil.config import ModelConfig
from napari_msamil.errors import CheckpointError, ConfigError
from napari_msamil.hub import fetch_from_hub

if TYPE_CHECKING:
    from torch import Tensor

    from napari_msamil.models.msamil import MsamilModel

FORMAT_VERSION = 1
"""Raised whenever an older program could misread the file."""
DEMO = "demo"
SELFTEST_TOLERANCE = 1e-3
"""Largest difference of a logit between machines, relative to max(1, |logit|)."""
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
        "msamil.format_version": str(FORMAT_VERSION),
        "msamil.config": model.config.model_dump_json(),
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
    parameters = sum(_product(shape) for shape in sizes)
    return CheckpointHeader(
        _read_config(path, metadata["msamil.config"]), provenance, found, parameters
    )


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
    state = {
        k: v.half() if v.is_floating_point() and v.ndim >= 2 else v
        for k, v in state.items()
    }
    rounded = copy.deepcopy(model)
    rounded.load_state_dict(state)
    return state, rounded


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


def _product(shape: list[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
