"""Long work in a thread: thinned, cancellable, deaf to old answers."""

from __future__ import annotations

import subprocess
import sys
import time
from threading import Event

import pytest

from napari_msamil.errors import MaskError
from napari_msamil.gui.worker import Done, Failed, Runner, relay
from napari_msamil.progress import Progress, Stage

pytestmark = pytest.mark.gui


def counting(n, pause=0.0, closed=None):
    try:
        for i in range(n):
            if pause:
                time.sleep(pause)
            yield Progress(Stage.ENCODE, i, n, partial=i)
    finally:
        if closed is not None:
            closed.set()
    return "answer"


def test_messages_are_few_and_the_newest_partial_result_is_kept():
    messages = list(relay(counting(400, 0.001), Event(), interval_s=0.1))
    assert isinstance(messages[-1], Done)
    assert messages[-1].value == "answer"
    steps = messages[:-1]
    assert len(steps) < 40
    assert all(m.partial == m.done for m in steps)


def test_a_change_of_stage_is_always_passed_on():
    def work():
        yield Progress(Stage.MASK)
        yield Progress(Stage.PATCHES)
        yield Progress(Stage.ENCODE)
        return None

    steps = list(relay(work(), Event(), interval_s=60))[:-1]
    stages = [step.stage for step in steps]
    assert stages == [Stage.MASK, Stage.PATCHES, Stage.ENCODE]


def test_expected_errors_become_their_sentence_and_others_say_that_they_are_unexpected():
    def expected():
        yield Progress(Stage.MASK)
        raise MaskError("x.png is no mask. Choose another file.")

    def unexpected():
        yield Progress(Stage.MASK)
        raise RuntimeError("boom")

    last = list(relay(expected(), Event()))[-1]
    assert last == Failed("x.png is no mask. Choose another file.")
    assert "boom" in list(relay(unexpected(), Event()))[-1].message


def test_the_work_is_closed_when_it_is_stopped():
    stop, closed = Event(), Event()
    messages = relay(counting(10_000, closed=closed), stop)
    next(messages)
    stop.set()
    assert list(messages) == []
    assert closed.is_set()


def test_cancel_is_heard_at_once_and_an_old_answer_is_dropped(qtbot):
    runner, heard = Runner(), []
    runner.start(
        counting(3, 0.2), on_done=lambda v: heard.append(v), on_failed=heard.append
    )
    runner.cancel()
    assert not runner.running
    runner.start(
        counting(2), on_done=lambda v: heard.append("new"), on_failed=heard.append
    )
    qtbot.waitUntil(lambda: heard == ["new"], timeout=60_000)
    qtbot.waitUntil(lambda: not runner.threads_alive, timeout=60_000)
    assert heard == ["new"]


def test_torch_gets_its_threads_back():
    import torch

    before = torch.get_num_threads()
    list(relay(counting(3), Event()))
    assert torch.get_num_threads() == before


def test_a_window_drawn_in_software_and_torch_live_in_one_process():
    """OpenGL first, torchvision later: without the guard this process dies on virtual displays."""
    code = (
        "import napari, numpy as np\n"
        "viewer = napari.Viewer(show=True); viewer.add_image(np.zeros((9, 9)))\n"
        "from qtpy.QtWidgets import QApplication; QApplication.processEvents()\n"
        "from napari_msamil.gui.triton_guard import keep_triton_out; keep_triton_out()\n"
        "import torchvision.ops; print('alive'); viewer.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180
    )
    assert "alive" in done.stdout, done.stderr[-2000:]
