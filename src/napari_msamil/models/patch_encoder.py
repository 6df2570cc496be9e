"""What every patch encoder is: pixels 0 … 255 in, one feature per patch out. Normalisation lives inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    from napari_msamil.config import EncoderSpec


class PatchEncoder(nn.Module, ABC):
    """Base of the encoders.

    Attributes:
        spec: What was built.
        dim: Width of a feature.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dim = spec.dim
        # Not in the state: the configuration holds them, and one truth is enough.
        for name, rgb in (("mean", spec.mean), ("std", spec.std)):
            value = torch.tensor(rgb).reshape(1, 3, 1, 1) * 255
            self.register_buffer(name, value, persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) with values 0 … 255, uint8 or float → normalised float; the memory format is kept."""
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ConfigError(
                f"An encoder takes patches of shape (B, 3, H, W), but got {tuple(pixels.shape)}."
            )
        return (pixels.to(self.mean.dtype) - self.mean) / self.std

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) with values 0 … 255 → features (B, dim)."""


def create_backbone(name: str, *, pretrained: bool, **kwargs: Any) -> Any:
    """A timm network.

    Raises:
        ConfigError: timm does not know the name.
    """
    import timm

    if not timm.is_model(name.split("/")[-1]) and not name.startswith("hf-hub:"):
        near = (
            ", ".join(timm.list_models(f"*{name[:8]}*")[:5]) or "see timm.list_models()"
        )
        raise ConfigError(f"timm knows no network {name!r}. Near it: {near}.")
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except (AttributeError, AssertionError, IndexError, TypeError) as error:
        raise ConfigError(
            f"timm cannot build {name!r} with {kwargs}: {error}. Choose another network."
        ) from error


class StageMap(nn.Module):
    """A timm network up to a stage: (B, 3, H, W) → its map (B, channels, h, w).

    Attributes:
        net: The timm network.
        channels: Channels of the map.
    """

    def __init__(self, name: str, stage: int | None, *, pretrained: bool) -> None:
        super().__init__()
        self._last = stage is None
        if stage is None:
            self.net = create_backbone(
                name, pretrained=pretrained, num_classes=0, global_pool=""
            )
            _drop_unused_head(self.net)
            self.channels: int = self.net.num_features
        else:
            self.net = create_backbone(
                name, pretrained=pretrained, features_only=True, out_indices=(stage,)
            )
            self.channels = self.net.feature_info.channels()[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels → the map."""
        found: Tensor = self.net.forward_features(x) if self._last else self.net(x)[-1]
        if found.ndim != 4:
            raise ConfigError(
                "This network gives no feature map but tokens. Use it as an encoder of kind 'timm', "
                "or choose a convolutional network."
            )
        return found


def _drop_unused_head(net: Any) -> None:
    """Remove layers behind the map (timm's MobileNet family pools first): they would get no gradient."""
    if getattr(net, "head_hidden_size", net.num_features) == net.num_features:
        return
    for name in ("conv_head", "norm_head", "bn2"):
        if hasattr(net, name):
            setattr(net, name, nn.Identity())
