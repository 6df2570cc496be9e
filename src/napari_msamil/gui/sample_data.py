"""File ▸ Open Sample ▸ MSA-MIL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_msamil.gui.layers import LayerTuple


def demo_slide_layers() -> list[LayerTuple]:
    """The synthetic demo slide, painted on first use into the cache folder."""
    from napari_msamil.cache import cache_dir
    from napari_msamil.demo import demo_slide
    from napari_msamil.gui.reader import read_slides

    return read_slides(str(demo_slide(cache_dir() / "samples")))
