"""Which scale's maps lie over the slide: one choice for the whole workbench, offered wherever it matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtWidgets import QComboBox

from napari_msamil.gui.strings import RESULT

if TYPE_CHECKING:
    from napari_msamil.gui.session import Session


class ScaleChooser(QComboBox):
    """The model's scales; every chooser of a session shows and changes the same choice.

    Args:
        session: Whose maps are shown.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self.setToolTip(RESULT.scale_tip)
        self.setAccessibleName(RESULT.scale_tip)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToContents)
        self.activated.connect(session.set_scale)
        session.model_changed.connect(self.refresh)
        session.scale_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Offer the scales of the session's model."""
        spec = self._session.spec
        names = [] if spec is None else [scale.name for scale in spec.scales]
        if names != [self.itemText(i) for i in range(self.count())]:
            self.clear()
            self.addItems(names)
        self.setCurrentIndex(self._session.scale)
        self.setEnabled(len(names) > 1)
