"""Each section alone, on a viewer model without a window."""

from __future__ import annotations

import numpy as np
import pytest

from napari_msamil.gui.canvas import find_layers
from napari_msamil.gui.classify_panel import ClassifyPanel
from napari_msamil.gui.mask_panel import MaskPanel
from napari_msamil.gui.model_panel import ModelPanel, fit
from napari_msamil.gui.patches_panel import PatchesPanel
from napari_msamil.gui.result_panel import ResultPanel, patches_at
from napari_msamil.gui.slide_panel import SlidePanel
from napari_msamil.gui.strings import MASK, MODEL, PATCHES, RESULT, SLIDE
from napari_msamil.overlay import attention_maps
from tests.gui.conftest import whole_slide_mask

pytestmark = pytest.mark.gui


@pytest.fixture
def add(qtbot):
    def take(panel):
        qtbot.addWidget(panel.section)
        return panel

    return take


def test_slide_panel_without_a_slide_says_how_to_begin(add, viewer):
    from napari_msamil.gui.session import session_of

    panel = add(SlidePanel(session_of(viewer), viewer))
    assert panel.section.summary == SLIDE.empty
    assert panel._facts.text() == SLIDE.hint


def test_slide_panel_shows_size_and_where_the_pixel_size_is_from(add, viewer, session):
    panel = add(SlidePanel(session, viewer))
    assert "1,800 × 1,400 px" in panel._facts.text()
    assert SLIDE.source_tag in panel._facts.text()
    assert panel.section.summary == "painted slide · 0.5 µm/px"


def test_a_pixel_size_given_by_the_user_moves_the_layer_and_is_named(
    add, viewer, session
):
    panel = add(SlidePanel(session, viewer))
    panel._mpp.setValue(0.25)
    panel._on_mpp()
    assert session.slide.info.mpp == 0.25
    assert SLIDE.source_user in panel._facts.text()
    np.testing.assert_allclose(session.layer.scale, (0.25, 0.25))


def test_a_slide_without_pixel_size_asks_for_it_and_proposes_no_number(
    add, viewer, session, tmp_path
):
    from PIL import Image

    picture = tmp_path / "no size.png"
    Image.new("RGB", (300, 200), "white").save(picture)
    panel = add(SlidePanel(session, viewer))
    panel.open_path(picture)
    assert session.slide.info.mpp is None
    assert SLIDE.mpp_unknown in panel._warnings.text()
    assert panel._mpp.text() == SLIDE.mpp_none
    assert not panel._set_mpp.isEnabled()
    panel._mpp.setValue(0.46)
    panel._set_mpp.click()
    assert (session.slide.info.mpp, session.slide.info.mpp_source) == (0.46, "user")


def test_a_file_that_is_no_slide_is_told_in_a_sentence(add, viewer, session, tmp_path):
    panel, heard = add(SlidePanel(session, viewer)), []
    session.failed.connect(heard.append)
    bad = tmp_path / "notes.svs"
    bad.write_text("not a slide")
    panel.open_path(bad)
    assert len(heard) == 1
    assert "notes.svs" in heard[0]


def test_removing_the_slide_layer_forgets_the_slide(add, viewer, session):
    panel = add(SlidePanel(session, viewer))
    viewer.layers.remove(session.layer)
    assert session.slide is None
    assert panel.section.summary == SLIDE.empty


def test_model_panel_names_classes_and_physical_scales(add, session):
    panel = add(ModelPanel(session))
    assert "3 classes: calm, odd, wild" in panel._facts.text()
    assert "20x = 0.5 µm/px (64 px)" in panel._facts.text()
    assert MODEL.no_segmenter in panel._facts.text()


def test_model_panel_refuses_a_training_state_with_the_remedy(add, session, tmp_path):
    panel, heard = add(ModelPanel(session)), []
    session.failed.connect(heard.append)
    state = tmp_path / "state.pt"
    state.write_bytes(b"PK\x03\x04 state")
    assert not panel.choose(str(state))
    assert "publish" in heard[0]


