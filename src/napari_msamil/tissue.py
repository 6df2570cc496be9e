"""Where the tissue is: background detection on a thumbnail, without any model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from skimage import filters, morphology

from napari_msamil.masks import MaskSource, SlideMask

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_msamil.config import TissueSpec
    from napari_msamil.slide.base import Slide, SlideInfo


def find_tissue(slide: Slide, spec: TissueSpec) -> SlideMask:
    """Mark the tissue of a slide; no tissue gives an empty mask."""
    size_wh = thumbnail_size(slide.info, spec)
    pixels = slide.thumbnail(size_wh)
    mpp = (slide.info.mpp or spec.mpp) * slide.info.size_wh0[0] / size_wh[0]
    return SlideMask(
        tissue_of(pixels, spec, mpp), slide.info.size_wh0, MaskSource.TISSUE
    )


def thumbnail_size(info: SlideInfo, spec: TissueSpec) -> tuple[int, int]:
    """Width and height of the thumbnail: `spec.mpp` where the pixel size is known, never above the bound."""
    longer = max(info.size_wh0)
    shrink = max(1.0, spec.mpp / info.mpp if info.mpp else 1.0)
    shrink = max(shrink, longer / spec.max_side_px)
    width, height = info.size_wh0
    return max(1, round(width / shrink)), max(1, round(height / shrink))


def tissue_of(
    pixels: NDArray[np.uint8], spec: TissueSpec, mpp: float
) -> NDArray[np.bool_]:
    """Tissue of a picture uint8 (H, W, 3) of `mpp` µm per pixel; bool (H, W)."""
    brightest = pixels.max(2).astype(np.float32)
    saturation = (brightest - pixels.min(2)) / np.maximum(brightest, 1)
    saturation = ndimage.gaussian_filter(saturation, 1)
    threshold = max(_otsu(saturation), spec.saturation_floor)
    found = saturation > threshold
    found = morphology.remove_small_objects(
        found, max_size=int(spec.min_area_um2 / mpp**2)
    )
    kept: NDArray[np.bool_] = morphology.remove_small_holes(
        found, max_size=int(spec.hole_area_um2 / mpp**2)
    )
    return kept


def _otsu(values: NDArray[np.float32]) -> float:
    otsu: Callable[..., float] = filters.threshold_otsu
    return float(otsu(values))
