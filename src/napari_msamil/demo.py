"""The demo slide: synthetic tissue, painted anew wherever it is wanted, always the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

DEMO_SEED = 20261
"""Not among the seeds of any cohort recipe, so that no model has seen this slide."""


def demo_slide(folder: Path) -> Path:
    """Paint the demo slide into a folder, or return the one that is there.

    Args:
        folder: Where `demo.svs` goes; made if missing.

    Returns:
        Path of a pyramidal TIFF with 20x objective power and 0.5 µm per pixel.
    """
    from napari_msamil.slide.write import write_pyramid_tiff
    from napari_msamil.synthetic import SlideRecipe, paint_slide

    path = folder / "demo.svs"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    painted = paint_slide(
        SlideRecipe(label="glandular-vesicular", seed=DEMO_SEED, pen=True)
    )
    write_pyramid_tiff(path, painted.pixels, mpp=painted.mpp, objective=20)
    return path
