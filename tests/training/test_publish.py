"""States become a checkpoint: complete, with its story, and refused where parts are missing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from napari_msamil.checkpoint import load_checkpoint, read_header, selftest
from napari_msamil.config import SegmenterSpec
from napari_msamil.encoding import weights_hash
from napari_msamil.errors import CheckpointError
from napari_msamil.models import build_aggregator, build_model, build_segmenter
from training.assemble import state_file
from training.cli import main
from training.state import save_state

from .e2e_parts import tiny_config

if TYPE_CHECKING:
    from pathlib import Path

SEGMENTER = SegmenterSpec(
    encoder="tu-lcnet_035",
    decoder_channels=(8, 8, 8, 8, 8),
    channels=("lesion",),
    size_px=64,
    threshold=0.31,
)
POSITION = {"epoch": 4, "best_epoch": 3, "seconds": 12.5}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Folders e2e, mil and segment with a state each, as the verbs write them."""
    torch.manual_seed(0)
    config = tiny_config()
    parts = {
        "e2e": (
            build_model(config),
            {"model": config.model_dump_json(), "data_hash": "abc"},
        ),
        "mil": (
            build_aggregator(config.aggregator, 2),
            {"model": config.model_dump_json(), "data_hash": "abc"},
        ),
        "segment": (
            build_segmenter(SEGMENTER),
            {"segmenter": SEGMENTER.model_dump_json()},
        ),
    }
    for kind, (network, description) in parts.items():
        state = {
            "model": network.state_dict(),
            "position": POSITION,
            "metrics": {"val_auc": 0.9},
        }
        save_state(
            tmp_path / kind / "best.pt", kind, {**state, "description": description}
        )
    return tmp_path


def test_an_end_to_end_state_becomes_a_checkpoint_with_its_weights(
    runs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    words = [
        "publish",
        str(runs / "e2e"),
        "-o",
        str(out),
        "--data",
        "synthetic slides",
        "--name",
        "shown",
    ]
    assert main(words) == 0
    loaded = load_checkpoint(out)
    assert loaded.config.name == "shown"
    assert loaded.config.segmenter is None
    assert loaded.provenance["synthetic"] is True
    stage = loaded.provenance["recipe"][0]
    assert (stage["verb"], stage["epoch"], stage["validation"]) == (
        "e2e",
        3,
        {"val_auc": 0.9},
    )
    state = torch.load(runs / "e2e" / "best.pt", weights_only=True)["model"]  # noqa: TID251
    assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())
    assert selftest(loaded).ok


def test_later_states_replace_the_parts_they_hold(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    states = [str(runs / kind) for kind in ("segment", "e2e", "mil")]
    assert main(["publish", *states, "-o", str(out)]) == 0
    loaded = load_checkpoint(out)
    assert loaded.config.segmenter == SEGMENTER
    mil = torch.load(runs / "mil" / "best.pt", weights_only=True)["model"]  # noqa: TID251
    assert all(
        torch.equal(v, mil[k]) for k, v in loaded.model.aggregator.state_dict().items()
    )
    assert [s["verb"] for s in loaded.provenance["recipe"]] == ["segment", "e2e", "mil"]


def test_a_base_checkpoint_gives_the_other_parts(runs: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base.safetensors", tmp_path / "m.safetensors"
    assert (
        main(["publish", str(runs / "e2e"), str(runs / "segment"), "-o", str(base)])
        == 0
    )
    assert (
        main(["publish", str(runs / "mil"), "--base", str(base), "-o", str(out)]) == 0
    )
    first, second = load_checkpoint(base).model, load_checkpoint(out).model
    assert all(
        torch.equal(v, second.encoder.state_dict()[k])
        for k, v in first.encoder.state_dict().items()
    )
    assert second.segmenter is not None


def test_half_precision_halves_the_file_and_passes_its_own_selftest(
    runs: Path, tmp_path: Path
) -> None:
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    assert main(["publish", str(runs / "e2e"), "-o", str(full)]) == 0
    assert main(["publish", str(runs / "e2e"), "-o", str(half), "--half"]) == 0
    assert half.stat().st_size < 0.7 * full.stat().st_size
    assert selftest(load_checkpoint(half)).ok


def test_held_out_figures_travel_with_the_model(runs: Path, tmp_path: Path) -> None:
    figures, out = tmp_path / "figures.json", tmp_path / "m.safetensors"
    figures.write_text(json.dumps({"test": {"acc": 0.93}}), encoding="utf-8")
    assert (
        main(["publish", str(runs / "e2e"), "-o", str(out), "--metrics", str(figures)])
        == 0
    )
    assert read_header(out).provenance["metrics"] == {"test": {"acc": 0.93}}


@pytest.mark.parametrize(
    ("states", "says"),
    [(["mil"], "encoder"), (["segment"], "what model"), (["absent"], "absent")],
)
def test_what_is_missing_is_named(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    states: list[str],
    says: str,
) -> None:
    words = [
        "publish",
        *(str(runs / s) for s in states),
        "-o",
        str(tmp_path / "m.safetensors"),
    ]
    assert main(words) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "m.safetensors").exists()


def test_weights_of_another_recipe_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    other = config.aggregator.model_copy(update={"args": {"heads": 4, "rank": 8}})
    description = {"model": config.model_dump_json()}
    network = build_aggregator(other, 2)
    save_state(
        runs / "other" / "best.pt",
        "mil",
        {
            "model": network.state_dict(),
            "position": POSITION,
            "description": description,
        },
    )
    assert (
        main(
            [
                "publish",
                str(runs / "e2e"),
                str(runs / "other"),
                "-o",
                str(tmp_path / "m.safetensors"),
            ]
        )
        == 1
    )
    assert "do not belong together" in capsys.readouterr().err


def test_the_best_state_of_a_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "state.pt").touch()
    assert state_file(tmp_path).name == "state.pt"
    (tmp_path / "best.pt").touch()
    assert state_file(tmp_path).name == "best.pt"
    with pytest.raises(CheckpointError, match="neither"):
        state_file(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "figures",
    [
        {"pooled": {"acc": 0.9}},
        {"pooled": {"acc": {"value": 0.9}}, "slides": 6, "patients": 4},
    ],
)
def test_figures_without_intervals_are_shown_without(
    runs: Path, tmp_path: Path, figures: dict[str, object]
) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(figures), encoding="utf-8")
    words = ["publish", str(runs / "e2e"), "-o", str(tmp_path / "m.safetensors")]
    assert main([*words, "--metrics", str(path), "--card"]) == 0
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| ACC | 0.900 | - |" in card
    assert ("6 slides of 4 patients" in card) == ("slides" in figures)
    assert "None" not in card


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ([0.9], "holds no figures"),
        ({"pooled": 0.9}, "holds no figures"),
        ({"pooled": {"acc": "90 %"}}, 'acc is "90 %", which is no number'),
        ({"pooled": {"auc": {"value": [1]}}}, "which is no number"),
    ],
)
def test_figures_that_no_card_can_show_are_refused_before_anything_is_written(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    figures: object,
    says: str,
) -> None:
    path, out = tmp_path / "figures.json", tmp_path / "m.safetensors"
    path.write_text(json.dumps(figures), encoding="utf-8")
    words = ["publish", str(runs / "e2e"), "-o", str(out), "--metrics", str(path)]
    assert main(words) == 1
    assert says in capsys.readouterr().err
    assert not out.exists()


