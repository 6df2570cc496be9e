"""Any timm network as a patch encoder: pooled features of its last or an earlier stage.

The MHIM-MIL supplementary uses ResNet-50 cut behind its third residual stage, averaged over the map: 1024
values (`backbone="resnet50"`, `out_stage=3` in timm's count, where index 0 is the stem). Without `out_stage`
the network's own pooling is used, so vision Transformers work too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_msamil.errors import ConfigError
from napari_msamil.models.patch_encoder import PatchEncoder, StageMap, create_backbone

if TYPE_CHECKING:
    from torch import Tensor

    from napari_msamil.config import EncoderSpec


class TimmEncoder(PatchEncoder):
    """Pooled timm features: pixels (B, 3, H, W) → features (B, dim)."""

    def __init__(self, spec: EncoderSpec, *, pretrained: bool = False) -> None:
        super().__init__(spec)
        if spec.out_stage is None:
            self.backbone = create_backbone(
                spec.backbone, pretrained=pretrained, num_classes=0
            )
            width = getattr(
                self.backbone, "head_hidden_size", self.backbone.num_features
            )
        else:
            self.backbone = StageMap(
                spec.backbone, spec.out_stage, pretrained=pretrained
            )
            width = self.backbone.channels
        if width != spec.dim:
            raise ConfigError(
                f"{spec.backbone} gives {width} values at stage {spec.out_stage or 'last'}, "
                f"but the configuration says {spec.dim}. Set `dim = {width}` or another `out_stage`."
            )

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) with values 0 … 255 → pooled features (B, dim)."""
        found: Tensor = self.backbone(self.normalise(pixels))
        return found.mean((2, 3)) if found.ndim == 4 else found
