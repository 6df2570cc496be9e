"""The peer's half of `engine.py`'s peer row: LazySlide, slide to features, in an environment of its own.

    PEER_PYTHON engine_peer.py SLIDE WEIGHTS.pt OUT.npz [--amp] [--compile] [--workers N] [--batch N]

Tiles of 512 pixels at 0.5 µm over the whole slide, timm's EfficientNet-B3 with pooled features and the given weights.
Writes corners and features, and prints one line of JSON. With --compile or --amp a first extraction on the same
tiles is not counted, so that compiling is not.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import lazyslide as zs
import numpy as np
import torch
from torchvision.transforms.v2 import Compose, Normalize, ToDtype, ToImage
from wsidata import open_wsi


class Float(torch.nn.Module):
    """Features as float32: LazySlide 0.13 cannot store the bfloat16 that its own `amp` gives on a CPU."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model(images)
        return features.float()


def main() -> None:
    import timm

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide")
    parser.add_argument("weights")
    parser.add_argument("out")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    model = timm.create_model("efficientnet_b3", pretrained=False, num_classes=0).eval()
    model.load_state_dict(torch.load(args.weights, weights_only=True))  # noqa: TID251 (our own tensors)
    normal = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = Compose([ToImage(), ToDtype(torch.float32, scale=True), normal])
    if args.amp:
        model = Float(model)
    options: dict[str, Any] = {"compile": args.compile} if args.compile else {}
    if args.amp:
        options |= {"amp": True, "autocast_dtype": torch.bfloat16}
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        wsi = open_wsi(args.slide)
        zs.pp.tile_tissues(wsi, 512, mpp=0.5, tissue_key=None, background_filter=False)
        zs.tl.feature_extraction(
            wsi, model, model_name="b3", transform=transform, batch_size=args.batch,
            num_workers=args.workers, device="cpu", pbar=False, **options,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        if not args.compile and len(seconds) == 1 and seconds[0] > 60:
            break
    tiles = wsi["tiles"]
    xy = np.array([polygon.bounds[:2] for polygon in tiles.geometry])
    np.savez(args.out, xy=xy, features=np.asarray(wsi["b3_tiles"].X, np.float32))
    best = min(seconds)
    row = {"tiles": len(tiles), "best s": best, "turns s": seconds}
    print(json.dumps({**row, "patches/s": len(tiles) / best}))


if __name__ == "__main__":
    main()
