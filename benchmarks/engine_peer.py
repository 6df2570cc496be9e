"""The peer's half of `engine.py`'s peer row: LazySlide, slide to features, in an environment of its own.

    PEER_PYTHON benchmarks/engine_peer.py SLIDE [--amp] [--workers N]

Tiles of 512 pixels at 0.5 µm over the whole slide, timm's EfficientNet-B3 with pooled features (random weights: only
time counts). Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import lazyslide as zs
import torch
from torchvision.transforms.v2 import Compose, Normalize, ToDtype, ToImage
from wsidata import open_wsi


def main() -> None:
    import timm

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    model = timm.create_model("efficientnet_b3", pretrained=False, num_classes=0).eval()
    transform = Compose(
        [
            ToImage(),
            ToDtype(torch.float32, scale=True),
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    wsi = open_wsi(args.slide)
    start = time.perf_counter()
    zs.pp.tile_tissues(wsi, 512, mpp=0.5, tissue_key=None, background_filter=False)
    tiles = len(wsi["tiles"])
    options = {"amp": True, "autocast_dtype": torch.bfloat16} if args.amp else {}
    zs.tl.feature_extraction(
        wsi, model, model_name="b3", transform=transform, batch_size=8,
        num_workers=args.workers, device="cpu", pbar=False, **options,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print(
        json.dumps({"tiles": tiles, "seconds": seconds, "patches/s": tiles / seconds})
    )


if __name__ == "__main__":
    main()
