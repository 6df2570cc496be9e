"""Pen marks: how much of tissue without ink is flagged, how much ink is found, and what it does to the lesion mask.

    python -m benchmarks.pen_marks --data ../shared/data [--slides 12]

Real slides and pictures at the resolution of background detection; real tiles pixel by pixel, as if they were thumbnails.
Ink: synthetic slides painted twice, with and without a stroke, that no bound was chosen on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.checkpoint import load_checkpoint
from napari_msamil.config import TissueSpec
from napari_msamil.lesion import find_lesion
from napari_msamil.slide import open_slide
from napari_msamil.slide.array_slide import ArraySlide
from napari_msamil.synthetic import SlideRecipe, paint_slide
from napari_msamil.tissue import pen_of, thumbnail_size, tissue_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEC = TissueSpec()
RAW = SPEC.model_copy(update={"remove_pen": False})
REAL = (
    "slides/CMU-1-Small-Region.svs",
    "slides/dicom_camelyon_jpeg",
    "slides/tcga-cr-7395_generic_bigtiff_5level.tif",
    "images/OS-2-ndpi.ome.tif",
    "images/histoprep_slide.jpeg",
)
LABELS = ("glandular-vesicular", "trabecular-smooth", "glandular-smooth")
FIRST_SEED = 40


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--slides", type=int, default=12)
    args = parser.parse_args()
    for name in REAL:
        with open_slide(args.data / name) as slide:
            size = thumbnail_size(slide.info, SPEC)
            pixels = slide.thumbnail(size)
            mpp = SPEC.mpp
            if slide.info.mpp:
                mpp = slide.info.mpp * slide.info.size_wh0[0] / size[0]
        print(f"{name:50} {flagged(pixels, mpp):.4f} of the tissue is flagged")
    tiles = sorted((args.data / "tiles/ebhi_seg").glob("*/images/*.png"))
    shares = [
        flagged(np.asarray(Image.open(t).convert("RGB")), SPEC.mpp) for t in tiles
    ]
    print(
        f"{len(tiles)} biopsy tiles: {np.mean(shares):.4f}, at most {max(shares):.4f}"
    )
    lesion(args.slides)


def flagged(pixels: NDArray[np.uint8], mpp: float) -> float:
    """Share of the tissue in a picture that is taken for ink."""
    tissue = tissue_of(pixels, RAW, mpp)
    return float((pen_of(pixels, SPEC, mpp) & tissue).sum() / max(tissue.sum(), 1))


def lesion(count: int) -> None:
    """Ink found, and IoU of the demo model's lesion beside the ink: without it, with it left in, with it painted over."""
    loaded = load_checkpoint("demo")
    network, spec = loaded.model.segmenter, loaded.config.segmenter
    assert network is not None
    assert spec is not None
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + count):
        recipe = {"label": LABELS[seed % 3], "seed": seed, "stain_seed": seed}
        clean = paint_slide(SlideRecipe(**recipe))  # type: ignore[arg-type]
        inked = paint_slide(SlideRecipe(**recipe, pen=True))  # type: ignore[arg-type]
        ink = np.abs(inked.pixels.astype(np.int16) - clean.pixels).max(2) > 20
        step = round(SPEC.mpp / clean.mpp)
        small = np.asarray(Image.fromarray(inked.pixels).reduce(step))
        there = (
            np.asarray(Image.fromarray(ink.astype(np.uint8) * 255).reduce(step)) > 127
        )
        found = pen_of(small, SPEC, SPEC.mpp)
        row = [float(found[there].mean())]
        for painted, rules in ((clean, SPEC), (inked, RAW), (inked, SPEC)):
            slide = ArraySlide(painted.pixels, mpp=painted.mpp)
            mask = find_lesion(slide, network, spec, tissue=rules).mask
            shape = mask.shape[::-1]
            wanted, under = (
                np.asarray(
                    Image.fromarray(np.asarray(plane).astype(np.uint8) * 255).resize(
                        shape, Image.Resampling.NEAREST
                    )
                )
                > 127
                for plane in (clean.mask, ink)
            )
            both = (mask & wanted & ~under).sum()
            row.append(float(both / ((mask | wanted) & ~under).sum()))
        rows.append(row)
        print(f"seed {seed}: " + " ".join(f"{value:.3f}" for value in row), flush=True)
    table = np.asarray(rows)
    print(f"ink found: mean {table[:, 0].mean():.3f}, least {table[:, 0].min():.3f}")
    words = ("no ink", "ink left in", "ink painted over")
    for word, column in zip(words, table[:, 1:].T, strict=True):
        print(
            f"lesion IoU beside the ink, {word}: mean {column.mean():.3f}, least {column.min():.3f}"
        )


if __name__ == "__main__":
    main()
