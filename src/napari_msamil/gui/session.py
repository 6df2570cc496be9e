"""What one viewer knows: the open slide, the model, the mask, the patches, the answer. Knows no Qt.

Panels change a session through its methods and listen to its signals; they never talk to each other. A session
owns the slide handle of its viewer's slide layer and closes it when that layer goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from psygnal import Signal

from napari_msamil.errors import MsamilError
from napari_msamil.gui.layers import KEY, mask_from_labels

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from napari.components import ViewerModel
    from napari.layers import Image
    from numpy.typing import NDArray

    from napari_msamil.checkpoint import CheckpointHeader, LoadedModel
    from napari_msamil.config import PatchSpec, Strategy
    from napari_msamil.masks import SlideMask
    from napari_msamil.patches import PatchCounts, PatchGrid
    from napari_msamil.result import SlideResult
    from napari_msamil.slide.base import Slide


@dataclass(frozen=True)
class Choice:
    """What the user chose about patches; None is "as the model says".

    Attributes:
        strategy: Which patches are used.
        threshold: Least lesion share.
    """

    strategy: Strategy | None = None
    threshold: float | None = None

    def applied(self, spec: PatchSpec) -> PatchSpec:
        """The model's patch spec with these choices."""
        changes: dict[str, object] = {}
        if self.strategy is not None:
            changes["strategy"] = self.strategy
        if self.threshold is not None:
            changes["lesion_threshold"] = self.threshold
        return spec.model_copy(update=changes)


