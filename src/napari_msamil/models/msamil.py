"""Encoder, aggregator and segmenter of one configuration as one module: what a checkpoint holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from napari_msamil.models import build_aggregator, build_encoder, build_segmenter

if TYPE_CHECKING:
    from napari_msamil.config import ModelConfig
    from napari_msamil.models.outputs import MILOutput


class MsamilModel(nn.Module):
    """The networks of a `ModelConfig`.

    Attributes:
        config: What was built.
        encoder: Patch → feature.
        aggregator: Bag of features → class.
        segmenter: Thumbnail → lesion, or None.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.aggregator = build_aggregator(config.aggregator, len(config.classes))
        self.segmenter = (
            None if config.segmenter is None else build_segmenter(config.segmenter)
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
