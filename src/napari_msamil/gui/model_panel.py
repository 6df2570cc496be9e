"""Section 2: which model, and does it fit the slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QComboBox, QFileDialog, QSizePolicy

from napari_msamil.errors import MsamilError
from napari_msamil.gui.buttons import button
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.settings import read_settings
from napari_msamil.gui.strings import MODEL, TITLE
from napari_msamil.slide.levels import MAX_UPSAMPLING

if TYPE_CHECKING:
    from napari_msamil.config import ModelConfig
    from napari_msamil.gui.session import Session
    from napari_msamil.slide.base import Slide


def fit(config: ModelConfig, slide: Slide | None) -> tuple[bool | None, str]:
    """Whether a model's finest scale can be read from a slide (None: not known), and the sentence."""
    finest = config.patches.scales[0]
    if slide is None or slide.info.mpp is None:
        return None, MODEL.fits_unknown if slide is not None else ""
    fits = slide.info.mpp <= finest.mpp * MAX_UPSAMPLING
    text = MODEL.fits_yes if fits else MODEL.fits_no
    return fits, text.format(mpp=slide.info.mpp, finest=finest.name, need=finest.mpp)


class ModelPanel(Panel):
    """Choose a checkpoint; what it is is read from its header, without torch."""

    title = TITLE.model

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._combo = QComboBox()
        self._combo.setEditable(True)
        self._combo.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self._combo.setSizePolicy(
            QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed
        )
        self._combo.setMinimumContentsLength(12)
        self._combo.setToolTip(MODEL.tip)
        self._combo.setAccessibleName(MODEL.tip)
        self._combo.addItem("demo")
        for path in read_settings().checkpoints():
            self._combo.addItem(str(path))
        self._combo.activated.connect(lambda _: self._take(self._combo.currentText()))
        line = self._combo.lineEdit()
        if line is not None:
            line.returnPressed.connect(lambda: self._take(self._combo.currentText()))
        self._browse = button(MODEL.browse, MODEL.tip, self._on_browse)
        self._details = button(MODEL.details, MODEL.details_tip, self.show_details)
        self._facts = note()
        self.column.addLayout(row(self._combo, self._browse, self._details, stretch=0))
        self.column.addWidget(self._facts)
        session.model_changed.connect(self.refresh)
        session.slide_changed.connect(self.refresh)
        self.refresh()

    def choose(self, ref: str) -> bool:
        """Take a model by reference; a refusal is told in a sentence and nothing changes."""
        try:
            self.session.set_model(ref)
        except MsamilError as error:
            self.session.failed.emit(str(error))
            self._facts.setText(str(error))
            self.sum_up(ref, State.ERROR)
            return False
        return True

    def _take(self, ref: str) -> None:
        if ref.strip():
            self.choose(ref.strip())

    def _on_browse(self) -> None:
        start = read_settings().models_folder
        name, _ = QFileDialog.getOpenFileName(self, MODEL.browse, start, MODEL.filter)
        if name and self.choose(name) and self._combo.findText(name) < 0:
            self._combo.addItem(name)

    def show_details(self) -> None:
        """Open the model card."""
        from napari_msamil.gui.model_dialog import ModelDialog

        if self.session.header is not None:
            self._dialog = ModelDialog(self.session, self)
            self._dialog.show()

    def refresh(self) -> None:
        """Show the session's model."""
        header = self.session.header
        self._details.setEnabled(header is not None)
        if header is None:
            self.sum_up(MODEL.empty, State.EMPTY)
            return
        config = header.config
        self._combo.setEditText(self.session.model_ref)
        fits, sentence = fit(config, self.session.slide)
        lines = [
            MODEL.line.format(
                count=len(config.classes), classes=", ".join(config.classes)
            ),
            MODEL.scales.format(scales=scale_text(config)),
        ]
        if config.segmenter is None:
            lines.append(MODEL.no_segmenter)
        if fits is False:
            lines.append(sentence)
        self._facts.setText("\n".join(lines))
        name = Path(config.name).name
        self.sum_up(name, State.ERROR if fits is False else State.DONE)


def scale_text(config: ModelConfig) -> str:
    """The scales in physical units."""
    return ", ".join(
        f"{s.name} = {s.mpp:g} µm/px ({s.size_px} px)" for s in config.patches.scales
    )
