"""The patches the model really sees: top patches, a sample, and the linked scales of one place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QSpinBox, QVBoxLayout

from napari_msamil.gui.buttons import button, chooser
from napari_msamil.gui.canvas import drop_layers, fly_to, order_layers, put_layer
from napari_msamil.gui.layers import here_layer, level0_xy, top_patch_points
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.strings import GALLERY, LAYER, TITLE
from napari_msamil.gui.thumbnails import (
    Tile,
    TileStrip,
    linked_grid,
    pixmap,
    read_tiles_steps,
    save_contact_sheet,
)
from napari_msamil.gui.worker import Runner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from napari.components import ViewerModel
    from numpy.typing import NDArray

    from napari_msamil.gui.session import Session
    from napari_msamil.patches import PatchGrid
    from napari_msamil.progress import Progress

PLACE_PX = 108
CLICK_PX = 4
"""A mouse that moved less than this between press and release clicked."""


class GalleryPanel(Panel):
    """Pictures of patches, and flights to them."""

    title = TITLE.gallery
    starts_open = False

    def __init__(self, session: Session, viewer: ViewerModel) -> None:
        super().__init__(session)
        self._viewer = viewer
        self._runner, self._place_runner = Runner(), Runner()
        self._grid: PatchGrid | None = None
        self._seen: dict[int, NDArray[np.uint8]] = {}
        self._rank = chooser(
            [
                (GALLERY.top, "top"),
                (GALLERY.low, "low"),
                (GALLERY.query, "query"),
                (GALLERY.sample, "sample"),
            ],
            GALLERY.rank_by,
            self.refresh,
        )
        self._scale = chooser([(GALLERY.any_scale, None)], GALLERY.scale, self.refresh)
        self._count = QSpinBox()
        self._count.setRange(1, 200)
        self._count.setValue(12)
        self._count.setToolTip(GALLERY.count)
        self._count.setAccessibleName(GALLERY.count)
        self._count.valueChanged.connect(lambda _: self.refresh())
        self.strip = TileStrip()
        self.strip.chosen.connect(self._on_chosen)
        self._sheet = button(GALLERY.sheet, GALLERY.sheet_tip, self._on_sheet)
        self._table = button(GALLERY.table, GALLERY.table_tip, self._on_table)
        self._rank.setMinimumContentsLength(15)
        self._scale.setMinimumContentsLength(3)
        self.column.addLayout(row(self._rank, self._scale, self._count, stretch=0))
        self.column.addWidget(self.strip)
        self.column.addLayout(row(self._sheet, self._table))
        self.column.addWidget(note(GALLERY.triplet))
        self._places = self._place_row()
        self._listen()

    def _listen(self) -> None:
        """Follow the session, the viewer's mouse and the section itself."""
        session = self.session
        session.result_changed.connect(self.refresh)
        session.grid_changed.connect(self.refresh)
        session.query_changed.connect(self._on_query)
        session.looked_at.connect(self.look_at)
        session.slide_changed.connect(self._on_slide)
        self._viewer.mouse_drag_callbacks.append(self._on_press)
        self.section.opened.connect(self.refresh)
        self.section.closed.connect(self._take_away)

    def _place_row(self) -> list[tuple[QLabel, QLabel]]:
        line = QHBoxLayout()
        made = []
        for _ in range(3):
            picture, caption = QLabel(), QLabel()
            caption.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            picture.setFixedSize(PLACE_PX, PLACE_PX)
            cell = QVBoxLayout()
            cell.addWidget(picture)
            cell.addWidget(caption)
            line.addLayout(cell)
            made.append((picture, caption))
        line.addStretch(1)
        self.column.addLayout(line)
        return made

    def show_sample(self) -> None:
        """Open, on a sample of all selected patches."""
        self._rank.setCurrentIndex(self._rank.findData("sample"))
        self.section.set_open(True)
        self.refresh()

    def refresh(self) -> None:
        """Choose which patches to show, then read them beside the window."""
        result, slide = self.session.result, self.session.slide
        grid = None if result is None else result.grid
        if grid is None and self.section.is_open:
            grid = self.session.grid
        if grid is not self._grid:
            self._grid, self._seen = grid, {}
        self._sheet.setEnabled(self._grid is not None)
        self._table.setEnabled(result is not None)
        if self._grid is None or slide is None:
            self._runner.cancel()
            self.strip.show_tiles([])
            drop_layers(self._viewer, "top")
            self.sum_up("", State.EMPTY)
            return
        self._offer_scales(self._grid)
        if not self.section.is_open:
            self._runner.cancel()
            self.sum_up("", State.EMPTY)
            return
        chosen = self.chosen_patches()
        self._show_points(chosen)
        tiles = [self._tile(self._grid, int(i)) for i in chosen]
        self.strip.show_tiles(tiles)
        self.sum_up(GALLERY.reading, State.RUNNING)
        self._runner.start(
            read_tiles_steps(slide, self._grid, tiles),
            on_progress=self._on_read,
            on_done=self._on_all_read,
            on_failed=self.session.failed.emit,
        )

    def _offer_scales(self, grid: PatchGrid) -> None:
        names = [spec.name for spec in grid.spec.scales]
        if [self._scale.itemText(i) for i in range(1, self._scale.count())] != names:
            while self._scale.count() > 1:
                self._scale.removeItem(1)
            for code, name in enumerate(names):
                self._scale.addItem(name, code)

    def chosen_patches(self) -> NDArray[np.intp]:
        """Indices of the patches to show, in the order they are shown."""
        grid, result = self._grid, self.session.result
        if grid is None:
            return np.zeros(0, np.intp)
        count, code = self._count.value(), self._scale.currentData()
        among = np.flatnonzero(
            np.ones(len(grid), bool) if code is None else grid.scale == code
        )
        rank = self._rank.currentData()
        if result is None or rank == "sample":
            step = max(1, len(among) // max(count, 1))
            return among[::step][:count]
        values = result.attention
        query = self.session.query
        if rank == "query" and query is not None and result.query_attention is not None:
            values = result.query_attention[query]
        sign = 1 if rank == "low" else -1
        order = np.argsort(sign * values[among], kind="stable")
        return among[order][:count]

    def _tile(self, grid: PatchGrid, index: int) -> Tile:
        result = self.session.result
        scale = grid.spec.scales[int(grid.scale[index])].name
        if result is not None and result.grid is grid:
            caption = GALLERY.caption.format(
                scale=scale, attention=float(result.attention[index])
            )
        else:
            caption = GALLERY.caption_plain.format(
                scale=scale, lesion=float(grid.lesion_fraction[index])
            )
        return Tile(index, caption, grid.boxes_xywh0[index], self._seen.get(index))

    def _on_read(self, step: Progress) -> None:
        if step.partial is not None:
            self.strip.show_tiles(step.partial)

    def _on_all_read(self, tiles: list[Tile]) -> None:
        self._seen |= {t.index: t.pixels for t in tiles if t.pixels is not None}
        self.strip.show_tiles(tiles)
        self.sum_up(f"{len(tiles)}", State.DONE)

    def _show_points(self, chosen: NDArray[np.intp]) -> None:
        result = self.session.result
        if result is None or not len(chosen):
            drop_layers(self._viewer, "top")
            return
        put_layer(self._viewer, top_patch_points(result, chosen, LAYER.top))
        order_layers(self._viewer)

    def _on_chosen(self, tile: Tile) -> None:
        slide = self.session.slide
        if slide is not None:
            fly_to(self._viewer, slide.info, tile.box_xywh0)
            x, y, width, height = tile.box_xywh0
            self.session.looked_at.emit(float(x + width / 2), float(y + height / 2))

    def _on_query(self) -> None:
        if self.session.query is not None:
            self._rank.setCurrentIndex(self._rank.findData("query"))
        self.refresh()

    def _take_away(self) -> None:
        """Nobody looks at patches any more: their layers leave the list."""
        for role in ("top", "here"):
            drop_layers(self._viewer, role)

    def _on_slide(self) -> None:
        self._place_runner.cancel()
        drop_layers(self._viewer, "here")
        for picture, caption in self._places:
            picture.clear()
            caption.clear()

    def _on_press(self, viewer: Any, event: Any) -> Iterator[None]:
        """A click without a drag looks at a place, unless a tool is in the hand."""
        active = viewer.layers.selection.active
        tool = getattr(active, "mode", "pan_zoom") if active is not None else "pan_zoom"
        start = np.asarray(event.pos)
        yield
        while event.type == "mouse_move":
            yield
        moved = float(np.abs(np.asarray(event.pos) - start).max())
        slide = self.session.slide
        if str(tool) == "pan_zoom" and moved < CLICK_PX and slide is not None:
            self.session.looked_at.emit(*level0_xy(slide.info, event.position))

    def look_at(self, x: float, y: float) -> None:
        """Show the patch of every scale at a level-0 position."""
        slide, mask = self.session.slide, self.session.mask
        grid = self._grid or self.session.grid
        if slide is None or mask is None or grid is None or not self.section.is_open:
            return
        if not (0 <= x < grid.size_wh0[0] and 0 <= y < grid.size_wh0[1]):
            return
        linked, used = linked_grid(grid, mask, x, y)
        tiles = []
        for code, index in enumerate(used):
            scale = grid.spec.scales[code].name
            caption = GALLERY.not_selected.format(scale=scale)
            if index is not None:
                caption = self._tile(grid, index).caption
            tiles.append(Tile(code, caption, linked.boxes_xywh0[code]))
        put_layer(self._viewer, here_layer(slide.info, linked))
        self._place_runner.start(
            read_tiles_steps(slide, linked, tiles),
            on_done=self._show_place,
            on_failed=self.session.failed.emit,
        )

    def _show_place(self, tiles: list[Tile]) -> None:
        for (picture, caption), tile in zip(self._places, tiles, strict=False):
            caption.setText(tile.caption)
            if tile.pixels is not None:
                picture.setPixmap(pixmap(tile.pixels, PLACE_PX))

    def _on_sheet(self) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self, GALLERY.sheet, "patches.png", "PNG (*.png)"
        )
        if name:
            self.save_sheet(Path(name))

    def save_sheet(self, path: Path) -> None:
        """Write the patches shown as one picture."""
        result, slide = self.session.result, self.session.slide
        if slide is not None:
            title = slide.info.name
            if result is not None:
                title += f" · {result.prediction} {result.probabilities.max():.1%}"
            save_contact_sheet(self.strip.tiles, path, title)

    def _on_table(self) -> None:
        window = getattr(self._viewer, "window", None)
        if window is not None:
            window.add_plugin_dock_widget("napari", "Features table widget")
            tops = [x for x in self._viewer.layers if x.name == LAYER.top]
            if tops:
                self._viewer.layers.selection.active = tops[0]

    def close_down(self) -> None:
        """Stop reading and let go of the viewer."""
        super().close_down()
        if self._on_press in self._viewer.mouse_drag_callbacks:
            self._viewer.mouse_drag_callbacks.remove(self._on_press)
