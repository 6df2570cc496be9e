"""Hypothesis strategies for what travels between the rooms of the house."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from napari_msamil.slide import MppSource, SlideInfo

SCANNER_MPP = (0.2277, 0.25, 0.2525, 0.46, 0.499, 0.5, 0.5015, 1.0)


@st.composite
def slide_infos(
    draw: st.DrawFn,
    *,
    min_side: int = 1,
    max_side: int = 120_000,
    max_levels: int = 6,
    with_mpp: bool = True,
) -> SlideInfo:
    """Slides as scanners make them: odd sizes, levels cut to whole pixels, so that downsamples are no whole numbers."""
    width = draw(st.integers(min_side, max_side))
    height = draw(st.integers(min_side, max_side))
    sizes = [(width, height)]
    factor = draw(st.sampled_from([2, 2, 4]))
    for _ in range(draw(st.integers(0, max_levels - 1))):
        total = factor ** len(sizes)
        size = (width // total, height // total)
        if min(size) < 1:
            break
        sizes.append(size)
    if with_mpp:
        mpp = draw(st.sampled_from(SCANNER_MPP) | st.floats(0.1, 4.0))
        stretch = draw(st.sampled_from([1.0, 1.0, 1.02, 0.97]))
        mpp_yx = (mpp * stretch, mpp / stretch)
    else:
        mpp, mpp_yx = None, None
    return SlideInfo(
        path=Path("made up.svs"),
        vendor="aperio",
        backend="openslide",
        level_sizes_wh=tuple(sizes),
        level_downsamples=tuple((width / w + height / h) / 2 for w, h in sizes),
        level_tile_sizes_wh=((256, 256),) * len(sizes),
        mpp=mpp,
        mpp_yx=mpp_yx,
        mpp_source=None if mpp is None else MppSource.TAG,
        quickhash="0" * 64,
    )