class Session:
    """The state of one viewer. All methods belong to the window's own thread."""

    slide_changed = Signal()
    model_changed = Signal()
    mask_changed = Signal()
    counts_changed = Signal()  # how many patches: at once
    grid_changed = Signal()  # which ones: when the brush rests
    result_changed = Signal()
    query_changed = Signal()
    scale_changed = Signal()
    looked_at = Signal(float, float)  # a place on the slide, level-0 x and y
    failed = Signal(str)

    def __init__(self) -> None:
        self.slide: Slide | None = None
        self.layer: Image | None = None
        self.model_ref = "demo"
        self.header: CheckpointHeader | None = None
        self.loaded: LoadedModel | None = None
        self.mask: SlideMask | None = None
        self.original_mask: SlideMask | None = None
        self.tissue: SlideMask | None = None
        self.choice = Choice()
        self.counts: PatchCounts | None = None
        self.grid_problem = ""
        self._grid: PatchGrid | None = None
        self.result: SlideResult | None = None
        self.previous: SlideResult | None = None
        self.query: int | None = None
        self.scale = 0
        self.mask_file: Path | None = None
        self._version = 0
        self._result_version = -1

    @property
    def stale(self) -> bool:
        """Whether mask, patches or model changed since the answer."""
        return self.result is not None and self._result_version != self._version

    @property
    def version(self) -> int:
        """Raised by every change that an answer depends on."""
        return self._version

    def set_slide(self, slide: Slide | None, layer: Image | None = None) -> None:
        """Work on another slide; what belonged to the one before is forgotten."""
        if slide is self.slide:
            return
        self.slide, self.layer = slide, layer
        self.mask = self.original_mask = self.tissue = None
        self._forget_patches()
        self._version += 1
        self.set_result(None)
        self.slide_changed.emit()
        self.mask_changed.emit()
        self.counts_changed.emit()
        self.grid_changed.emit()

    def set_model(self, ref: str) -> None:
        """Choose a model; only its header is read.

        Raises:
            CheckpointError: The reference leads to no checkpoint that this version reads.
        """
        from napari_msamil.checkpoint import read_header, resolve_model

        header = read_header(resolve_model(ref))
        self.model_ref, self.header, self.loaded = ref, header, None
        self._version += 1
        if self.scale >= len(header.config.patches.scales):
            self.set_scale(0)
        self.model_changed.emit()
        self.update_grid()

    def set_mask(self, mask: SlideMask, file: Path | None = None) -> None:
        """A mask was found or imported: also what Reset goes back to."""
        self.original_mask, self.mask_file = mask, file
        self._take_mask(mask)

    def paint_mask(self, labels: NDArray[np.integer]) -> None:
        """The labels layer was painted: the patches are counted now, and `settle` follows when there is time."""
        if self.mask is not None:
            self.mask = mask_from_labels(labels, self.mask.size_wh0)
            self._version += 1
            self.mask_changed.emit()
            self._count()

    def settle(self) -> None:
        """After painting: which patches, not only how many."""
        self.grid_changed.emit()

    def reset_mask(self) -> None:
        """Undo all painting at once."""
        if self.original_mask is not None:
            self._take_mask(self.original_mask)

    def clear_mask(self) -> None:
        """There is no mask any more; the next classification finds one."""
        self.original_mask, self.mask_file = None, None
        self._take_mask(None)

    def _take_mask(self, mask: SlideMask | None) -> None:
        self.mask = mask
        self._version += 1
        self.mask_changed.emit()
        self.update_grid()

    def set_choice(self, choice: Choice) -> None:
        """Other patches are wanted."""
        if choice != self.choice:
            self.choice = choice
            self._version += 1
            self.update_grid()

    @property
    def spec(self) -> PatchSpec | None:
        """The model's patch spec with the user's choices."""
        if self.header is None:
            return None
        return self.choice.applied(self.header.config.patches)

    @property
    def grid(self) -> PatchGrid | None:
        """The selected patches, placed when somebody asks; None where there are none (`grid_problem`)."""
        if self._grid is None and self.counts is not None:
            from napari_msamil.patches import make_grid

            assert self.slide is not None
            assert self.mask is not None
            assert self.spec is not None
            self._grid = make_grid(
                self.slide.info, self.spec, self.mask, tissue=self.tissue
            )
        return self._grid

    def update_grid(self) -> None:
        """Choose patches anew; why there are none is kept as a sentence."""
        self._count()
        self.grid_changed.emit()

    def _count(self) -> None:
        from napari_msamil.patches import count_patches

        spec = self.spec
        self._forget_patches()
        if self.slide is not None and self.mask is not None and spec is not None:
            try:
                self.counts = count_patches(
                    self.slide.info, spec, self.mask, tissue=self.tissue
                )
            except MsamilError as error:
                self.grid_problem = str(error)
        self.counts_changed.emit()

    def _forget_patches(self) -> None:
        self.counts, self._grid, self.grid_problem = None, None, ""

    def set_result(
        self, result: SlideResult | None, version: int | None = None
    ) -> None:
        """Show an answer.

        Args:
            result: The answer, partial or not.
            version: `version` when its question was asked; None is now.
        """
        if result is None:
            self.previous = None
        elif self.result is not None and not self.result.partial:
            self.previous = self.result
        self.result = result
        self._result_version = self._version if version is None else version
        if result is None or result.query_attention is None:
            self.query = None
        self.result_changed.emit()

    def set_query(self, query: int | None) -> None:
        """Look at one learned query, or at all of them."""
        if query != self.query:
            self.query = query
            self.query_changed.emit()

    def set_scale(self, scale: int) -> None:
        """Look at the maps of one scale: its position among the model's scales, 0 is the finest."""
        if scale != self.scale:
            self.scale = scale
            self.scale_changed.emit()

    def set_mpp(self, mpp: float) -> None:
        """Open the slide again with a pixel size given by the user.

        Raises:
            MsamilError: The slide cannot be opened with it.
        """
        from napari_msamil.slide import open_slide

        if self.slide is None:
            return
        old, layer = self.slide, self.layer
        fresh = open_slide(old.info.path, mpp=mpp)
        if layer is not None:
            layer.metadata[KEY] = {"role": "slide", "slide": fresh}
        self.set_slide(fresh, layer)

    def forget_layer(self, layer: object) -> None:
        """The slide's layer was removed."""
        if layer is self.layer:
            self.set_slide(None)


_SESSIONS: WeakKeyDictionary[ViewerModel, Session] = WeakKeyDictionary()


def session_of(viewer: ViewerModel) -> Session:
    """The one session of a viewer; its docks share it."""
    if viewer not in _SESSIONS:
        _SESSIONS[viewer] = Session()
    return _SESSIONS[viewer]
