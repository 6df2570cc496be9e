"""Patches as pictures: read them as the model sees them, show them in a strip, save them as a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from psygnal import Signal
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import QListView, QListWidget, QListWidgetItem

from napari_msamil.errors import RegionError
from napari_msamil.gui.strings import GALLERY
from napari_msamil.progress import Progress, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_msamil.masks import SlideMask
    from napari_msamil.patches import PatchGrid
    from napari_msamil.progress import ProgressGen
    from napari_msamil.slide.base import Slide

ICON_PX = 80


@dataclass(frozen=True, eq=False)
class Tile:
    """One patch to show.

    Attributes:
        index: Position in its grid.
        caption: Shown below it.
        box_xywh0: Where it lies, level-0 pixels.
        pixels: uint8 (H, W, 3) as the encoder gets it, or None: not read yet, or unreadable.
    """

    index: int
    caption: str
    box_xywh0: NDArray[np.int64]
    pixels: NDArray[np.uint8] | None = None


def read_tiles_steps(
    slide: Slide, grid: PatchGrid, tiles: list[Tile]
) -> ProgressGen[list[Tile]]:
    """Read the pixels of tiles exactly as the encoder gets them.

    Args:
        slide: The open slide.
        grid: The patches.
        tiles: What to read; those that have pixels are left as they are.

    Yields:
        Progress with all tiles as `partial`, those read so far with pixels.
    """
    from napari_msamil.patch_reader import read_patch

    found = list(tiles)
    for position, tile in enumerate(tiles):
        if tile.pixels is not None:
            continue
        try:
            pixels = read_patch(slide, grid, tile.index)
        except RegionError:
            found[position] = replace(tile, caption=GALLERY.unread)
        else:
            found[position] = replace(tile, pixels=pixels)
        yield Progress(Stage.READ, position + 1, len(tiles), partial=list(found))
    return found


def linked_grid(
    grid: PatchGrid, mask: SlideMask, x: float, y: float
) -> tuple[PatchGrid, list[int | None]]:
    """The patch of every scale at one place.

    Args:
        grid: The selected patches.
        mask: The mask they were chosen by.
        x: Level-0 position.
        y: Level-0 position.

    Returns:
        A grid with one patch per scale, finest first, and the position of each in `grid`, None where it is not used.
    """
    from napari_msamil.patches import box_fractions

    corners, used = [], list[int | None]()
    for scale, (side, step) in enumerate(
        zip(grid.size_px0, grid.step_px0, strict=True)
    ):
        corner = [
            int(np.clip(v // step, 0, max((size - side) // step, 0)) * step)
            for v, size in zip((x, y), grid.size_wh0, strict=True)
        ]
        corners.append(corner)
        here = (grid.scale == scale) & (grid.coords_xy0 == corner).all(axis=1)
        used.append(int(here.argmax()) if here.any() else None)
    coords = np.asarray(corners, np.int64)
    sides = np.asarray(grid.size_px0, np.int64)
    share = box_fractions(mask, np.column_stack([coords, sides, sides]))
    codes = np.arange(len(corners), dtype=np.int8)
    linked = replace(
        grid, coords_xy0=coords, scale=codes, lesion_fraction=share, warnings=()
    )
    return linked, used


def pixmap(pixels: NDArray[np.uint8], side: int = ICON_PX) -> QPixmap:
    """A picture for Qt, scaled to fit a square."""
    pixels = np.ascontiguousarray(pixels)
    height, width, _ = pixels.shape
    image = QImage(
        pixels.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888
    ).copy()
    return QPixmap.fromImage(image).scaled(
        side,
        side,
        Qt.AspectRatioMode.KeepAspectRatio,
        Qt.TransformationMode.SmoothTransformation,
    )


class TileStrip(QListWidget):
    """Patches as a wrapping strip of pictures; emits the tile that was chosen."""

    chosen = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self.tiles: list[Tile] = []
        self.setViewMode(QListView.ViewMode.IconMode)
        self.setIconSize(QSize(ICON_PX, ICON_PX))
        self.setResizeMode(QListView.ResizeMode.Adjust)
        self.setMovement(QListView.Movement.Static)
        self.setUniformItemSizes(True)
        self.setSpacing(4)
        self.setMinimumHeight(3 * (ICON_PX + 30))
        self.setToolTip(GALLERY.fly_tip)
        self.setAccessibleName(GALLERY.fly_tip)
        self.itemClicked.connect(self._on_item)
        self.itemActivated.connect(self._on_item)

    def show_tiles(self, tiles: list[Tile]) -> None:
        """Show tiles; those without pixels get an empty square until they are read."""
        if len(tiles) != self.count() or [t.index for t in tiles] != [
            t.index for t in self.tiles
        ]:
            self.clear()
            blank = QPixmap(ICON_PX, ICON_PX)
            blank.fill(Qt.GlobalColor.gray)
            for tile in tiles:
                self.addItem(QListWidgetItem(QIcon(blank), tile.caption))
            self.tiles = [replace(t, pixels=None) for t in tiles]
        for position, tile in enumerate(tiles):
            item = self.item(position)
            if item is None:
                continue
            item.setText(tile.caption)
            if tile.pixels is not None and self.tiles[position].pixels is None:
                item.setIcon(QIcon(pixmap(tile.pixels)))
        self.tiles = list(tiles)

    def _on_item(self, item: QListWidgetItem) -> None:
        self.chosen.emit(self.tiles[self.row(item)])


def save_contact_sheet(
    tiles: list[Tile], path: Path, title: str, columns: int = 6, side: int = 192
) -> None:
    """Write tiles with their captions as one PNG."""
    from PIL import Image, ImageDraw, ImageFont

    read = [tile for tile in tiles if tile.pixels is not None]
    rows = max(1, -(-len(read) // columns))
    line, gap = 22, 8
    sheet = Image.new(
        "RGB",
        (columns * (side + gap) + gap, 2 * line + rows * (side + line + gap)),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.text((gap, 8), title, fill="black", font=font)
    for position, tile in enumerate(read):
        left = gap + position % columns * (side + gap)
        top = 2 * line + position // columns * (side + line + gap)
        if tile.pixels is not None:
            sheet.paste(Image.fromarray(tile.pixels).resize((side, side)), (left, top))
        draw.text((left, top + side + 3), tile.caption, fill="black", font=font)
    part = path.with_name(path.name + ".part")
    sheet.save(part, format="PNG")
    part.replace(path)
