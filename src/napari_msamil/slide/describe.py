"""What is known of a slide, for people and for programs. Labels and identifiers are never part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_msamil.slide.base import MppSource

if TYPE_CHECKING:
    from napari_msamil.slide.base import SlideInfo

SOURCE_WORDS = {
    MppSource.TAG: "from the file's own tag",
    MppSource.TIFF: "from the TIFF resolution",
    MppSource.OBJECTIVE: "assumed from the objective",
    MppSource.USER: "given by you",
}
BACKEND_WORDS = {
    "openslide": "read through OpenSlide",
    "direct": "tiles decoded directly",
    "tifffile": "read through tifffile",
    "plain": "held in memory",
    "array": "held in memory",
}


def describe_json(info: SlideInfo) -> dict[str, Any]:
    """Plain JSON values; keys are stable, sizes in pixels, `mpp` in µm per level-0 pixel."""
    return {
        "path": str(info.path),
        "name": info.name,
        "vendor": info.vendor,
        "backend": info.backend,
        "width": info.size_wh0[0],
        "height": info.size_wh0[1],
        "mpp": info.mpp,
        "mpp_x": None if info.mpp_yx is None else info.mpp_yx[1],
        "mpp_y": None if info.mpp_yx is None else info.mpp_yx[0],
        "mpp_source": None if info.mpp_source is None else info.mpp_source.value,
        "objective_power": info.objective_power,
        "levels": [
            {
                "width": size[0],
                "height": size[1],
                "downsample": downsample,
                "tile_width": tile[0],
                "tile_height": tile[1],
                "mpp": None if info.mpp is None else info.mpp * downsample,
            }
            for size, downsample, tile in zip(
                info.level_sizes_wh,
                info.level_downsamples,
                info.level_tile_sizes_wh,
                strict=True,
            )
        ],
        "bounds": None if info.bounds_xywh0 is None else list(info.bounds_xywh0),
        "background_rgb": list(info.background_rgb),
        "associated_images": list(info.associated_images),
        "quickhash": info.quickhash,
        "warnings": list(info.warnings),
    }


def describe_text(info: SlideInfo) -> str:
    """A few aligned lines."""
    rows = [
        ("file", str(info.path)),
        (
            "kind",
            f"{info.vendor}, {BACKEND_WORDS.get(info.backend, info.backend)}",
        ),
        ("size", _size(info)),
        ("pixel size", _pixel_size(info)),
        *(("level", line) for line in _levels(info)),
    ]
    if info.bounds_xywh0 is not None:
        x, y, w, h = info.bounds_xywh0
        rows.append(("scanned part", f"{w} × {h} px at x {x}, y {y}"))
    if info.associated_images:
        names = ", ".join(info.associated_images)
        rows.append(("attached", f"{names} (not shown: may name the patient)"))
    rows.append(("identity", info.quickhash[:16] or "none"))
    rows += [("warning", sentence) for sentence in info.warnings]
    return "\n".join(f"{label:<13}{value}" for label, value in rows)


def _size(info: SlideInfo) -> str:
    width, height = info.size_wh0
    if info.mpp_yx is None:
        return f"{width} × {height} px"
    mpp_y, mpp_x = info.mpp_yx
    return f"{width} × {height} px ({width * mpp_x / 1000:.3g} × {height * mpp_y / 1000:.3g} mm)"


def _pixel_size(info: SlideInfo) -> str:
    power = (
        "" if info.objective_power is None else f"; {info.objective_power:g}x objective"
    )
    if info.mpp is None or info.mpp_source is None:
        return f"unknown (give it with --mpp){power}"
    return f"{info.mpp:.4g} µm, {SOURCE_WORDS[info.mpp_source]}{power}"


def _levels(info: SlideInfo) -> list[str]:
    return [
        f"{index}: {size[0]} × {size[1]} px, downsample {downsample:.6g}, tiles {tile[0]} × {tile[1]}"
        for index, (size, downsample, tile) in enumerate(
            zip(
                info.level_sizes_wh,
                info.level_downsamples,
                info.level_tile_sizes_wh,
                strict=True,
            )
        )
    ]
