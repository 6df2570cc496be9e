"""Specification in, network out. Nothing heavy is imported before a network is really built.

`build_model` gives the encoder, the aggregator and, where there is one, the lesion segmenter of a
`ModelConfig` with fresh weights; `napari_msamil.checkpoint` fills them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    from napari_msamil.config import (
        AggregatorSpec,
        EncoderSpec,
        ModelConfig,
        SegmenterSpec,
    )
    from napari_msamil.models.base import Aggregator
    from napari_msamil.models.msamil import MsamilModel
    from napari_msamil.models.patch_encoder import PatchEncoder
    from napari_msamil.models.segmenter import Segmenter

__all__ = [
    "AGGREGATORS",
    "aggregator_class",
    "build_aggregator",
    "build_encoder",
    "build_model",
    "build_segmenter",
]

AGGREGATORS: dict[str, tuple[str, str]] = {
    "iaam": ("iaam", "IAAM"),
    "abmil": ("abmil", "ABMIL"),
    "clam_sb": ("clam", "CLAMSingle"),
    "clam_mb": ("clam", "CLAMMulti"),
    "dsmil": ("dsmil", "DSMIL"),
    "dtfd": ("dtfd", "DTFD"),
    "transmil": ("transmil", "TransMIL"),
    "mambamil": ("mambamil", "MambaMIL"),
    "csmil": ("csmil", "CSMIL"),
    "milbooster": ("milbooster", "MILBooster"),
    "dasmil": ("dasmil", "DASMIL"),
}
"""Registry name → module of this package and class in it."""

_ENCODERS = {"msfem": ("msfem", "MSFEM"), "timm": ("timm_encoder", "TimmEncoder")}


def _load(module: str, name: str) -> type:
    found: type = getattr(import_module(f"{__name__}.{module}"), name)
    return found


def aggregator_class(name: str) -> type[Aggregator]:
    """The class behind a registry name.

    Raises:
        ConfigError: There is no such method; the message lists those there are.
    """
    if name not in AGGREGATORS:
        raise ConfigError(
            f"There is no aggregator {name!r}. Use one of: {', '.join(AGGREGATORS)}."
        )
    return _load(*AGGREGATORS[name])


def build_aggregator(spec: AggregatorSpec, n_classes: int) -> Aggregator:
    """A bag classifier with fresh weights.

    Raises:
        ConfigError: Unknown method or unknown arguments.
    """
    from napari_msamil.models.base import parse_args

    found = aggregator_class(spec.name)
    return found(spec.in_dim, n_classes, parse_args(found.Args, spec))


def build_encoder(spec: EncoderSpec, *, pretrained: bool = False) -> PatchEncoder:
    """A patch encoder; its weights are fresh unless training asks for the backbone's published ones.

    Args:
        spec: What to build.
        pretrained: Whether timm may download weights for the backbone. Only training does this.

    Raises:
        ConfigError: Unknown backbone, or a width that does not fit.
    """
    encoder: PatchEncoder = _load(*_ENCODERS[spec.kind])(spec, pretrained=pretrained)
    return encoder


def build_segmenter(spec: SegmenterSpec) -> Segmenter:
    """A lesion segmenter with fresh weights."""
    segmenter: Segmenter = _load("segmenter", "Segmenter")(spec)
    return segmenter


def build_model(config: ModelConfig) -> MsamilModel:
    """All networks of a configuration with fresh weights."""
    model: MsamilModel = _load("msamil", "MsamilModel")(config)
    return model
