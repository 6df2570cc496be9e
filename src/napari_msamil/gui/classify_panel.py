"""Section 5: run, watch, stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QProgressBar

from napari_msamil.errors import MsamilError
from napari_msamil.gui.buttons import button, check
from napari_msamil.gui.model_panel import fit
from napari_msamil.gui.section import Panel, State, note, row
from napari_msamil.gui.settings import read_settings
from napari_msamil.gui.strings import ERROR, RUN, TITLE
from napari_msamil.gui.work import (
    Answer,
    MaskFound,
    Question,
    classify_question,
    find_mask_steps,
)
from napari_msamil.gui.worker import Runner

if TYPE_CHECKING:
    from napari_msamil.gui.session import Session
    from napari_msamil.progress import Progress

AUTO_MS = 350
"""After the last stroke, this long until the answer is asked for again."""

_STAGES = {
    "open": RUN.stage_open,
    "mask": RUN.stage_mask,
    "patches": RUN.stage_patches,
    "read": RUN.stage_read,
    "encode": RUN.stage_encode,
    "aggregate": RUN.stage_aggregate,
    "export": RUN.stage_export,
}


class ClassifyPanel(Panel):
    """Runs mask and classification for a session, one at a time."""

    title = TITLE.classify

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.runner = Runner()
        self._asked: Question | None = None
        self._partial: Answer | None = None
        self._started_s = 0.0
        self._encode_started: tuple[float, int] | None = None
        self._run = button(RUN.classify, RUN.classify_tip, self.classify)
        self._run.setStyleSheet("QPushButton { font-weight: bold; padding: 6px 18px; }")
        self._cancel = button(RUN.cancel, RUN.cancel_tip, self.cancel)
        self._copy = button(RUN.copy, RUN.copy_tip, self._on_copy)
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setMaximumHeight(8)
        self._status = note(RUN.idle)
        self._auto = check(RUN.auto, RUN.auto_tip, lambda _: None, on=True)
        self.column.addLayout(row(self._run, self._cancel, self._copy, stretch=0))
        self.column.addWidget(self._bar)
        self.column.addWidget(self._status)
        self.column.addWidget(self._auto)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(AUTO_MS)
        self._timer.timeout.connect(self._on_auto)
        session.slide_changed.connect(self._on_slide)
        session.model_changed.connect(self.refresh)
        session.mask_changed.connect(self._on_mask)
        session.failed.connect(self._on_failed)
        self.refresh()

    @property
    def running(self) -> bool:
        """Whether a job runs that was not cancelled."""
        return self.runner.running

    def question(self) -> Question | None:
        """What would be asked now, or None where there is no slide."""
        session = self.session
        if session.slide is None:
            return None
        result = session.result
        same = result is not None and result.info == session.slide.info
        return Question(
            slide=session.slide,
            model_ref=session.model_ref,
            choice=session.choice,
            loaded=session.loaded,
            mask=session.mask,
            tissue=session.tissue,
            previous=result if same and result and not result.partial else None,
            settings=read_settings(),
            version=session.version,
        )

    def classify(self) -> None:
        """Ask for the answer."""
        asked = self.question()
        problem = self._problem()
        if asked is None or problem:
            self.session.failed.emit(problem or RUN.no_slide)
            return
        self._start(asked)
        self.runner.start(
            classify_question(asked),
            on_progress=self._on_progress,
            on_done=self._on_answer,
            on_failed=self._on_failed,
        )
        self.refresh()

    def find_mask(self, kind: str = "lesion") -> None:
        """Find the mask only."""
        asked = self.question()
        if asked is None:
            self.session.failed.emit(RUN.no_slide)
            return
        self._start(asked)
        self.runner.start(
            find_mask_steps(asked, kind),
            on_progress=self._on_progress,
            on_done=self._on_mask_done,
            on_failed=self._on_failed,
        )
        self.refresh()

    def cancel(self) -> None:
        """Stop; the answer so far is kept and labelled partial."""
        if not self.runner.running:
            return
        self.runner.cancel()
        kept = self._partial is not None
        self._status.setText(RUN.cancelled if kept else RUN.cancelled_empty)
        self.refresh()
        self.session.result_changed.emit()

    def _start(self, asked: Question) -> None:
        self._timer.stop()
        self._asked, self._partial = asked, None
        self._started_s, self._encode_started = time.monotonic(), None
        self._bar.setRange(0, 0)
        self._status.setText(RUN.loading if asked.loaded is None else RUN.stage_mask)

    def _problem(self) -> str:
        """Why nothing can be run, or empty."""
        slide, header = self.session.slide, self.session.header
        if slide is None:
            return RUN.no_slide
        if slide.info.mpp is None:
            return ERROR.no_mpp.format(name=slide.info.path.name)
        if header is not None:
            fits, sentence = fit(header.config, slide)
            return sentence if fits is False else ""
        return ""

    def _on_progress(self, step: Progress) -> None:
        if isinstance(step.partial, MaskFound):
            self._take_mask(step.partial)
        elif isinstance(step.partial, Answer) and self._asked is not None:
            self._partial = step.partial
            self.session.loaded = step.partial.loaded
            self.session.set_result(step.partial.result, self._asked.version)
        self._bar.setRange(0, max(step.total, 0))
        self._bar.setValue(step.done)
        self._status.setText(self._sentence(step))

    def _sentence(self, step: Progress) -> str:
        stage = step.message or _STAGES.get(str(step.stage), str(step.stage))
        if step.stage != "encode" or not step.total:
            return f"{stage} …"
        now = time.monotonic()
        if self._encode_started is None:
            self._encode_started = (now, step.done)
        start_s, before = self._encode_started
        done = step.done - before
        if done <= 0 or now - start_s < 0.3:
            return RUN.count.format(stage=stage, done=step.done, total=step.total)
        rate = done / (now - start_s)
        left = (step.total - step.done) / rate
        return RUN.rate.format(
            stage=stage, done=step.done, total=step.total, rate=rate, left=_clock(left)
        )

    def _take_mask(self, found: MaskFound) -> None:
        """The mask on screen is the one this run uses, so the run is not stale because of it."""
        self.session.tissue = found.tissue
        self.session.set_mask(found.mask)
        if self._asked is not None:
            self._asked = _at_version(self._asked, self.session.version)

    def _on_mask_done(self, found: MaskFound) -> None:
        self._take_mask(found)
        self._finish("\n".join(found.notes))

    def _on_answer(self, answer: Answer) -> None:
        self.session.loaded = answer.loaded
        version = self._asked.version if self._asked else None
        self.session.set_result(answer.result, version)
        self._finish(answer.result.timings_s.get("total"))
        if self.session.stale and self._auto.isChecked():
            self._timer.start()

    def _finish(self, outcome: str | float | None) -> None:
        if isinstance(outcome, str) and outcome:
            self._status.setText(outcome)
        else:
            seconds = time.monotonic() - self._started_s
            self._status.setText(RUN.done.format(seconds=seconds))
        self.refresh()

    def _on_failed(self, message: str) -> None:
        self._status.setText(message)
        self.refresh()
        self.sum_up(message, State.ERROR)

    def _on_slide(self) -> None:
        if self.runner.running:
            self.runner.cancel()
        self._timer.stop()
        self._status.setText(RUN.idle)
        self.refresh()

    def _on_mask(self) -> None:
        """After an edit of an answered slide, ask again once the hand rests."""
        if self._auto.isChecked() and self.session.stale and not self._finding():
            self._timer.start()

    def _finding(self) -> bool:
        """Whether the running job has just found the mask itself, so that this is no edit."""
        asked = self._asked
        return self.runner.running and asked is not None and asked.mask is None

    def _on_auto(self) -> None:
        if self.session.stale and self.session.mask is not None:
            self.classify()

    def _on_copy(self) -> None:
        from napari_msamil.gui.command import command_for

        try:
            command = command_for(self.session, read_settings())
        except MsamilError as error:
            self.session.failed.emit(str(error))
            return
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(command)
        self._status.setText(RUN.copied.format(command=command))

    def refresh(self) -> None:
        """Buttons follow the state."""
        running = self.runner.running
        has_slide = self.session.slide is not None
        self._run.setEnabled(has_slide and not running)
        self._copy.setEnabled(has_slide)
        self._cancel.setVisible(running)
        self._bar.setVisible(running)
        if running:
            self.sum_up(RUN.busy, State.RUNNING)
        elif not has_slide:
            self.sum_up(RUN.idle, State.EMPTY)
        else:
            done = self.session.result is not None
            self.sum_up(RUN.idle, State.DONE if done else State.EMPTY)

    def close_down(self) -> None:
        """Stop what runs."""
        super().close_down()
        self._timer.stop()


def _at_version(asked: Question, version: int) -> Question:
    from dataclasses import replace

    return replace(asked, version=version)


def _clock(seconds: float) -> str:
    """Time left in the form a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
