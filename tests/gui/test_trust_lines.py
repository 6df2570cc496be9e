"""What an ensemble and its limits say, in the result section and read back from a result folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from napari_msamil.export import write_result
from napari_msamil.gui.result_panel import ResultPanel
from napari_msamil.gui.stored import read_result_folder
from napari_msamil.result import Verdict
from napari_msamil.slide import open_slide

pytestmark = pytest.mark.gui

MEMBERS = np.array([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.3, 0.5, 0.2]], np.float32)
FAR = Verdict("unlike the training data", 3.2, 1.4, "Unlike the training data: …")


@pytest.fixture
def together(answered):
    """The answer as an ensemble of three would have given it."""
    return replace(
        answered,
        probabilities=MEMBERS.mean(0),
        member_probabilities=MEMBERS,
        class_set=("calm",),
        coverage=0.9,
        verdicts=(FAR,),
        warnings=(FAR.sentence,),
    )


def test_the_result_section_shows_mean_spread_agreement_and_verdict(
    qtbot, viewer, session, together
):
    panel = ResultPanel(session, viewer, lambda: False)
    qtbot.addWidget(panel.section)
    session.set_result(together)
    # standard deviations by hand: 0.2, 0.2, 0
    shown = [value for _, value, _ in panel._bars.texts()]
    assert shown == ["50.0% ± 20.0", "30.0% ± 20.0", "20.0% ± 0.0"]
    assert panel._facts.text().splitlines()[-3:] == [
        "Mean of 3 trainings, ± their standard deviation; 2 of 3 say calm.",
        "No other class than calm is left with 90 % coverage.",
        FAR.sentence,
    ]


def test_a_result_folder_keeps_members_class_set_and_verdicts(
    together, painted_svs, tmp_path
):
    with open_slide(painted_svs) as slide:
        folder = write_result(together, tmp_path / "result", slide)
        again = read_result_folder(folder, slide.info, together.grid.spec)
    np.testing.assert_array_equal(again.member_probabilities, MEMBERS)
    assert again.verdicts == together.verdicts
    assert (again.class_set, again.coverage) == (("calm",), 0.9)
