"""npe2 writers: File ▸ Save for masks and results, in the same files that the command line writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import MsamilError
from napari_msamil.gui.layers import KEY, mask_from_labels
from napari_msamil.gui.strings import ERROR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_msamil.gui.layers import LayerTuple
    from napari_msamil.result import SlideResult


def write_mask(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write a labels layer as GeoJSON in level-0 pixels, or as a PNG of the mask grid.

    Raises:
        MsamilError: GeoJSON needs a mask that was made on a slide.
    """
    from napari_msamil.annotations import write_mask_geojson, write_mask_png

    target = Path(path)
    ours = meta.get("metadata", {}).get(KEY, {})
    is_png = target.suffix.lower() == ".png"
    if "info" not in ours and not is_png:
        raise MsamilError(ERROR.mask_without_slide)
    size_wh0 = ours["info"].size_wh0 if "info" in ours else data.shape[::-1]
    mask = mask_from_labels(data, size_wh0)
    if is_png:
        write_mask_png(mask, target)
    else:
        write_mask_geojson(mask, target)
    return [str(target)]


def write_result_layers(path: str, layers: Sequence[LayerTuple]) -> list[str]:
    """Write the result that an overlay or the top patches belong to; the suffix chooses the file.

    Raises:
        MsamilError: None of the layers comes from the workbench, or the suffix is unknown.
    """
    for _, meta, _ in layers:
        result = meta.get("metadata", {}).get(KEY, {}).get("result")
        if result is not None:
            write_one(result, Path(path))
            return [path]
    raise MsamilError(ERROR.no_result_in_layers)


def write_one(result: SlideResult, target: Path) -> None:
    """Write one file of a result: `.geojson`, `.csv`, `.json` or `.zarr`.

    Raises:
        MsamilError: The suffix is unknown.
    """
    from napari_msamil import export

    writers = {
        ".geojson": export.write_annotations,
        ".csv": export.write_patches_csv,
        ".json": export.write_result_json,
        ".zarr": export.write_heatmap_zarr,
    }
    write = writers.get(target.suffix.lower())
    if write is None:
        raise MsamilError(ERROR.unknown_suffix.format(path=target))
    write(result, target)
