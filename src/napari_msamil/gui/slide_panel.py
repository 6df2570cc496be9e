"""Section 1: which slide, and is its pixel size known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QFileDialog, QLabel

from napari_msamil.errors import MsamilError
from napari_msamil.gui.buttons import button
from napari_msamil.gui.canvas import fit_slide
from napari_msamil.gui.layers import KEY, placement
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.slide_care import look_after
from napari_msamil.gui.smooth import is_smooth, offer_smooth, set_smooth
from napari_msamil.gui.strings import SLIDE, TITLE
from napari_msamil.gui.work import sample_steps
from napari_msamil.gui.worker import Runner

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

    from napari_msamil.gui.session import Session
    from napari_msamil.slide.base import SlideInfo

_SOURCES = {
    "tag": SLIDE.source_tag,
    "objective": SLIDE.source_objective,
    "tiff": SLIDE.source_tiff,
    "user": SLIDE.source_user,
}


class SlidePanel(Panel):
    """Open, choose and calibrate the slide."""

    title = TITLE.slide

    def __init__(self, session: Session, viewer: ViewerModel) -> None:
        super().__init__(session)
        self._viewer = viewer
        self._runner = Runner()
        self._combo = QComboBox()
        self._combo.setToolTip(SLIDE.choose_tip)
        self._combo.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self._combo.setMinimumContentsLength(12)
        self._combo.currentIndexChanged.connect(self._on_chosen)
        self._open = button(SLIDE.open, SLIDE.open_tip, self._on_open)
        self._sample = button(SLIDE.sample, SLIDE.sample_tip, self._on_sample)
        self._facts = note(SLIDE.hint)
        self._mpp = QDoubleSpinBox()
        self._mpp.setDecimals(4)
        self._mpp.setRange(0.0, 100.0)
        self._mpp.setSpecialValueText(SLIDE.mpp_none)  # no number that one click takes
        self._mpp.setSingleStep(0.01)
        self._mpp.setSuffix(" µm/px")
        self._mpp.setToolTip(SLIDE.mpp_tip)
        self._mpp.setAccessibleName(SLIDE.mpp_label)
        self._set_mpp = button(SLIDE.mpp_set, SLIDE.mpp_tip, self._on_mpp)
        self._mpp.valueChanged.connect(lambda mpp: self._set_mpp.setEnabled(mpp > 0))
        self._set_mpp.setEnabled(False)
        self._mpp_label = QLabel(SLIDE.mpp_label)
        self._warnings = note()
        self._warnings.setStyleSheet("color: #d08a1e;")
        self._smooth = QCheckBox(SLIDE.smooth)
        self._smooth.setToolTip(SLIDE.smooth_tip)
        self._smooth.setChecked(is_smooth())
        self._smooth.toggled.connect(set_smooth)
        self.column.addLayout(row(self._combo, self._open, self._sample, stretch=0))
        self.column.addWidget(self._facts)
        self.column.addLayout(row(self._mpp_label, self._mpp, self._set_mpp))
        self.column.addWidget(self._warnings)
        self.column.addLayout(row(self._smooth))
        session.slide_changed.connect(self.refresh)
        viewer.layers.events.inserted.connect(self._on_layers)
        viewer.layers.events.removed.connect(self._on_layers)
        self._on_layers()

    def slide_layers(self) -> list[Layer]:
        """Layers that hold an open slide."""
        return [
            layer
            for layer in self._viewer.layers
            if layer.metadata.get(KEY, {}).get("role") == "slide"
        ]

    def _on_layers(self, event: Any = None) -> None:
        """Slides came or went; a new one is taken at once, because whoever opens a slide wants to work on it."""
        layers = self.slide_layers()
        for layer in layers:
            look_after(layer)
        if layers:
            offer_smooth()
        if self.session.layer is not None and self.session.layer not in layers:
            self.session.forget_layer(self.session.layer)
        self._combo.blockSignals(True)
        self._combo.clear()
        for layer in layers:
            self._combo.addItem(layer.name, layer)
        came = event.value if event is not None and event.type == "inserted" else None
        wanted = [layers.index(x) for x in (came, self.session.layer) if x in layers]
        self._combo.setCurrentIndex(wanted[0] if wanted else len(layers) - 1)
        self._combo.blockSignals(False)
        self._on_chosen()

    def _on_chosen(self, index: int = 0) -> None:
        layer = self._combo.currentData()
        if layer is not None and layer is not self.session.layer:
            for (
                other
            ) in self.slide_layers():  # slides of different places would overlap
                other.visible = other is layer
            self.session.set_slide(layer.metadata[KEY]["slide"], layer)
            fit_slide(self._viewer, layer.metadata[KEY]["slide"].info)
        self.refresh()

    def _on_open(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, SLIDE.open, "", SLIDE.filter)
        if name:
            self.open_path(Path(name))

    def open_path(self, path: Path) -> None:
        """Open a slide as a new layer; what goes wrong is told in a sentence."""
        from napari_msamil.gui.reader import read_slides

        try:
            self._add(read_slides(str(path)))
        except MsamilError as error:
            self.session.failed.emit(str(error))

    def _on_sample(self) -> None:
        """Painting the demo slide takes seconds the first time, so it is done beside the window."""
        self.sum_up(SLIDE.painting, State.RUNNING)
        self._runner.start(
            sample_steps(), on_done=self.open_path, on_failed=self.session.failed.emit
        )

    def _add(self, layers: list[tuple[object, dict[str, object], str]]) -> None:
        from napari.layers import Layer

        for data in layers:
            layer = self._viewer.add_layer(Layer.create(*data))
            self._combo.setCurrentIndex(self._combo.findData(layer))
        self._viewer.reset_view()

    def _on_mpp(self) -> None:
        try:
            self.session.set_mpp(self._mpp.value())
        except MsamilError as error:
            self.session.failed.emit(str(error))
            return
        slide, layer = self.session.slide, self.session.layer
        if slide is not None and layer is not None:
            for name, value in placement(slide.info, (1.0, 1.0)).items():
                setattr(layer, name, value)
            self._viewer.reset_view()

    def refresh(self) -> None:
        """Show the session's slide."""
        self._smooth.setChecked(is_smooth())
        slide = self.session.slide
        for widget in (self._mpp, self._set_mpp, self._mpp_label):
            widget.setVisible(slide is not None)
        if slide is None:
            self._facts.setText(SLIDE.hint)
            self._warnings.setVisible(False)
            self.sum_up(SLIDE.empty, State.EMPTY)
            return
        self._show(slide.info)

    def _show(self, info: SlideInfo) -> None:
        width, height = info.size_wh0
        facts = SLIDE.facts.format(
            width=width,
            height=height,
            levels=info.level_count,
            plural="" if info.level_count == 1 else "s",
            vendor=info.vendor,
        )
        warnings = list(info.warnings)
        if info.mpp is None:
            warnings.insert(0, SLIDE.mpp_unknown)
            summary, state = f"{info.name} · ? µm/px", State.STALE
            self._mpp.setValue(0.0)
        else:
            known = SLIDE.mpp_known.format(
                mpp=info.mpp, source=_SOURCES[str(info.mpp_source)]
            )
            facts += f"\n{known}"
            summary, state = f"{info.name} · {info.mpp:.3g} µm/px", State.DONE
            self._mpp.setValue(info.mpp)
        self._facts.setText(facts)
        self._warnings.setText("\n".join(warnings))
        self._warnings.setVisible(bool(warnings))
        self.sum_up(summary, state)
