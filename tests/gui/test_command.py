"""Copy as command: running the line gives the answer that is on screen."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from napari_msamil.cli import main
from napari_msamil.config import Strategy
from napari_msamil.errors import MsamilError
from napari_msamil.gui.command import command_for
from napari_msamil.gui.session import Choice, Session
from napari_msamil.gui.settings import Settings
from napari_msamil.gui.work import classify_question
from napari_msamil.progress import finish
from tests.gui.conftest import whole_slide_mask

pytestmark = pytest.mark.gui


def ask(session):
    from napari_msamil.gui.work import Question

    question = Question(
        slide=session.slide,
        model_ref=session.model_ref,
        choice=session.choice,
        mask=session.mask,
        settings=Settings(precision="fp32"),
    )
    return finish(classify_question(question)).result


@pytest.mark.parametrize("state", ["edited mask", "tissue", "threshold"])
def test_the_copied_line_gives_the_same_result(session, tmp_path, state):
    if state == "tissue":
        session.set_choice(Choice(strategy=Strategy.TISSUE))
    else:
        whole_slide_mask(session)
        drawn = np.zeros((70, 90), np.uint8)
        drawn[13:52, 21:77] = 1
        session.paint_mask(drawn)
    if state == "threshold":
        session.set_choice(Choice(threshold=0.35))
    shown = ask(session)
    line = command_for(session, Settings(precision="fp32"), tmp_path)
    words = shlex.split(line)
    assert words[:2] == ["msamil", "classify"]
    assert main(words[1:]) == 0
    stored = json.loads((tmp_path / "painted slide" / "result.json").read_text())
    assert stored["prediction"] == shown.prediction
    assert stored["patches"] == shown.counts
    np.testing.assert_allclose(stored["logits"], shown.logits, atol=1e-5)
    assert stored["mask"]["lesion_fraction"] == pytest.approx(
        shown.mask.fraction, abs=1e-6
    )


def test_the_same_mask_is_saved_once_and_a_changed_one_anew(session, tmp_path):
    whole_slide_mask(session)
    first = command_for(session, Settings(), tmp_path)
    assert command_for(session, Settings(), tmp_path) == first
    session.paint_mask(np.eye(70, 90, dtype=np.uint8))
    assert command_for(session, Settings(), tmp_path) != first
    assert len(list((tmp_path / "masks").iterdir())) == 2


def test_what_the_user_set_is_in_the_line(session, tmp_path):
    session.set_mpp(0.25)
    line = command_for(session, Settings(device="cpu", precision="bf16"), tmp_path)
    for words in ("--mpp 0.25", "--device cpu", "--precision bf16"):
        assert words in line


def test_without_a_slide_there_is_no_line():
    with pytest.raises(MsamilError):
        command_for(Session(), Settings())
