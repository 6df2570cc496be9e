"""MSFEM: one network for all scales, a CNN map read as tokens by a Transformer; the class token is the feature.

Paper: MsaMIL-Net, section 3.2: F = EfficientNetB3(P) ∈ ℝ^{16×16×1536}, S = reshape(F) ∈ ℝ^{256×1536},
C = TransformerEncoder(S + E) ∈ ℝ^{1×512}. The same weights see 20x, 10x and 5x.

What the text leaves open, and what is built:

- The class token is 512 wide while S is 1536 wide. `project="before"` (default) projects the tokens to 512
  before positions are added, as hybrid vision Transformers do; `project="after"` is the literal text, with the
  encoder at 1536 and the projection behind it (31.5 M instead of 6.3 M parameters for two layers).
- 2 layers, 8 heads, feed-forward 2048, pre-norm, GELU: the text gives none.
- E is learned, made for a 16 × 16 grid and interpolated (bicubic) for other patch sizes; the class token is learned
  and has its own position.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.errors import ConfigError
from napari_msamil.models.attention import merge_heads, split_heads
from napari_msamil.models.patch_encoder import PatchEncoder, StageMap

if TYPE_CHECKING:
    from napari_msamil.config import EncoderSpec


class EncoderLayer(nn.Module):
    """Pre-norm Transformer layer: x + attention(norm(x)), then x + MLP(norm(x)); x (B, T, width)."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, ffn), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffn, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, width) → tokens."""
        q, k, v = (
            split_heads(t, self.heads) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        x = x + self.drop(
            self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        )
        out: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return out


class MSFEM(PatchEncoder):
    """Multi-scale feature extraction module: pixels (B, 3, H, W) → features (B, dim)."""

    def __init__(self, spec: EncoderSpec, *, pretrained: bool = False) -> None:
        super().__init__(spec)
        self.backbone = StageMap(spec.backbone, spec.out_stage, pretrained=pretrained)
        channels, before = self.backbone.channels, spec.project == "before"
        width = spec.dim if before else channels
        if width % spec.heads:
            raise ConfigError(
                f"MSFEM: {spec.heads} heads do not divide the width {width}. Change `heads`."
            )
        self.project_in = nn.Linear(channels, width) if before else nn.Identity()
        self.project_out = nn.Identity() if before else nn.Linear(width, spec.dim)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + spec.grid**2, width) * 0.02)
        self.layers = nn.ModuleList(
            EncoderLayer(width, spec.heads, spec.ffn, spec.dropout)
            for _ in range(spec.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) with values 0 … 255 → class token of the last layer (B, dim)."""
        feature_map = self.backbone(self.normalise(pixels))
        height, width = feature_map.shape[-2:]
        tokens = self.project_in(feature_map.flatten(2).transpose(1, 2))
        start = self.class_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        x = torch.cat([start, tokens], dim=1) + self._positions_for(height, width).to(
            tokens.dtype
        )
        for layer in self.layers:
            x = layer(x)
        feature: Tensor = self.project_out(self.norm(x[:, 0]))
        return feature

    def _positions_for(self, height: int, width: int) -> Tensor:
        """Learned positions for a token grid of any shape: (1, 1 + height · width, D)."""
        grid = self.spec.grid
        if (height, width) == (grid, grid):
            return self.positions
        first, rest = self.positions[:, :1], self.positions[:, 1:]
        square = rest.reshape(1, grid, grid, -1).permute(0, 3, 1, 2).float()
        resized = F.interpolate(
            square, size=(height, width), mode="bicubic", align_corners=False
        )
        return torch.cat(
            [first, resized.flatten(2).transpose(1, 2).to(first.dtype)], dim=1
        )
