"""Sections: texts are never cut off, closed ones take only their header."""

from __future__ import annotations

import pytest

from napari_msamil.gui.section import Panel, note
from napari_msamil.gui.session import Session

pytestmark = pytest.mark.gui


class Telling(Panel):
    """A panel with a long text."""

    title = "Telling"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.text = note("word " * 80)
        self.column.addWidget(self.text)


def test_texts_are_never_cut_off_and_closed_sections_take_only_their_header(qtbot):
    from qtpy.QtWidgets import QScrollArea, QVBoxLayout, QWidget

    panels = [Telling(Session()) for _ in range(3)]
    area, inside = QScrollArea(), QWidget()
    column = QVBoxLayout(inside)
    for panel in panels:
        column.addWidget(panel.section)
    column.addStretch(1)
    area.setWidgetResizable(True)
    area.setWidget(inside)
    qtbot.addWidget(area)
    for width in (320, 611):
        area.resize(width, 900)
        area.show()
        panels[0].section.set_open(width == 320)
        qtbot.wait(50)
        for panel in panels[1:]:
            text = panel.text
            assert text.height() == text.heightForWidth(text.width()) > 30
    header = panels[0].section.height()
    assert header < panels[1].section.height() - panels[1].text.height()
    panels[0].section.set_open(True)
    qtbot.wait(50)
    assert panels[0].section.height() == panels[1].section.height()
