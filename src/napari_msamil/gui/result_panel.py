"""Section 6: the answer, its change, its maps, and the values under the pointer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtWidgets import QLabel

from napari_msamil.gui.bars import ProbabilityBars
from napari_msamil.gui.buttons import check
from napari_msamil.gui.canvas import (
    drop_layers,
    find_layers,
    order_layers,
    put_layer,
)
from napari_msamil.gui.layers import attention_layer, brightest, level0_xy
from napari_msamil.gui.scale_chooser import ScaleChooser
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.strings import LAYER, RESULT, TITLE
from napari_msamil.overlay import attention_maps, query_maps
from napari_msamil.result import trust_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari.components import ViewerModel

    from napari_msamil.gui.session import Session
    from napari_msamil.result import SlideResult


class ResultPanel(Panel):
    """Probabilities with their change, attention maps on the slide."""

    title = TITLE.result

    def __init__(
        self, session: Session, viewer: ViewerModel, is_running: Callable[[], bool]
    ) -> None:
        super().__init__(session)
        self._viewer = viewer
        self._is_running = is_running
        self._headline = QLabel()
        font = self._headline.font()
        font.setBold(True)
        font.setPointSizeF(font.pointSizeF() * 1.25)
        self._headline.setFont(font)
        self._bars = ProbabilityBars()
        self._facts = note()
        self._hover = note(RESULT.hover_empty)
        self._shown = check(
            RESULT.show_attention, RESULT.show_tip, lambda _: self._draw(), on=True
        )
        self._at = QLabel(RESULT.at_scale)
        self._scale = ScaleChooser(session)
        self._note = note(RESULT.note)
        self._note.setStyleSheet("color: #8a8f98;")
        for widget in (self._headline, self._bars, self._facts):
            self.column.addWidget(widget)
        self.column.addLayout(row(self._shown, self._at, self._scale))
        self.column.addWidget(self._hover)
        self.column.addWidget(self._note)
        session.result_changed.connect(self.refresh)
        session.query_changed.connect(self._on_query)
        session.scale_changed.connect(self._draw)
        session.counts_changed.connect(self._sum_up)
        session.model_changed.connect(self._sum_up)
        viewer.mouse_move_callbacks.append(self._on_move)
        self.refresh()

    def refresh(self) -> None:
        """Show the session's answer."""
        result = self.session.result
        there = result is not None
        answer = (self._headline, self._bars, self._facts, self._hover, self._note)
        for widget in (*answer, self._shown, self._at, self._scale):
            widget.setVisible(there)
        if result is not None:
            best = float(result.probabilities.max())
            self._headline.setText(
                RESULT.prediction.format(name=result.prediction, probability=best)
            )
            self._bars.show_values(
                result.classes,
                result.probabilities,
                self._delta(result),
                result.spread,
            )
            self._facts.setText("\n".join(self._lines(result)))
        self._draw()
        self._sum_up()

    def _delta(self, result: SlideResult) -> np.ndarray | None:
        """Change against the answer before; None where there was none."""
        before = self.session.previous
        if before is None or before.classes != result.classes:
            return None
        return np.asarray(result.probabilities - before.probabilities)

    def _lines(self, result: SlideResult) -> list[str]:
        lines = []
        if result.change is not None:
            change = result.change
            text = RESULT.unchanged if change.before == change.after else RESULT.changed
            lines.append(
                text.format(
                    before=change.before,
                    after=change.after,
                    gained=change.gained,
                    lost=change.lost,
                )
            )
        return [*lines, *trust_lines(result), *result.warnings]

    def _sum_up(self) -> None:
        result = self.session.result
        if result is None:
            self.sum_up(RESULT.empty, State.EMPTY)
            return
        best = f"{result.prediction} {result.probabilities.max():.0%}"
        if result.partial:
            running = self._is_running()
            word = RESULT.running if running else RESULT.partial
            state = State.RUNNING if running else State.STALE
            self.sum_up(f"{best} · {word}", state)
        elif self.session.stale:
            self.sum_up(f"{best} · {RESULT.stale}", State.STALE)
        else:
            self.sum_up(best, State.DONE)

    def _draw(self, *_: object) -> None:
        """Attention, or the chosen query's share of it, as the image grid of the chosen scale."""
        result = self.session.result
        if result is None or not self._shown.isChecked():
            drop_layers(self._viewer, "attention")
            return
        query, scale = self.session.query, self.session.scale
        if query is None or result.query_attention is None:
            name, maps, values = (
                LAYER.attention,
                attention_maps(result),
                result.attention,
            )
        else:
            name = LAYER.query.replace("{query}", str(query))
            maps, values = query_maps(result, query), result.query_attention[query]
        before = len(self._viewer.layers)
        overlay = maps[min(scale, len(maps) - 1)]  # an old answer may have fewer
        layer = attention_layer(overlay, result, name, brightest(values))
        put_layer(self._viewer, layer)
        if len(self._viewer.layers) != before:
            order_layers(self._viewer)

    def _on_query(self) -> None:
        """Whoever chooses a query wants to see its map."""
        self._draw()
        for layer in find_layers(self._viewer, "attention"):
            layer.visible = True

    def _on_move(self, viewer: Any, event: Any) -> None:
        """Values of the patches under the pointer, finest first."""
        result = self.session.result
        if result is not None and self.section.is_open:
            x, y = level0_xy(result.info, event.position)
            lines = [_value_line(result, i) for i in patches_at(result.grid, x, y)]
            self._hover.setText("\n".join(lines) or RESULT.hover_empty)

    def close_down(self) -> None:
        """Let go of the viewer."""
        if self._on_move in self._viewer.mouse_move_callbacks:
            self._viewer.mouse_move_callbacks.remove(self._on_move)


def patches_at(grid: Any, x: float, y: float) -> list[int]:
    """Indices of the patches that contain a level-0 position, finest scale first."""
    sides = np.asarray(grid.size_px0)[grid.scale]
    left, top = grid.coords_xy0[:, 0], grid.coords_xy0[:, 1]
    inside = (left <= x) & (x < left + sides) & (top <= y) & (y < top + sides)
    found = np.flatnonzero(inside)
    return [int(i) for i in found[np.argsort(grid.scale[found], kind="stable")]]


def _value_line(result: SlideResult, index: int) -> str:
    rank = int((result.attention > result.attention[index]).sum()) + 1
    return RESULT.hover.format(
        scale=result.grid.spec.scales[int(result.grid.scale[index])].name,
        attention=float(result.attention[index]),
        rank=rank,
        count=len(result.attention),
        lesion=float(result.grid.lesion_fraction[index]),
    )