def test_a_slide_too_coarse_for_the_model_does_not_fit(session, slide):
    from dataclasses import replace

    from napari_msamil.slide.array_slide import ArraySlide

    config = session.header.config
    assert fit(config, slide)[0] is True
    coarse = ArraySlide(
        np.zeros((40, 50, 3), np.uint8), info=replace(slide.info, mpp=1.0)
    )
    fits, sentence = fit(config, coarse)
    assert fits is False
    assert "0.5 µm/px" in sentence
    assert fit(config, None) == (None, "")


def test_mask_panel_paints_locks_resets_and_counts_follow(add, qtbot, viewer, session):
    panel = add(MaskPanel(session, viewer, lambda kind: None))
    patches = add(PatchesPanel(session, viewer, lambda: None))
    whole_slide_mask(session)
    before = patches.section.summary
    panel.edit()
    assert panel.layer.mode == "paint"
    panel.layer.data[:, 40:] = 0  # as a brush does: in place, then an event
    panel.layer.events.paint(value=[])
    qtbot.waitUntil(lambda: session.mask.fraction < 0.5, timeout=30_000)
    assert MASK.source_user in panel.section.summary
    assert patches.section.summary != before
    panel._lock.setChecked(True)
    assert not panel.layer.editable
    panel._reset.click()
    assert patches.section.summary == before
    assert np.asarray(panel.layer.data).all()


def test_mask_goes_out_and_comes_back(add, viewer, session, tmp_path):
    panel = add(MaskPanel(session, viewer, lambda kind: None))
    whole_slide_mask(session)
    drawn = np.zeros((70, 90), np.uint8)
    drawn[20:50, 10:60] = 1
    session.paint_mask(drawn)
    for name in ("mask.png", "mask.geojson"):
        panel.save(tmp_path / name)
        panel.load(tmp_path / name)
        assert str(session.mask.source) == "file"
        assert session.mask.fraction == pytest.approx(drawn.mean(), abs=0.005)


def test_a_mask_of_another_slide_is_refused(add, viewer, session, tmp_path):
    panel, heard = add(MaskPanel(session, viewer, lambda kind: None)), []
    session.failed.connect(heard.append)
    far = tmp_path / "far.geojson"
    far.write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": {"type": '
        '"Polygon", "coordinates": [[[90000, 90000], [99000, 90000], [99000, 99000], [90000, 90000]]]}}]}'
    )
    panel.load(far)
    assert len(heard) == 1
    assert session.mask is None


def test_deleting_the_mask_layer_clears_the_mask(add, viewer, session):
    panel = add(MaskPanel(session, viewer, lambda kind: None))
    whole_slide_mask(session)
    viewer.layers.remove(panel.layer)
    assert session.mask is None
    assert panel.section.summary == MASK.empty


def test_patch_preview_is_the_grid_of_the_chosen_scale_and_goes_away(
    add, viewer, session
):
    panel = add(PatchesPanel(session, viewer, lambda: None))
    whole_slide_mask(session)
    panel._show.setChecked(True)
    for code, name in enumerate(("20x", "10x", "5x")):
        session.set_scale(code)
        (shown,) = find_layers(viewer, "patches")
        assert shown.name == f"Patches {name}"
        assert np.isfinite(shown.data).sum() == session.grid.counts[name]
    panel._show.setChecked(False)
    assert find_layers(viewer, "patches") == []


def test_why_no_patch_passes_is_shown(add, viewer, session):
    panel = add(PatchesPanel(session, viewer, lambda: None))
    whole_slide_mask(session)
    session.paint_mask(np.zeros((70, 90), np.uint8))
    assert panel.section.summary == PATCHES.none
    assert panel._facts.text() == session.grid_problem


def test_result_panel_shows_probabilities_and_their_change(
    add, viewer, session, answered
):
    from dataclasses import replace

    panel = add(ResultPanel(session, viewer, lambda: False))
    assert panel.section.summary == RESULT.empty
    session.set_result(answered)
    assert len(find_layers(viewer, "attention")) == 1
    shifted = np.roll(answered.probabilities, 1)
    session.set_result(replace(answered, probabilities=shifted))
    texts = panel._bars.texts()
    assert [name for name, _, _ in texts] == ["calm", "odd", "wild"]
    change = 100 * (shifted - answered.probabilities)
    for (_, value, moved), now, delta in zip(texts, shifted, change, strict=True):
        assert value == f"{now:.1%}"
        assert moved == (f"Δ {delta:+.1f}" if abs(delta) >= 0.05 else "")
    session.set_result(answered, session.version - 1)
    assert RESULT.stale in panel.section.summary
    session.set_result(replace(answered, partial=True))
    assert RESULT.partial in panel.section.summary


