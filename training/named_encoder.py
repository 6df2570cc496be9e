"""An encoder by its timm name for `extract`: the MHIM-MIL supplementary's ResNet-50, or any other.

    msamil-train extract --config mhim-abmil-camelyon16 --model timm:resnet50.tv_in1k --cohort cohort.csv -o features/

Scales, patch size, tissue rule and stage come from the recipe's `[model]` table; the weights are the published ones of
that name, from timm's cache or the hub. Only features can be made with it: the aggregator is untrained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.checkpoint import LoadedModel
from napari_msamil.errors import ConfigError
from napari_msamil.models import build_encoder, build_model

from .config import model_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from napari_msamil.config import EncoderSpec

PREFIX = "timm:"


def is_named_encoder(ref: str) -> bool:
    """Whether `--model` names a timm encoder."""
    return ref.startswith(PREFIX)


def load_named_encoder(
    ref: str, recipe: Mapping[str, Any], device: str = "cpu", *, pretrained: bool = True
) -> LoadedModel:
    """A model whose encoder is the named one.

    Args:
        ref: `timm:<name>`; `timm:` alone takes the recipe's backbone.
        recipe: Its `[model]` table says the rest; `encoder.kind` must be `timm`.
        device: Where it lives.
        pretrained: Whether the published weights are loaded; False only for tests.

    Raises:
        ConfigError: The name is unknown, its width is not the recipe's, or its weights cannot be had.
    """
    config = model_config(recipe, ("a", "b"))
    if config.encoder.kind != "timm":
        raise ConfigError(
            f'{ref} needs a recipe whose [model.encoder] has kind = "timm" (for example mhim-abmil-camelyon16).'
        )
    name = ref.removeprefix(PREFIX) or config.encoder.backbone
    encoder = config.encoder.model_copy(update={"backbone": name})
    config = config.model_copy(update={"encoder": encoder, "segmenter": None})
    model = build_model(config)
    if pretrained:
        model.encoder = _with_published_weights(encoder)
    model.to(device).eval()
    return LoadedModel(model, config, {"encoder": ref}, Path(ref), "")


def _with_published_weights(spec: EncoderSpec) -> Any:
    try:
        return build_encoder(spec, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"The weights of {spec.backbone} cannot be fetched ({type(error).__name__}: {str(error)[:200]}). Connect to "
            "the internet once, or set HF_HOME to a folder that holds them."
        ) from error
