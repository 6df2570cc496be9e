"""Where the tissue is: background detection on a thumbnail, without any model.

Bright field: colour saturation against the glass of this very slide, cut by Otsu's threshold inside bounds that
hold where Otsu fails (no tissue at all, or nothing but tissue). Dark field (fluorescence): signal above the black
level. Then pen marks, specks and hair-thin lines go, and small holes are filled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from skimage import filters, morphology

from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.pen_marks import pen_marks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from napari_msamil.config import TissueSpec
    from napari_msamil.slide.base import Slide, SlideInfo

SATURATION_CEILING = 0.12
"""Otsu splits pale from dark tissue where there is no glass in the picture; its threshold never goes above this."""
_SMOOTHING_UM = 10.0
_PEN_AREA_UM2 = 10_000.0
_GLASS_LEVEL = 140
_BLACK_LEVEL = 60


def find_tissue(slide: Slide, spec: TissueSpec) -> SlideMask:
    """Mark the tissue of a slide.

    Args:
        slide: The open slide; it stays open.
        spec: Resolution and bounds.

    Returns:
        The mask, at the resolution of the thumbnail; empty where there is no tissue.

    Raises:
        RegionError: The slide cannot be decoded.
    """
    size_wh = thumbnail_size(slide.info, spec)
    pixels = slide.thumbnail(size_wh)
    # Without a pixel size the bounds in µm are taken for a thumbnail of the resolution asked for.
    mpp = spec.mpp
    if slide.info.mpp:
        mpp = slide.info.mpp * slide.info.size_wh0[0] / size_wh[0]
    found = tissue_of(pixels, spec, mpp)
    return SlideMask(found, slide.info.size_wh0, MaskSource.TISSUE)


def thumbnail_size(info: SlideInfo, spec: TissueSpec) -> tuple[int, int]:
    """Width and height of the thumbnail: `spec.mpp` where the pixel size is known, never above the bound."""
    width, height = info.size_wh0
    by_mpp = spec.mpp / info.mpp if info.mpp else 1.0
    shrink = max(1.0, by_mpp, max(width, height) / spec.max_side_px)
    return max(1, round(width / shrink)), max(1, round(height / shrink))


def tissue_of(
    pixels: NDArray[np.uint8], spec: TissueSpec, mpp: float
) -> NDArray[np.bool_]:
    """Tissue in a picture.

    Args:
        pixels: uint8 (H, W, 3).
        spec: Bounds.
        mpp: µm per pixel of the picture.

    Returns:
        bool (H, W).
    """
    if is_dark_field(pixels):
        found = _dark_field(pixels, mpp)
    else:
        found = _bright_field(pixels, spec, mpp)
    found = _without_lines(found)
    found = morphology.remove_small_objects(
        found, max_size=_pixels(spec.min_area_um2, mpp)
    )
    filled: NDArray[np.bool_] = found | _small_holes(
        found, _pixels(spec.hole_area_um2, mpp)
    )
    return filled


def pen_of(
    pixels: NDArray[np.uint8], spec: TissueSpec, mpp: float
) -> NDArray[np.bool_]:
    """Pen marks in a picture; none where the spec says they stay, or in the dark field.

    Args:
        pixels: uint8 (H, W, 3).
        spec: Bounds.
        mpp: µm per pixel of the picture; the colours hold from about 4 µm on, where single nuclei are no longer seen.

    Returns:
        bool (H, W).
    """
    if not spec.remove_pen or is_dark_field(pixels):
        return np.zeros(pixels.shape[:2], dtype=np.bool_)
    return _pen(pixels, glass_colour(pixels), mpp)


def is_dark_field(pixels: NDArray[np.uint8]) -> bool:
    """Whether the background is black: most of the picture is dark and hardly anything is bright."""
    brightness = pixels.mean(2)
    return bool(
        np.median(brightness) < _BLACK_LEVEL
        and (brightness > _GLASS_LEVEL).mean() < 0.01
    )


def glass_colour(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Colour of the empty glass, float32 (3,): the commonest bright grey; white where there is none."""
    darkest, brightest = pixels.min(2), pixels.max(2)
    grey = (darkest > _GLASS_LEVEL) & (brightest - darkest < 32)
    if grey.mean() < 0.01:
        return np.full(3, 255, dtype=np.float32)
    level = np.bincount(darkest[grey], minlength=256).astype(np.float64)
    peak = int(ndimage.uniform_filter1d(level, 9).argmax())
    near = grey & (np.abs(darkest.astype(np.int16) - peak) <= 6)
    colour: NDArray[np.float32] = np.median(pixels[near], axis=0).astype(np.float32)
    return colour


def _bright_field(
    pixels: NDArray[np.uint8], spec: TissueSpec, mpp: float
) -> NDArray[np.bool_]:
    glass = glass_colour(pixels)
    sigma = max(0.7, _SMOOTHING_UM / mpp)
    smooth = ndimage.gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0))
    relative = np.clip(smooth / glass, 0.0, 1.0)
    brightest = relative.max(2)
    saturation = (brightest - relative.min(2)) / np.maximum(brightest, 0.15)
    threshold = np.clip(
        _otsu(saturation),
        spec.saturation_floor,
        max(SATURATION_CEILING, spec.saturation_floor),
    )
    found: NDArray[np.bool_] = saturation > threshold
    if spec.remove_pen:
        found &= ~_pen(pixels, glass, mpp)
    return found


def _pen(
    pixels: NDArray[np.uint8], glass: NDArray[np.float32], mpp: float
) -> NDArray[np.bool_]:
    density = -np.log(np.clip((pixels.astype(np.float32) + 1) / (glass + 1), 1e-3, 1.0))
    density = ndimage.gaussian_filter(density, (0.7, 0.7, 0))
    return pen_marks(density, pixels, _pixels(_PEN_AREA_UM2, mpp))


def _dark_field(pixels: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Signal above black; on a logarithmic scale, because tissue glows far less than its brightest cells."""
    sigma = max(1.0, 1.5 * _SMOOTHING_UM / mpp)
    signal = ndimage.gaussian_filter(pixels.max(2).astype(np.float32), sigma)
    glow = np.log1p(signal)
    found: NDArray[np.bool_] = (glow > _otsu(glow)) & (signal > 2)
    return found


def _without_lines(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop parts that are nowhere wider than two pixels: rims of bubbles, edges of the cover slip, hairs."""
    core = ndimage.binary_erosion(mask, np.ones((3, 3), dtype=np.bool_))
    kept: NDArray[np.bool_] = ndimage.binary_propagation(core, mask=mask)
    return kept


def _small_holes(mask: NDArray[np.bool_], max_pixels: int) -> NDArray[np.bool_]:
    """Enclosed background parts of at most `max_pixels`; what reaches the edge of the picture is no hole."""
    holes = ndimage.binary_fill_holes(mask) & ~mask
    large = morphology.remove_small_objects(holes, max_size=max_pixels)
    small: NDArray[np.bool_] = holes & ~large
    return small


def _pixels(area_um2: float, mpp: float) -> int:
    return int(area_um2 / mpp**2)


def _otsu(values: NDArray[np.float32]) -> float:
    otsu: Callable[..., float] = filters.threshold_otsu
    return float(otsu(values))
