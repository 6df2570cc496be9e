"""Does attention mean anything here? Deletes attended patches and compares with deleting random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import QProgressBar, QVBoxLayout, QWidget

from napari_msamil.gui.buttons import button
from napari_msamil.gui.explain import Faithfulness, trust_steps
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.strings import RUN, TITLE, TRUST
from napari_msamil.gui.worker import Runner

if TYPE_CHECKING:
    from napari_msamil.gui.session import Session
    from napari_msamil.progress import Progress

CLEAR_GAP = 0.05
"""Area between the curves from which on attention is called informative."""


class TrustPanel(Panel):
    """One click, two curves, one sentence."""

    title = TITLE.trust
    starts_open = False

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._runner = Runner()
        self._run = button(TRUST.run, TRUST.tip, self.measure)
        self._cancel = button(RUN.cancel, RUN.cancel_tip, self.cancel)
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setMaximumHeight(8)
        self._verdict = note(TRUST.tip)
        self._place = QWidget()
        QVBoxLayout(self._place).setContentsMargins(0, 0, 0, 0)
        self.found: Faithfulness | None = None
        self.column.addLayout(row(self._run, self._cancel))
        self.column.addWidget(self._bar)
        self.column.addWidget(self._verdict)
        self.column.addWidget(self._place)
        session.result_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """A new answer has not been measured."""
        self.cancel()
        self.found = None
        self._clear_plot()
        self._verdict.setText(TRUST.tip)
        self.sum_up("", State.EMPTY)

    def measure(self) -> None:
        """Delete step by step; this asks the aggregator some hundred times."""
        result, loaded = self.session.result, self.session.loaded
        if result is None or loaded is None:
            return
        self.sum_up("…", State.RUNNING)
        self._runner.start(
            trust_steps(loaded, result),
            on_progress=self._on_progress,
            on_done=self._show,
            on_failed=self._on_failed,
        )
        self._follow()

    def cancel(self) -> None:
        """Stop measuring."""
        self._runner.cancel()
        self._follow()

    def _follow(self) -> None:
        running = self._runner.running
        result = self.session.result
        ready = result is not None and not result.partial and len(result.features) > 0
        self._run.setEnabled(ready and not running)
        self._cancel.setVisible(running)
        self._bar.setVisible(running)

    def _on_progress(self, step: Progress) -> None:
        self._bar.setRange(0, step.total)
        self._bar.setValue(step.done)

    def _on_failed(self, message: str) -> None:
        self._verdict.setText(message)
        self.sum_up("", State.ERROR)
        self._follow()

    def _show(self, found: Faithfulness) -> None:
        self.found = found
        self._follow()
        word = verdict(found.gap)
        self._verdict.setText(TRUST.verdict.format(gap=found.gap, word=word))
        self.sum_up(f"{found.gap:+.2f}", State.DONE)
        self._clear_plot()
        layout = self._place.layout()
        if layout is not None:
            layout.addWidget(curves_widget(found, self.palette()))

    def _clear_plot(self) -> None:
        layout = self._place.layout()
        while layout is not None and (item := layout.takeAt(0)) is not None:
            widget = item.widget()
            if widget is not None:
                widget.deleteLater()


def verdict(gap: float) -> str:
    """The area between the curves in words."""
    if gap >= CLEAR_GAP:
        return TRUST.strong
    return TRUST.wrong if gap <= -CLEAR_GAP else TRUST.weak


def curves_widget(found: Faithfulness, palette: Any) -> QWidget:
    """The two curves as a matplotlib canvas in the colours of the window."""
    from matplotlib.backends.backend_qtagg import FigureCanvasQTAgg
    from matplotlib.figure import Figure

    ink = palette.color(palette.ColorRole.WindowText).name()
    figure = Figure(figsize=(3.6, 2.4), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    percent = 100 * found.deleted
    axes.fill_between(
        percent,
        found.random.min(axis=0),
        found.random.max(axis=0),
        color="#8a8f98",
        alpha=0.3,
        linewidth=0,
    )
    label = TRUST.random.format(repeats=len(found.random))
    axes.plot(percent, found.random.mean(axis=0), color="#8a8f98", label=label)
    axes.plot(percent, found.attended, color="#ff4d6d", label=TRUST.attended)
    axes.set_xlabel(TRUST.x, color=ink, fontsize=8)
    axes.set_ylabel(TRUST.y.format(name=found.class_name), color=ink, fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.tick_params(colors=ink, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.legend(fontsize=7, frameon=False, labelcolor=ink)
    canvas: QWidget = FigureCanvasQTAgg(figure)  # type: ignore[no-untyped-call]
    canvas.setStyleSheet("background: transparent;")
    canvas.setMinimumHeight(240)
    return canvas
