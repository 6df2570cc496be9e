"""What a viewer knows, and when an answer is stale."""

from __future__ import annotations

import numpy as np
import pytest

from napari_msamil.config import Strategy
from napari_msamil.errors import CheckpointError
from napari_msamil.gui.session import Choice, Session, session_of
from napari_msamil.masks import MaskSource
from tests.gui.conftest import whole_slide_mask

pytestmark = pytest.mark.gui


def test_one_session_per_viewer(viewer):
    assert session_of(viewer) is session_of(viewer)


def test_patches_follow_mask_and_choice(session):
    assert session.grid is None
    whole_slide_mask(session)
    full = session.grid.counts
    assert full["20x"] > 4 * full["5x"] > 0
    half = np.zeros((70, 90), np.uint8)
    half[:, :45] = 1
    session.paint_mask(half)
    assert session.mask.source is MaskSource.USER
    assert 0 < session.grid.counts["20x"] < full["20x"]
    session.set_choice(Choice(threshold=0.99))
    assert session.spec.lesion_threshold == 0.99


def test_painting_counts_at_once_and_places_patches_when_the_brush_rests(session):
    whole_slide_mask(session)
    heard = []
    session.counts_changed.connect(lambda: heard.append("counts"))
    session.grid_changed.connect(lambda: heard.append("grid"))
    half = np.zeros((70, 90), np.uint8)
    half[:, :45] = 1
    session.paint_mask(half)
    assert heard == ["counts"]
    assert session.counts.by_scale == session.grid.counts
    session.settle()
    assert heard == ["counts", "grid"]


@pytest.mark.parametrize("change", ["mask", "model", "choice"])
def test_an_answer_goes_stale_with_what_it_rests_on(session, answered, change):
    whole_slide_mask(session)
    session.set_result(answered)
    assert not session.stale
    if change == "mask":
        session.paint_mask(np.zeros((70, 90), np.uint8))
    elif change == "model":
        session.set_model(session.model_ref)
    else:
        session.set_choice(Choice(strategy=Strategy.TISSUE))
    assert session.stale


def test_an_answer_to_an_older_question_is_stale_when_it_arrives(session, answered):
    whole_slide_mask(session)
    asked = session.version
    session.paint_mask(np.zeros((70, 90), np.uint8))
    session.set_result(answered, asked)
    assert session.stale


def test_the_answer_before_is_the_last_complete_one(session, answered):
    from dataclasses import replace

    session.set_result(answered)
    session.set_result(replace(answered, partial=True))
    assert session.previous is answered
    session.set_result(replace(answered, partial=True))
    assert session.previous is answered


def test_a_bad_model_changes_nothing(session, tmp_path):
    header, ref = session.header, session.model_ref
    bad = tmp_path / "model.pt"
    bad.write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError):
        session.set_model(str(bad))
    assert session.header is header
    assert session.model_ref == ref


def test_another_slide_forgets_what_belonged_to_the_first(session, answered):
    whole_slide_mask(session)
    session.set_result(answered)
    session.set_slide(None)
    assert (session.mask, session.grid, session.result) == (None, None, None)


def test_reset_goes_back_to_the_mask_that_was_found(session):
    whole_slide_mask(session)
    found = session.mask
    session.paint_mask(np.zeros((70, 90), np.uint8))
    session.reset_mask()
    assert session.mask is found


def test_nothing_selected_is_a_sentence(session):
    whole_slide_mask(session)
    session.paint_mask(np.zeros((70, 90), np.uint8))
    assert session.grid is None
    assert "lesion" in session.grid_problem or "mask" in session.grid_problem


def test_a_session_knows_no_qt():
    import subprocess
    import sys

    code = "import napari_msamil.gui.session, sys; print([m for m in sys.modules if 'PyQt' in m or 'torch' == m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert Session().model_ref == "demo"
