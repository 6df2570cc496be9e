"""What a checkpoint is, in words: classes, scales, parts, figures, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_msamil.checkpoint import CheckpointHeader
    from napari_msamil.config import ModelConfig


def describe_header(header: CheckpointHeader) -> str:
    """The text of `msamil model info` and of the model dialog."""
    return "\n".join(
        f"{name:<14}{value}" for name, value in model_facts(header) if value
    )


def model_facts(header: CheckpointHeader) -> list[tuple[str, str]]:
    """Name and value of everything a user should know before using a model."""
    config = header.config
    scales = ", ".join(
        f"{s.name} ≙ {s.mpp:g} µm/px ({s.size_px} px, {s.size_um:g} µm)"
        for s in config.patches.scales
    )
    encoder, segmenter = config.encoder, config.segmenter
    return [
        ("name", config.name),
        ("classes", ", ".join(config.classes)),
        ("scales", scales),
        (
            "selection",
            f"{config.patches.strategy}, lesion share > {config.patches.lesion_threshold:g}",
        ),
        ("resampler", f"{config.patches.resampler}, level {config.patches.read_level}"),
        (
            "encoder",
            f"{encoder.kind} on {encoder.backbone}, {encoder.dim} values per patch",
        ),
        ("aggregator", config.aggregator.name),
        (
            "segmenter",
            f"UNet++ on {segmenter.encoder}" if segmenter else "none: tissue is used",
        ),
        ("members", ensemble_words(config)),
        ("refuses", familiarity_words(config)),
        ("temperature", f"{config.temperature:g}" if config.temperature != 1 else ""),
        ("data", str(header.provenance.get("data", ""))),
        ("figures", _figures(header.provenance.get("metrics"))),
        ("licence", config.licence),
        ("intended use", config.intended_use),
        ("description", config.description),
        ("format", str(header.format_version)),
    ]


def ensemble_words(config: ModelConfig) -> str:
    """How many trainings answer together; empty for a single one."""
    if config.ensemble is None:
        return ""
    how = "an encoder each" if config.ensemble.own_encoders else "one encoder"
    return f"{config.ensemble.members} trainings with {how}; the answer is their mean"


def familiarity_words(config: ModelConfig) -> str:
    """From when on the model says that it should not judge a slide; empty where it was not learnt."""
    limits = config.familiarity
    if limits is None:
        return ""
    return (
        f"fewer than {limits.patches} patches, or features farther than {limits.distance:.2f} from the training data "
        f"(each wrongly for at most {100 * limits.rate:.3g} % of patients like the {limits.patients} of the validation slides)"
    )


def _figures(metrics: Any) -> str:
    """ACC and AUC with their 95 % intervals, and on how many slides."""
    if not isinstance(metrics, dict):
        return ""
    pooled = metrics.get("pooled", metrics)
    parts = [
        f"{name.upper()} {_with_interval(pooled[name])}"
        for name in ("acc", "auc")
        if name in pooled
    ]
    if "slides" in metrics:
        parts.append(f"on {metrics['slides']} held-out slides")
    return ", ".join(parts)


def _with_interval(figure: Any) -> str:
    if isinstance(figure, dict):
        return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure:.3f}" if isinstance(figure, float) else str(figure)
