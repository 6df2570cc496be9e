"""The model card beside a published checkpoint: what it is, what it was trained on, how good it is, what it is not for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from napari_msamil.checkpoint import read_header, sha256_of
from napari_msamil.errors import CheckpointError, ExtraMissingError
from napari_msamil.model_card import ensemble_words, familiarity_words

from .summary import SHOWN, TITLES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from napari_msamil.checkpoint import CheckpointHeader


def write_card(checkpoint: Path, path: Path | None = None) -> Path:
    """Write the card of a checkpoint as a Hugging Face `README.md`.

    Args:
        checkpoint: The published file; everything in the card comes from its header.
        path: Where to; `README.md` beside the checkpoint by default.
    """
    header = read_header(checkpoint)
    path = path or checkpoint.with_name("README.md")
    beside = path.with_suffix(".part")
    beside.write_text(
        card_text(header, checkpoint.name, sha256_of(checkpoint)), encoding="utf-8"
    )
    beside.replace(path)
    return path


def checked_figures(found: Any, path: Path) -> dict[str, Any]:
    """Figures that a card can show: `pooled` has a number by name, alone or as `value` with `low` and `high`.

    Args:
        found: What the file holds.
        path: The file, for the message.

    Raises:
        CheckpointError: It holds something else.
    """
    pooled = found.get("pooled") or {} if isinstance(found, dict) else None
    if not isinstance(pooled, dict):
        raise CheckpointError(
            f'{path} holds no figures. Give the figures.json of an evaluation, or {{"pooled": {{"acc": 0.9}}}}.'
        )
    for name in SHOWN:
        entry = pooled.get(name)
        values = _entry(entry).values() if name in pooled else ()
        if not all(v is None or isinstance(v, int | float) for v in values):
            raise CheckpointError(
                f"{path}: {name} is {json.dumps(entry)[:80]}, which is no number. Give a number, or value, low and high."
            )
    return dict(found)


def card_text(header: CheckpointHeader, name: str, sha256: str) -> str:
    """The card as Markdown with its YAML head."""
    config, story = header.config, header.provenance
    parts = [
        _front_matter(header),
        f"# {config.name}\n",
        config.description or "A slide classifier for napari-msamil.",
        f"\n**Intended use.** {config.intended_use}",
        _limits(story),
        "\n## What it is\n",
        f"- classes: {', '.join(config.classes)}",
        f"- scales: {', '.join(f'{s.name} ({s.mpp:g} µm/px, {s.size_px} px)' for s in config.patches.scales)}",
        f"- encoder: {config.encoder.kind} on {config.encoder.backbone}, {config.encoder.dim} values per patch",
        f"- aggregator: {config.aggregator.name}",
        _listed("members", ensemble_words(config)),
        f"- lesion segmenter: {config.segmenter.encoder if config.segmenter else 'none (tissue is used)'}",
        f"- parameters: {header.parameters:,}; temperature {config.temperature:.3f}",
        f"- file: `{name}`, sha256 `{sha256}`",
        "\n## Data\n",
        f"- {story.get('data') or 'not stated'}",
        f"- hash of slides, patients, labels and split: `{story.get('data_hash') or 'not stated'}`",
        "\n## Figures on held-out slides\n",
        _figures(story.get("metrics") or {}),
        _calibration(story.get("calibration")),
        _refusals(familiarity_words(config)),
        "\n## Use\n",
        f"```\nmsamil classify slide.svs --model {name} -o results\nmsamil selftest {name}\n```",
        f"\nMade with: `{story.get('command') or 'not stated'}`\n",
    ]
    return "\n".join(part for part in parts if part)


def push(checkpoint: Path, repository: str, card: Path) -> str:
    """Upload checkpoint and card to a model repository; only when a user asks for it.

    Returns:
        The address of the repository.

    Raises:
        CheckpointError: The hub cannot be reached, or does not accept the upload.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ExtraMissingError("Uploading a model", "train") from error
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_file(
            path_or_fileobj=checkpoint, path_in_repo=checkpoint.name, repo_id=repository
        )
        api.upload_file(
            path_or_fileobj=card, path_in_repo="README.md", repo_id=repository
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.name} could not be uploaded to {repository}: {str(error)[:200]}. The files are on disk; log in with "
            "`hf auth login` and try again."
        ) from error
    return str(address)


def _front_matter(header: CheckpointHeader) -> str:
    licence = header.config.licence or "other"
    tags = ["napari", "pathology", "whole-slide-image", "multiple-instance-learning"]
    lines = [
        "---",
        f"license: {json.dumps(licence)}",
        "library_name: napari-msamil",
        "pipeline_tag: image-classification",
    ]
    return "\n".join([*lines, "tags:", *(f"- {t}" for t in tags), "---", ""])


def _listed(name: str, text: str) -> str:
    return f"- {name}: {text}" if text else ""


def _refusals(words: str) -> str:
    return (
        f"\nThe plugin says that a slide should not be judged with {words}."
        if words
        else ""
    )


def _limits(story: Mapping[str, Any]) -> str:
    limits = "\n**Limits.** Not a medical device. Figures hold for slides like the held-out ones: same stain, scanner and tissue."
    if story.get("synthetic") or "synthetic" in str(story.get("data", "")).lower():
        limits += " It was trained on synthetic pictures: its answers on real tissue have no medical meaning."
    return limits


def _figures(metrics: Mapping[str, Any]) -> str:
    pooled = metrics.get("pooled")
    if not pooled:
        return "Not measured."
    lines = ["| figure | value | 95 % interval |", "|---|---|---|"]
    for name in SHOWN:
        if name in pooled:
            entry = _entry(pooled[name])
            value, low, high = map(_number, entry.values())
            known = entry["low"] is not None or entry["high"] is not None
            interval = f"{low} … {high}" if known else "-"
            lines.append(f"| {TITLES[name]} | {value} | {interval} |")
    if "slides" in metrics and "patients" in metrics:
        lines.append(f"\n{metrics['slides']} slides of {metrics['patients']} patients.")
    return "\n".join(lines)


def _entry(found: Any) -> dict[str, Any]:
    """A figure with its interval; a plain number has none."""
    known = found if isinstance(found, dict) else {"value": found}
    return {side: known.get(side) for side in ("value", "low", "high")}


def _calibration(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    return (
        f"\nCalibrated on {found['slides']} validation slides (temperature {found['temperature']:.3f}, calibration error "
        f"{found['ece_before']:.3f} → {found['ece_after']:.3f}); sets of classes with {100 * found['coverage']:.0f} % coverage."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
