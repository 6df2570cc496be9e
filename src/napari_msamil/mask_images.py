"""Masks that are pictures: black and white (DigestPath2019), label codes, or colours (UBC-OCEAN).

UBC-OCEAN paints tumour red, stroma green and necrosis blue, at the size of the slide; black is unlabelled. Pictures
are streamed, so a mask as large as its slide needs no more memory than a small one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.errors import MaskError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COLOURS = {"red": 0, "green": 1, "blue": 2}
COLOUR_NAMES = {
    "lesion": "red",
    "tumor": "red",
    "tumour": "red",
    "stroma": "green",
    "necrosis": "blue",
}
OWN_SIDE = 2048
_SQUARE = (1024, 1024)
_WHITE = 128
"""Masks saved with smooth edges or as JPEG are cut here."""
_NEARLY_WHITE, _MOST_CODES = 250, 64
"""A picture with a level this bright, or with this many levels, is black and white with soft edges."""


def read_mask_image(
    path: Path,
    size_wh0: tuple[int, int],
    shape_hw: tuple[int, int] | None,
    label: str | None,
) -> NDArray[np.bool_]:
    """Read a picture as a mask over a slide.

    Args:
        path: PNG, TIFF (also pyramidal), JPEG, BMP …
        size_wh0: Width and height of the slide's level 0.
        shape_hw: Rows and columns of the result; a result pixel is marked if more than half of it is. None keeps
            the picture's own up to `OWN_SIDE`, else 1024 × 1024.
        label: Which code (`"1"`) or colour (`red`, `stroma` …) is meant; None is white, the only code there is, or red.

    Raises:
        MaskError: The file is no picture, has another shape than the slide, or needs a label.
    """
    image = _open(path)
    own = (image.height, image.width)
    _check_shape(path, own[::-1], size_wh0, shape_hw or _SQUARE)
    if shape_hw is None:
        shape_hw = own if max(own) <= OWN_SIDE else _SQUARE
    if image.bands < 3:
        _refuse_colour(path, label)
        marked = _grey_choice(path, image, label)
        return _shrunk(path, [marked(_open(path)[0])], shape_hw)[..., 0] > 0.5
    shares = _shrunk(path, _colour_maps(image), shape_hw)
    colours, white = shares[..., :3], shares[..., 3]
    if not colours.any():
        _refuse_colour(path, label)
        return white > 0.5
    name = COLOUR_NAMES.get(label or "lesion", label or "")
    if name not in COLOURS:
        raise MaskError(
            f"{path.name} is a colour mask; there is no colour for {label!r}. "
            f"Use one of: {', '.join([*COLOURS, *COLOUR_NAMES])}."
        )
    return colours[..., COLOURS[name]] > 0.5


def _refuse_colour(path: Path, label: str | None) -> None:
    """A black-and-white mask has one meaning, the lesion; stroma cannot be had from it."""
    if label is not None and not label.isdigit() and COLOUR_NAMES.get(label) != "red":
        raise MaskError(f"{path.name} is a black-and-white mask; it has no {label!r}.")


def _open(path: Path) -> Any:
    import pyvips

    try:
        return pyvips.Image.new_from_file(
            str(path), access="sequential", fail_on="truncated"
        )
    except pyvips.Error as error:
        raise MaskError(
            f"{path.name} is no mask that can be read: neither annotations (GeoJSON, ASAP or ImageScope XML, "
            "BCNB JSON) nor a picture. Check that the file was copied completely."
        ) from error


def _check_shape(
    path: Path,
    found_wh: tuple[int, int],
    size_wh0: tuple[int, int],
    shape_hw: tuple[int, int],
) -> None:
    """A mask has the slide's proportions (to a pixel of its own), or the squeezed shape of the model's thumbnail."""
    if found_wh in (shape_hw[::-1], _SQUARE):
        return
    width, height = found_wh
    shrink = (size_wh0[0] / width + size_wh0[1] / height) / 2
    fits = (
        max(abs(size_wh0[0] / shrink - width), abs(size_wh0[1] / shrink - height))
        <= 1.5
    )
    if not fits or shrink < 0.99:
        raise MaskError(
            f"{path.name} has {width} × {height} pixels, which is no reduction of the slide's "
            f"{size_wh0[0]} × {size_wh0[1]}. It seems to belong to another slide, or to a part of this one."
        )


def _grey_choice(path: Path, image: Any, label: str | None) -> Any:
    """The function that marks the wanted pixels of a one-band picture."""
    counts = _decoded(path, lambda: image[0].cast("ushort").hist_find().numpy())
    codes = np.flatnonzero(counts.ravel())
    codes = codes[codes > 0]
    if label is not None and label.isdigit():
        if int(label) not in codes:
            raise MaskError(
                f"{path.name} has no pixel of code {label}. Its codes are {_listed(codes)}."
            )
        return lambda band: band == int(label)
    if len(codes) <= 1:
        return lambda band: band > 0
    if codes.max() >= _NEARLY_WHITE or len(codes) > _MOST_CODES:
        return lambda band: band >= _WHITE
    raise MaskError(
        f"{path.name} has several codes ({_listed(codes)}). Say which one is the lesion, for example label “1”."
    )


def _listed(codes: NDArray[np.intp]) -> str:
    shown = ", ".join(str(code) for code in codes[:12])
    return (shown or "none") + (" …" if len(codes) > 12 else "")


def _colour_maps(image: Any) -> list[Any]:
    """Red, green, blue (one channel high, the others low), and white."""
    high = [image[i] >= _WHITE for i in range(3)]
    low = [image[i] < _WHITE for i in range(3)]
    pure = [high[i] & low[(i + 1) % 3] & low[(i + 2) % 3] for i in range(3)]
    return [*pure, high[0] & high[1] & high[2]]


def _shrunk(
    path: Path, maps: list[Any], shape_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Marked share of each result pixel per map, float32 (H, W, maps)."""
    from PIL import Image

    joined = maps[0].bandjoin(maps[1:]) if len(maps) > 1 else maps[0]
    height, width = shape_hw
    across, down = (
        max(1, joined.width // (2 * width)),
        max(1, joined.height // (2 * height)),
    )
    if across > 1 or down > 1:
        joined = joined.shrink(across, down, ceil=True)
    small = _decoded(path, joined.numpy).reshape(joined.height, joined.width, -1)
    # Shrinking rounds the last, partial cell up; the box says how much of it is picture.
    box = (0, 0, maps[0].width / across, maps[0].height / down)
    layers = [
        np.asarray(
            Image.fromarray(small[..., i].astype(np.float32) / 255).resize(
                (width, height), Image.Resampling.BOX, box=box
            )
        )
        for i in range(small.shape[2])
    ]
    return np.stack(layers, axis=-1)


def _decoded(path: Path, compute: Any) -> Any:
    import pyvips

    try:
        return compute()
    except pyvips.Error as error:
        raise MaskError(
            f"{path.name} is damaged: its pixels cannot be decoded. Copy or export it again."
        ) from error
