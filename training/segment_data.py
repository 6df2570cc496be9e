"""What the segmenter learns from: squeezed thumbnails and what is known of every pixel.

Annotations may be partial. In UBC-OCEAN only some regions are painted, in BCNB only part of the tumour is outlined;
there, an unmarked pixel of tissue says nothing and is left out of loss and figures. Empty glass is always negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from napari_msamil.annotations import read_mask
from napari_msamil.config import TissueSpec
from napari_msamil.errors import CohortError, MaskError, SlideError
from napari_msamil.lesion import lesion_thumbnail
from napari_msamil.slide import open_slide
from napari_msamil.tissue import tissue_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from .cohort import CohortRow

Unlabelled = Literal["auto", "negative", "ignore"]
PICTURES = {".png", ".jpg", ".jpeg", ".bmp"}
"""Plain pictures, as DigestPath2019 is distributed; everything else is opened as a slide."""


@dataclass(frozen=True, eq=False)
class SegmentItem:
    """One slide as the segmenter sees it.

    Attributes:
        name: Its name.
        group: The patient; the unit of resampling.
        pixels: uint8 (S, S, 3).
        positive: bool (C, S, S), what is marked, per channel of the segmenter.
        known: bool (C, S, S), where that means anything.
    """

    name: str
    group: str
    pixels: NDArray[np.uint8]
    positive: NDArray[np.bool_]
    known: NDArray[np.bool_]

    @property
    def has_lesion(self) -> bool:
        """Whether any lesion is marked."""
        return bool((self.positive[0] & self.known[0]).any())


def read_items(
    rows: Sequence[CohortRow],
    size_px: int,
    channels: Sequence[str],
    *,
    unlabelled: Unlabelled = "auto",
    negative_labels: Sequence[str] = (),
) -> Iterator[SegmentItem]:
    """Read the slides of a cohort that say where the lesion is.

    Args:
        rows: Slides; those without a mask are passed over, unless their label says there is no lesion.
        size_px: Side of the thumbnail.
        channels: Channels of the segmenter; the first is the lesion.
        unlabelled: What an unmarked pixel of tissue means: `negative`, `ignore`, or `auto`: it is ignored where the
            mask file tells several classes apart, and negative where it only knows the lesion.
        negative_labels: Labels of slides without any lesion.

    Raises:
        CohortError: A slide or its mask cannot be read; the message names the line.
    """
    for row in rows:
        if row.mask is None and row.label not in negative_labels:
            continue
        try:
            pixels, size_wh0, mpp = read_picture(row.path, size_px, row.mpp)
            positive, known = _target(
                row.mask, size_wh0, size_px, channels, unlabelled, pixels, mpp
            )
        except (SlideError, MaskError) as error:
            raise CohortError(f"Line {row.line}, {row.slide_id}: {error}") from error
        yield SegmentItem(row.slide_id, row.patient_id, pixels, positive, known)


def read_picture(
    path: Path, size_px: int, mpp: float | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int], float]:
    """A slide or a plain picture squeezed into a square.

    Returns:
        uint8 (size_px, size_px, 3), width and height of level 0, and µm per pixel of the square (8 where not known).

    Raises:
        SlideError: It cannot be read.
    """
    if path.suffix.lower() in PICTURES:
        pixels, size_wh0 = _plain_picture(path, size_px)
    else:
        with open_slide(path, mpp=mpp) as slide:
            pixels, size_wh0 = lesion_thumbnail(slide, size_px), slide.info.size_wh0
            mpp = slide.info.mpp
    return pixels, size_wh0, mpp * size_wh0[0] / size_px if mpp else TissueSpec().mpp


def _plain_picture(
    path: Path, size_px: int
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    import pyvips

    try:
        whole = pyvips.Image.new_from_file(str(path))
        small = pyvips.Image.thumbnail(
            str(path), size_px, height=size_px, size="force", no_rotate=True
        )
        pixels = small.colourspace("srgb").numpy()
    except pyvips.Error as error:
        raise SlideError(
            f"{path.name} is no picture that can be read. Check that it was copied completely."
        ) from error
    return np.ascontiguousarray(pixels[..., :3]), (whole.width, whole.height)


def _target(
    mask: Path | None,
    size_wh0: tuple[int, int],
    size_px: int,
    channels: Sequence[str],
    unlabelled: Unlabelled,
    pixels: NDArray[np.uint8],
    mpp: float,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What is marked and where that is known, both bool (C, S, S)."""
    shape = (size_px, size_px)
    positive = np.zeros((len(channels), *shape), dtype=np.bool_)
    if mask is None:
        return positive, np.ones_like(positive)
    told = [True] * len(channels)
    for index, name in enumerate(channels):
        found = _plane(mask, size_wh0, shape, None if index == 0 else name)
        told[index] = found is not None
        if found is not None:
            positive[index] = found
    partial = unlabelled == "ignore" or (unlabelled == "auto" and any(told[1:]))
    known = np.ones(shape, dtype=np.bool_)
    if partial:
        known = positive.any(axis=0) | ~tissue_of(pixels, TissueSpec(), mpp)
    return positive, known[None] & np.asarray(told)[:, None, None]


def _plane(
    mask: Path, size_wh0: tuple[int, int], shape: tuple[int, int], label: str | None
) -> NDArray[np.bool_] | None:
    """One channel of a mask file; None where the file does not know that class."""
    try:
        return read_mask(mask, size_wh0, shape, label).mask
    except MaskError:
        if label is None:
            raise
        return None