def save_head(folder: Path, encoder_id: str) -> Path:
    """A mil state on features of an encoder."""
    config = tiny_config()
    description = {"model": config.model_dump_json(), "encoder_id": encoder_id}
    state = {
        "model": build_aggregator(config.aggregator, 2).state_dict(),
        "position": POSITION,
        "description": description,
    }
    save_state(folder / "best.pt", "mil", state)
    return folder


@pytest.fixture
def own(runs: Path, tmp_path: Path) -> str:
    """Hash of the encoder of e2e."""
    out = tmp_path / "own.safetensors"
    assert main(["publish", str(runs / "e2e"), "-o", str(out)]) == 0
    loaded = load_checkpoint(out)
    return weights_hash(loaded.model.encoder, loaded.config.encoder)


@pytest.mark.parametrize("name", ["{}-fp32-exact", "{}-bf16-folded", "{0}-a+{0}-b"])
def test_an_aggregator_is_published_over_the_encoder_of_its_features_at_any_precision(
    runs: Path,
    own: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    head = save_head(tmp_path / "head", name.format(own))
    out, base = tmp_path / "m.safetensors", tmp_path / "own.safetensors"
    assert main(["publish", str(runs / "e2e"), str(head), "-o", str(out)]) == 0
    assert main(["publish", "--base", str(base), str(head), "-o", str(out)]) == 0
    assert main(["publish", "--base", str(base), "--folds", str(head), "-o", str(out)]) == 0  # fmt: skip
    assert "cannot be compared" not in capsys.readouterr().err


OTHER = "0123456789abcdef01234567"


@pytest.mark.parametrize("name", [f"{OTHER}-fp32-exact", "{}-fp32+" + OTHER + "-fp32"])
def test_an_aggregator_over_an_encoder_that_did_not_make_its_features_is_refused(
    runs: Path,
    own: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    head = save_head(tmp_path / "head", name.format(own))
    out, base = tmp_path / "m.safetensors", tmp_path / "own.safetensors"
    for words in (
        [str(runs / "e2e"), str(head)],
        ["--base", str(base), str(head)],
        ["--base", str(base), "--folds", str(head), str(runs / "mil")],
    ):
        assert main(["publish", *words, "-o", str(out)]) == 1
        said = capsys.readouterr().err
        assert str(head / "best.pt") in said
        assert OTHER in said
        assert own in said
        assert str(base if "--base" in words else runs / "e2e" / "best.pt") in said
        assert not out.exists()
    # a head that is replaced is not published
    assert main(["publish", str(head), str(runs / "e2e"), "-o", str(out)]) == 0


def test_features_of_somebody_else_are_published_with_a_note_and_folds_must_agree(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"a": "conch", "b": "conch", "c": "uni", "d": f"{own}-fp32", "e": "unknown"}
    heads = {k: str(save_head(tmp_path / k, name)) for k, name in names.items()}
    base = ["publish", "--base", str(tmp_path / "own.safetensors")]
    out = tmp_path / "m.safetensors"
    for folds, names_told in (
        ("ab", ["conch"]),
        ("de", ["unknown"]),
        ("e", ["unknown"]),
    ):
        words = [*base, "--folds", *(heads[k] for k in folds), "-o", str(out)]
        assert main(words) == 0
        said = capsys.readouterr().err
        assert [n for n in names.values() if f"made by '{n}'" in said][:1] == names_told
        out.unlink()
    for folds in ("ac", "ad"):
        words = [*base, "--folds", *(heads[k] for k in folds), "-o", str(out)]
        assert main(words) == 1
        said = capsys.readouterr().err
        assert "features of different encoders" in said
        assert all(str(tmp_path / k) in said for k in folds)
        assert not out.exists()
