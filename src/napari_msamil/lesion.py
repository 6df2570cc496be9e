"""Where the lesion is, as a model sees it on the thumbnail of a slide (paper section 3.1, SFFM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import ndimage

from napari_msamil.config import TissueSpec
from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.tissue import pen_of

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from napari_msamil.config import SegmenterSpec
    from napari_msamil.device import Runtime
    from napari_msamil.models.segmenter import Segmenter
    from napari_msamil.slide.base import Slide, SlideInfo

_STAIN_SHARE = 0.5
"""Ink on more than this share of a picture is no pen: the slide has that colour (trichrome, Alcian blue)."""


def lesion_thumbnail(slide: Slide, size_px: int) -> NDArray[np.uint8]:
    """The picture the segmenter sees: the whole slide squeezed into a square, s1 = W/size and s2 = H/size.

    Args:
        slide: The open slide.
        size_px: Side of the square.

    Returns:
        uint8 (size_px, size_px, 3).
    """
    return slide.thumbnail((size_px, size_px))


def find_lesion(
    slide: Slide,
    segmenter: Segmenter,
    spec: SegmenterSpec,
    runtime: Runtime | None = None,
    tissue: TissueSpec | None = None,
) -> SlideMask:
    """Mark the lesion of a slide; pen marks are painted over before the network looks, and are never lesion.

    Args:
        slide: The open slide; it stays open.
        segmenter: The network; its first channel is the lesion. It is moved to the device and stays there.
        spec: Size of the thumbnail and threshold.
        runtime: Device and precision; None is chosen for this machine.
        tissue: Rules for pen marks (`remove_pen`); None is the default, which removes them.

    Returns:
        The mask at thumbnail size, with the probability of every pixel.

    Raises:
        RegionError: The slide cannot be decoded.
    """
    pixels = lesion_thumbnail(slide, spec.size_px)
    pen = _pen_on(pixels, slide.info, tissue or TissueSpec())
    probability = lesion_probability(painted_over(pixels, pen), segmenter, runtime)
    probability[pen] = 0
    return SlideMask(
        probability > spec.threshold,
        slide.info.size_wh0,
        MaskSource.MODEL,
        probability=probability,
    )


def painted_over(
    pixels: NDArray[np.uint8], pen: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """A picture (H, W, 3) whose pen pixels, bool (H, W), have the colour of the nearest pixel without pen.

    A segmenter that never saw ink takes it and the tissue beside it for anything; it knows the tissue around.
    """
    if not pen.any() or pen.all():
        return pixels
    rows, columns = ndimage.distance_transform_edt(
        pen, return_distances=False, return_indices=True
    )
    filled: NDArray[np.uint8] = pixels[rows, columns]
    return filled


def _pen_on(
    pixels: NDArray[np.uint8], info: SlideInfo, spec: TissueSpec
) -> NDArray[np.bool_]:
    """Pen marks on the square, told at the resolution of background detection: finer, nuclei look like ink."""
    side = len(pixels)
    mpp = spec.mpp
    if info.mpp:
        mpp = info.mpp * float(np.sqrt(info.size_wh0[0] * info.size_wh0[1])) / side
    step = min(max(1, int(spec.mpp / mpp)), side)
    small = np.asarray(Image.fromarray(pixels).reduce(step))
    found = pen_of(small, spec, mpp * step)
    if found.mean() > _STAIN_SHARE:
        found[:] = False
    return found.repeat(step, axis=0).repeat(step, axis=1)[:side, :side]


def lesion_probability(
    pixels: NDArray[np.uint8], segmenter: Segmenter, runtime: Runtime | None = None
) -> NDArray[np.float32]:
    """Lesion probability of every pixel of a picture (H, W, 3), float32 (H, W)."""
    import torch

    from napari_msamil.device import choose_runtime

    runtime = runtime or choose_runtime()
    device = runtime.torch_device
    was_training = segmenter.training
    segmenter.eval().to(device)
    batch = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    dtype = _amp_dtype(runtime)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
    ):
        logits = segmenter(batch.to(device))[0, 0]
    segmenter.train(was_training)
    probability: NDArray[np.float32] = logits.float().sigmoid().cpu().numpy()
    return probability


def _amp_dtype(runtime: Runtime) -> torch.dtype | None:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(runtime.precision.value)
