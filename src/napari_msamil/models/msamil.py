"""Encoder, aggregator and segmenter of one configuration as one module: what a checkpoint holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from napari_msamil.models import build_aggregator, build_encoder, build_segmenter
from napari_msamil.models.ensemble import AggregatorEnsemble, EncoderEnsemble
from napari_msamil.models.familiarity import Familiarity

if TYPE_CHECKING:
    from napari_msamil.config import ModelConfig
    from napari_msamil.models.base import Aggregator
    from napari_msamil.models.outputs import MILOutput


class MsamilModel(nn.Module):
    """The networks of a `ModelConfig`.

    Attributes:
        config: What was built.
        encoder: Patch → feature.
        aggregator: Bag of features → class.
        segmenter: Thumbnail → lesion, or None.
        familiarity: How far features lie from the training data, or None.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.aggregator = _aggregator(config)
        self.segmenter = (
            None if config.segmenter is None else build_segmenter(config.segmenter)
        )
        self.familiarity = (
            None
            if config.familiarity is None
            else Familiarity(len(config.patches.scales), config.encoder.dim)
        )

    def forward(self, pixels: Tensor, coords: Tensor, scale: Tensor) -> MILOutput:
        """One slide end to end.

        Args:
            pixels: (N, 3, H, W) with values 0 … 255, in paper order.
            coords: (N, 2), shares of the slide's width and height.
            scale: int64 (N,).

        Returns:
            The answer for a batch of one bag.
        """
        features = self.encoder(pixels)[None]
        output: MILOutput = self.aggregator(features, coords[None], scale[None])
        return output


def _encoder(config: ModelConfig) -> nn.Module:
    """One encoder, or one per member."""
    if config.ensemble is None or not config.ensemble.own_encoders:
        return build_encoder(config.encoder)
    return EncoderEnsemble(
        [build_encoder(config.encoder) for _ in range(config.ensemble.members)]
    )


def _aggregator(config: ModelConfig) -> Aggregator:
    """One aggregator, or one per member."""
    spec, count = config.aggregator, len(config.classes)
    if config.ensemble is None:
        return build_aggregator(spec, count)
    members = [build_aggregator(spec, count) for _ in range(config.ensemble.members)]
    own = config.ensemble.own_encoders
    return AggregatorEnsemble(members, config.temperature, own_features=own)
