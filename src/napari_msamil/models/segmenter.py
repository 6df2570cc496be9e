"""UNet++ on the thumbnail of a slide: which parts are lesion (paper section 3.1).

The paper names UNet++ and a 1024 × 1024 × 3 mask whose first ("red") channel is the lesion, and leaves the
encoder open: it is any encoder of segmentation-models-pytorch, or any of timm through its `tu-` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    from napari_msamil.config import SegmenterSpec

_STRIDE = 32
"""UNet++ halves the picture five times; sides are padded to whole multiples of this."""


class Segmenter(nn.Module):
    """Thumbnail → one logit per class and pixel.

    Attributes:
        spec: What was built.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: SegmenterSpec, *, pretrained: bool = False) -> None:
        """Build the network.

        Args:
            spec: Encoder, decoder and channels.
            pretrained: Whether published ImageNet weights may be downloaded for the encoder. Only training does this.

        Raises:
            ConfigError: The encoder is not known, or the decoder does not fit it.
        """
        super().__init__()
        self.spec = spec
        self.net = _build(spec, "imagenet" if pretrained else None)
        # Not in the state: the configuration holds them, and one truth is enough.
        for name, rgb in (("mean", spec.mean), ("std", spec.std)):
            value = torch.tensor(rgb).reshape(1, 3, 1, 1) * 255
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) with values 0 … 255 → logits (B, C, H, W), C as in `spec.channels`."""
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ConfigError(
                f"A segmenter takes pictures of shape (B, 3, H, W), but got {tuple(pixels.shape)}."
            )
        height, width = pixels.shape[2:]
        normal = (pixels.to(self.mean.dtype) - self.mean) / self.std
        padded = functional.pad(
            normal, (0, -width % _STRIDE, 0, -height % _STRIDE), mode="replicate"
        )
        logits: Tensor = self.net(padded)
        return logits[:, :, :height, :width]


def _build(spec: SegmenterSpec, weights: str | None) -> Any:
    import segmentation_models_pytorch as smp

    try:
        return smp.UnetPlusPlus(
            spec.encoder,
            encoder_depth=len(spec.decoder_channels),
            encoder_weights=weights,
            decoder_channels=spec.decoder_channels,
            classes=len(spec.channels),
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"No UNet++ can be built on the encoder {spec.encoder!r} with {len(spec.decoder_channels)} decoder "
            f"stages: {error}. Use an encoder of segmentation-models-pytorch or tu-<timm name>."
        ) from error
