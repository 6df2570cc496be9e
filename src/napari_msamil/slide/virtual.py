"""Coarser levels for slides that store none: streamed once, kept in the cache folder, watchable meanwhile.

Plain napari materialises such a file: 63 s and 9 GB for 32 768 × 24 576. Here the first view comes from samples, and
one pass over the slide writes all halved levels together. Only viewers use them; patches are always cut from the
slide itself.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from napari_msamil.cache import cache_dir
from napari_msamil.errors import MsamilError, StoreError
from napari_msamil.progress import Progress, ProgressGen, Stage, finish
from napari_msamil.slide.faults import read_for_display
from napari_msamil.slide.preview import coarse_picture
from napari_msamil.slide.tile_archive import TILE_PX, TileArchive, prune, touch
from napari_msamil.slide.virtual_stream import LevelStream, halved_sizes
from napari_msamil.slide.write import halve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_msamil.slide.base import Slide, SlideInfo

COARSE_ENOUGH_PX = 4096
"""A coarsest stored level of at most this side is shown as it is."""
PREVIEW_PX = 1024
EXACT_FACTOR = 4
"""Up to this factor a missing tile is made from the slide at once; beyond it the preview is shown."""
MAX_CACHE_BYTES = 20 << 30
VERSION = "msamil-pyramid/1"

_log = logging.getLogger(__name__)


def needs_virtual_levels(info: SlideInfo) -> bool:
    """Whether the coarsest stored level is too large to be shown whole."""
    return max(info.level_sizes_wh[-1]) > COARSE_ENOUGH_PX


class VirtualPyramid:
    """Levels below the coarsest stored one, each half of the one before.

    A level pixel covers exactly 2 × 2 of the finer level, from the top-left corner on; sizes are rounded to nearest.

    Args:
        slide: The slide; it stays open as long as this is used.
        folder: Where finished pyramids are kept; the cache folder by default.
    """

    def __init__(self, slide: Slide, folder: Path | None = None) -> None:
        self._slide = slide
        info = slide.info
        self._base = info.level_count - 1
        self._base_wh = info.level_sizes_wh[self._base]
        self.level_sizes_wh = tuple(
            (
                max(1, round(self._base_wh[0] / 2**k)),
                max(1, round(self._base_wh[1] / 2**k)),
            )
            for k in range(1, len(halved_sizes(self._base_wh)) + 1)
        )
        self._path = (folder or cache_dir() / "pyramids") / f"{info.quickhash}.zip"
        self._stamp = f"{VERSION} {info.quickhash} {self._base} {self._base_wh}"
        self._archive: TileArchive | None = None
        self._preview: NDArray[np.uint8] | None = None
        self._preview_lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._watchers: list[Callable[[Progress], None]] = []
        self.is_complete = False
        self._take_finished()

    def read(
        self, level: int, x: int, y: int, w: int, h: int
    ) -> tuple[NDArray[np.uint8], bool]:
        """A region of virtual level `level` (1 is half of the coarsest stored level), in its pixels.

        Returns:
            uint8 (h, w, 3), and whether these are its final pixels (False: the coarse preview).
        """
        out = np.empty((h, w, 3), np.uint8)
        for row in range(y // TILE_PX, (y + h - 1) // TILE_PX + 1):
            for column in range(x // TILE_PX, (x + w - 1) // TILE_PX + 1):
                archive = self._archive
                tile = None if archive is None else archive.get(level, column, row)
                if tile is None:
                    return self._stand_in(level, x, y, w, h)
                left, top = column * TILE_PX, row * TILE_PX
                x0, y0 = max(x, left), max(y, top)
                x1, y1 = (
                    min(x + w, left + tile.shape[1]),
                    min(y + h, top + tile.shape[0]),
                )
                out[y0 - y : y1 - y, x0 - x : x1 - x] = tile[
                    y0 - top : y1 - top, x0 - left : x1 - left
                ]
        return out, True

    def build(self) -> ProgressGen[Path]:
        """Stream the slide once and write all levels; cancelling leaves nothing behind.

        Yields a step per band of the slide. Tiles that are done are shown at once by `read`.

        Raises:
            StoreError: The cache folder cannot be written.
            SlideError: The slide was closed meanwhile.
        """
        if self.is_complete:
            return self._path
        self._preview_pixels()
        archive = TileArchive(self._path, self._stamp, writing=True)
        stream = LevelStream(self._slide, lambda *tile: self._keep(archive, *tile))
        self._archive = archive
        try:
            for done in stream.bands():
                yield Progress(
                    Stage.OPEN, done, stream.band_count, "Making the overview"
                )
            archive.finish()
            self.is_complete = True
        finally:
            if not self.is_complete:
                self._archive = None
                archive.close()
        prune(self._path.parent, MAX_CACHE_BYTES)
        yield Progress(
            Stage.OPEN, stream.band_count, stream.band_count, "Overview complete"
        )
        return self._path

    def watch(self, on_step: Callable[[Progress], None]) -> None:
        """Call `on_step` with every step of the background thread, in that thread."""
        self._watchers.append(on_step)

    def start(self, delay_s: float = 0.0) -> None:
        """Build in a background thread, after a while; `close` ends it. Does nothing where it is complete or runs."""
        if self.is_complete or self._thread is not None:
            return
        self._thread = threading.Thread(
            target=self._run,
            args=(delay_s,),
            name="virtual-pyramid",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        """End the background thread and release the file. The slide stays open."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=30)
        if self._archive is not None:
            self._archive.close()
            self._archive = None

    def _run(self, delay_s: float) -> None:
        if self._stopped.wait(delay_s):
            return
        work = self.build()

        def step(progress: Progress) -> None:
            for watcher in self._watchers:
                watcher(progress)
            if self._stopped.is_set():
                work.close()

        try:
            finish(work, step)
        except MsamilError as error:
            # The slide stays usable without its overview; a slide that was closed ends here too.
            _log.info(
                "The overview of %s was not completed: %s",
                self._slide.info.path.name,
                error,
            )
        except RuntimeError as error:
            # Python's thread pools say so when the program ends while they still get work.
            if "shutdown" not in str(error):
                raise

    def _take_finished(self) -> None:
        if not self._path.exists():
            return
        try:
            self._archive = TileArchive(self._path, self._stamp)
        except StoreError as error:
            _log.warning("%s It is made again.", error)
            return
        self.is_complete = True
        touch(self._path)

    def _keep(
        self,
        archive: TileArchive,
        level: int,
        column: int,
        row: int,
        pixels: NDArray[np.uint8],
    ) -> None:
        archive.put(level, column, row, pixels)
        if level == 1:
            self._refine_preview(column, row, pixels)

    def _stand_in(
        self, level: int, x: int, y: int, w: int, h: int
    ) -> tuple[NDArray[np.uint8], bool]:
        """Pixels where no tile is stored yet: exact where that is cheap, else cut from the preview."""
        factor = 2**level
        if factor <= EXACT_FACTOR:
            x0, y0 = x * factor, y * factor
            size = (
                min(w * factor, self._base_wh[0] - x0),
                min(h * factor, self._base_wh[1] - y0),
            )
            pixels = read_for_display(self._slide, self._base, (x0, y0), size)
            for _ in range(level):
                pixels = halve(pixels)
            return pixels[:h, :w], True
        preview = self._preview_pixels()
        scale = np.array(
            [preview.shape[1] / self._base_wh[0], preview.shape[0] / self._base_wh[1]]
        )
        left, top = np.array([x, y]) * factor * scale
        right, bottom = np.array([x + w, y + h]) * factor * scale
        with self._preview_lock:
            image = Image.fromarray(preview)
        box = (
            min(left, image.width - 0.01), min(top, image.height - 0.01),
            min(right, image.width), min(bottom, image.height),
        )  # fmt: skip
        return np.asarray(
            image.resize((w, h), Image.Resampling.BILINEAR, box=box)
        ).copy(), False

    def _preview_pixels(self) -> NDArray[np.uint8]:
        with self._preview_lock:
            if self._preview is None:
                scale = min(1.0, PREVIEW_PX / max(self._base_wh))
                size = (
                    max(1, round(self._base_wh[0] * scale)),
                    max(1, round(self._base_wh[1] * scale)),
                )
                self._preview = coarse_picture(self._slide, size)
            return self._preview

    def _refine_preview(self, column: int, row: int, pixels: NDArray[np.uint8]) -> None:
        """Replace the samples under a tile of level 1 by its mean pixels."""
        preview = self._preview_pixels()
        scale_x, scale_y = (
            preview.shape[1] / self._base_wh[0],
            preview.shape[0] / self._base_wh[1],
        )
        left, top = (
            round(column * 2 * TILE_PX * scale_x),
            round(row * 2 * TILE_PX * scale_y),
        )
        right = min(
            round((column * TILE_PX + pixels.shape[1]) * 2 * scale_x), preview.shape[1]
        )
        bottom = min(
            round((row * TILE_PX + pixels.shape[0]) * 2 * scale_y), preview.shape[0]
        )
        if right > left and bottom > top:
            small = Image.fromarray(pixels).resize(
                (right - left, bottom - top), Image.Resampling.BOX
            )
            with self._preview_lock:
                preview[top:bottom, left:right] = np.asarray(small)