def test_attention_layers_are_updated_in_place(add, viewer, session, answered):
    from dataclasses import replace

    add(ResultPanel(session, viewer, lambda: False))
    session.set_result(answered)
    before = find_layers(viewer, "attention")
    before[0].visible = True
    changed = replace(answered, attention=answered.attention[::-1].copy())
    session.set_result(changed)
    after = find_layers(viewer, "attention")
    assert [id(x) for x in after] == [id(x) for x in before]
    assert after[0].visible


def test_another_scale_changes_the_map_in_place_and_keeps_its_opacity(
    add, viewer, session, answered
):
    panel = add(ResultPanel(session, viewer, lambda: False))
    session.set_result(answered)
    (fine,) = find_layers(viewer, "attention")
    fine.opacity = 0.35
    panel._scale.activated.emit(2)
    (coarse,) = find_layers(viewer, "attention")
    assert coarse is fine
    assert coarse.name == "Attention 5x"
    assert coarse.opacity == 0.35
    overlay = attention_maps(answered)[2]
    np.testing.assert_array_equal(coarse.data, overlay.values)
    np.testing.assert_allclose(coarse.scale, overlay.scale_yx_um)
    np.testing.assert_allclose(coarse.translate, overlay.translate_yx_um)


def test_hovering_reads_the_patches_under_the_pointer(add, viewer, session, answered):
    from types import SimpleNamespace

    panel = add(ResultPanel(session, viewer, lambda: False))
    session.set_result(answered)
    found = patches_at(answered.grid, 300.0, 400.0)
    assert list(answered.grid.scale[found]) == [0, 1, 2]
    world = (399.5 * 0.5, 299.5 * 0.5)
    panel._on_move(viewer, SimpleNamespace(position=world))
    lines = panel._hover.text().split("\n")
    assert [line.split()[0] for line in lines] == ["20x", "10x", "5x"]
    assert f"{answered.attention[found[0]]:.2%}" in lines[0]


def test_a_chosen_query_changes_the_maps_and_their_names(
    add, viewer, session, answered
):
    add(ResultPanel(session, viewer, lambda: False))
    session.set_result(answered)
    session.set_query(4)
    (finest,) = find_layers(viewer, "attention")
    assert finest.name == "Query 4 · 20x"
    total = np.nansum(finest.data)
    own = answered.query_attention[4][answered.grid.scale == 0].sum()
    assert total == pytest.approx(own, rel=1e-5)


def test_classify_without_a_slide_or_pixel_size_asks_for_it(add, viewer, session):
    from napari_msamil.slide.array_slide import ArraySlide

    panel = add(ClassifyPanel(session))
    blind = ArraySlide(np.zeros((600, 700, 3), np.uint8), name="blind")
    session.set_slide(blind)
    panel.classify()
    assert not panel.running
    assert "no pixel size" in panel._status.text()
    session.set_slide(None)
    assert not panel._run.isEnabled()


def test_sections_open_and_close_and_can_be_reached_by_keyboard(add, viewer, session):
    from qtpy.QtCore import Qt

    panel = add(SlidePanel(session, viewer))
    section = panel.section
    assert section._toggle.focusPolicy() != Qt.FocusPolicy.NoFocus
    section._toggle.click()
    assert not section.is_open
    section._toggle.click()
    assert section.is_open


def test_the_demo_slide_is_painted_beside_the_window_and_opened(add, qtbot, viewer):
    from napari_msamil.gui.session import session_of

    panel = add(SlidePanel(session_of(viewer), viewer))
    panel._sample.click()
    assert panel.section.summary == SLIDE.painting
    qtbot.waitUntil(lambda: panel.session.slide is not None, timeout=120_000)
    assert panel.section.summary.startswith("demo")
    panel.session.slide.close()
