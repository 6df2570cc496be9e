"""Several trainings in one file: the mean of their answers, their spread, and what speaks against a slide."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from napari_msamil import checkpoint_header
from napari_msamil.checkpoint import load_checkpoint, read_header, save_checkpoint
from napari_msamil.config import EnsembleSpec, FamiliaritySpec
from napari_msamil.device import choose_runtime
from napari_msamil.errors import CheckpointError
from napari_msamil.export import result_document
from napari_msamil.models import build_model
from napari_msamil.models.ensemble import mean_logits, mean_output
from napari_msamil.models.familiarity import Familiarity
from napari_msamil.models.outputs import MILOutput
from napari_msamil.pipeline import classify
from napari_msamil.reliability import LITTLE_TISSUE, UNFAMILIAR
from napari_msamil.result import trust_lines

from .conftest import tiny_model_config

if TYPE_CHECKING:
    from pathlib import Path

    from napari_msamil.config import ModelConfig
    from napari_msamil.models.msamil import MsamilModel
    from napari_msamil.result import SlideResult

FP32 = choose_runtime("cpu", "fp32")
TEMPERATURE = 1.7


def model_of(seed: int, config: ModelConfig | None = None) -> MsamilModel:
    torch.manual_seed(seed)
    config = config or tiny_model_config().model_copy(
        update={"temperature": TEMPERATURE}
    )
    return build_model(config).eval()


def joined(members: list[MsamilModel], *, own: bool) -> MsamilModel:
    spec = EnsembleSpec(members=len(members), own_encoders=own)
    config = members[0].config.model_copy(update={"ensemble": spec})
    model = build_model(config).eval()
    for place, member in zip(model.aggregator.members, members, strict=True):
        place.load_state_dict(member.aggregator.state_dict())
    places = model.encoder.members if own else [model.encoder]
    for place, member in zip(places, members, strict=False):
        place.load_state_dict(member.encoder.state_dict())
    return model


def answer(
    model: MsamilModel, slide: Path, folder: Path, **story: object
) -> SlideResult:
    path = save_checkpoint(folder / "m.safetensors", model, story)
    return classify(slide, load_checkpoint(path), runtime=FP32, cache=False)


def test_an_ensemble_of_one_is_the_single_model_bit_for_bit(
    painted_svs: Path, tmp_path: Path
) -> None:
    single = model_of(1)
    alone = answer(single, painted_svs, tmp_path)
    for own in (False, True):
        one = answer(joined([single], own=own), painted_svs, tmp_path)
        for name in ("logits", "probabilities", "attention", "features", "gates"):
            np.testing.assert_array_equal(getattr(one, name), getattr(alone, name))
        np.testing.assert_array_equal(one.query_attention, alone.query_attention)
        assert one.spread is None
        assert alone.member_probabilities is None


@pytest.mark.parametrize("own", [False, True])
def test_the_mean_and_spread_are_those_of_the_members(
    own: bool, painted_svs: Path, tmp_path: Path
) -> None:
    members = [model_of(seed) for seed in (1, 2, 3)]
    if not own:
        for member in members[1:]:
            member.encoder.load_state_dict(members[0].encoder.state_dict())
    alone = [answer(m, painted_svs, tmp_path) for m in members]
    together = answer(joined(members, own=own), painted_svs, tmp_path)
    each = np.stack([a.probabilities for a in alone])
    np.testing.assert_allclose(together.member_probabilities, each, atol=2e-7)
    np.testing.assert_allclose(together.probabilities, each.mean(0), atol=2e-6)
    by_hand = np.sqrt(((each - each.mean(0)) ** 2).sum(0) / 2)
    np.testing.assert_allclose(together.spread, by_hand, atol=1e-6)
    np.testing.assert_allclose(
        together.attention, np.mean([a.attention for a in alone], axis=0), atol=1e-6
    )
    width = members[0].config.encoder.dim
    assert together.features.shape[1] == (3 * width if own else width)
    np.testing.assert_array_equal(together.features[:, :width], alone[0].features)
    assert together.query_attention is None
    best = np.argmax(each.mean(0))
    agree = int((each.argmax(1) == best).sum())
    assert "Mean of 3 trainings" in trust_lines(together)[0]
    assert f"{agree} of 3 say {together.prediction}" in trust_lines(together)[0]


def test_the_mean_of_probabilities_by_hand() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4), of (ln 4, 0) is (4/5, 1/5): mean (0.525, 0.475), spread 0.55 / √2
    rows = [[0.0, np.log(3.0)], [np.log(4.0), 0.0]]
    logits = torch.tensor([rows], dtype=torch.float64)
    for temperature in (1.0, 2.5):
        found = mean_logits(logits * temperature, temperature)
        shares = torch.softmax(found / temperature, -1)
        np.testing.assert_allclose(shares.numpy(), [[0.525, 0.475]], rtol=1e-12)


def test_what_only_some_members_say_is_left_out() -> None:
    def output(scores: torch.Tensor | None) -> MILOutput:
        return MILOutput(
            torch.zeros(1, 2),
            torch.ones(1, 1),
            torch.ones(1, 3),
            instance_logits=scores,
        )

    both = [output(torch.tensor([[[0.0, 2.0]]])), output(torch.tensor([[[4.0, 0.0]]]))]
    found = mean_output(both, 1.0)
    assert found.instance_logits is not None
    assert found.instance_logits.tolist() == [[[2.0, 1.0]]]
    assert mean_output([both[0], output(None)], 1.0).instance_logits is None


def test_files_without_new_parts_keep_the_old_format_and_newer_ones_are_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, many = tmp_path / "one.safetensors", tmp_path / "many.safetensors"
    save_checkpoint(single, model_of(1))
    save_checkpoint(many, joined([model_of(1), model_of(2)], own=True))
    assert (read_header(single).format_version, read_header(many).format_version) == (
        1,
        2,
    )
    head = single.read_bytes()[:4000]
    assert b"ensemble" not in head
    assert b"familiarity" not in head
    monkeypatch.setattr(checkpoint_header, "FORMAT_VERSION", 1)
    assert read_header(single).config.ensemble is None
    with pytest.raises(CheckpointError, match=r"format 2; this version reads up to 1"):
        read_header(many)


def with_limits(distance: float, patches: int) -> MsamilModel:
    spec = FamiliaritySpec(distance=distance, patches=patches, rate=0.05, patients=40)
    config = tiny_model_config().model_copy(update={"familiarity": spec})
    return model_of(1, config)


def test_distance_is_the_root_mean_square_of_whitened_features() -> None:
    module = Familiarity(scales=2, dim=2)
    module.mean.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    module.whiten.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    # whitened: (0, 3) at scale 0 and (4, 0) at scale 1; a third column belongs to another member
    features = torch.tensor([[1.0, 3.0, 99.0], [2.0, 1.0, 99.0]])
    found = module(features, torch.tensor([0, 1]))
    assert float(found) == pytest.approx(np.sqrt((9 + 16) / 4))


def test_verdicts_reach_the_result_and_its_files(
    painted_svs: Path, tmp_path: Path
) -> None:
    calm = answer(with_limits(1e6, 1), painted_svs, tmp_path)
    assert calm.verdicts == ()
    story = {"calibration": {"set_threshold": 0.0, "coverage": 0.8}}
    found = answer(with_limits(1e-6, 10_000), painted_svs, tmp_path, **story)
    assert [v.name for v in found.verdicts] == [LITTLE_TISSUE, UNFAMILIAR]
    assert (found.verdicts[0].value, found.verdicts[0].limit) == (
        len(found.grid),
        10_000,
    )
    rms = np.sqrt(np.mean(np.square(found.features.astype(np.float64))))
    assert found.verdicts[1].value == pytest.approx(rms)
    assert found.warnings[0].startswith("Not enough tissue: ")
    assert found.warnings[1].startswith("Unlike the training data: ")
    assert found.class_set == (found.prediction,)
    document = json.loads(json.dumps(result_document(found)))
    assert document["class_set"] == {"coverage": 0.8, "classes": [found.prediction]}
    assert document["verdicts"][0]["limit"] == 10_000
