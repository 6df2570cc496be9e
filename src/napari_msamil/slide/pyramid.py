"""The levels of a slide as dask arrays, for programs; the viewer slices `slide.level_array` itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dask.array as da
import numpy as np

from napari_msamil.slide.level_array import (
    CACHE_BYTES,
    start_virtual_levels,
    view_levels,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_msamil.errors import RegionError
    from napari_msamil.slide.base import Slide
    from napari_msamil.slide.virtual import VirtualPyramid

__all__ = ["lazy_pyramid", "start_virtual_levels"]


def lazy_pyramid(
    slide: Slide,
    *,
    on_fault: Callable[[RegionError], None] | None = None,
    cache_bytes: int = CACHE_BYTES,
    virtual: VirtualPyramid | None = None,
) -> list[da.Array]:
    """The levels of `view_levels` as dask arrays (H, W, 3), one block per chunk, with the same arguments.

    They hold the open slide: compute them with threads, in this process. Show them with `cache=False` (they have a
    bounded cache of their own), so that tiles which were a preview are read again.
    """
    levels = view_levels(
        slide, on_fault=on_fault, cache_bytes=cache_bytes, virtual=virtual
    )
    return [
        da.from_array(  # type: ignore[no-untyped-call]
            level,
            chunks=level.chunks,
            name=f"{slide.info.name}-level{number}-{id(level):x}",
            asarray=False,
            fancy=False,
            meta=np.empty((0, 0, 0), np.uint8),
        )
        for number, level in enumerate(levels)
    ]
