"""Folds of a cross-validation become one checkpoint: shared encoders once, own ones side by side, misfits refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from napari_msamil.checkpoint import load_checkpoint, read_header, selftest
from napari_msamil.device import choose_runtime
from napari_msamil.models import build_aggregator, build_model
from napari_msamil.pipeline import classify
from napari_msamil.reliability import UNFAMILIAR
from napari_msamil.slide.write import write_pyramid_tiff
from training.cli import main
from training.metrics import softmax
from training.prediction_table import Predictions, save_predictions
from training.state import save_state

from .e2e_parts import CLASSES, SIZE_WH, tiny_config

if TYPE_CHECKING:
    from pathlib import Path

    from napari_msamil.config import ModelConfig


def save_fold(folder: Path, kind: str, seed: int, config: ModelConfig) -> Path:
    torch.manual_seed(seed)
    whole = kind == "e2e"
    network = build_model(config) if whole else build_aggregator(config.aggregator, 2)
    state = {
        "model": network.state_dict(),
        "position": {"epoch": 4, "best_epoch": 3, "seconds": 1.5},
        "metrics": {},
        "description": {"model": config.model_dump_json(), "data_hash": f"h{seed}"},
    }
    save_state(folder / "best.pt", kind, state)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint with an encoder and an aggregator of its own."""
    out = tmp_path / "base.safetensors"
    state = save_fold(tmp_path / "base", "e2e", 9, tiny_config())
    assert main(["publish", str(state), "-o", str(out)]) == 0
    return out


def publish(*words: object) -> int:
    return main(["publish", *map(str, words)])


def test_folds_on_one_encoder_share_it(base: Path, tmp_path: Path) -> None:
    folds = [save_fold(tmp_path / f"fold_{k}", "mil", k, tiny_config()) for k in (0, 1)]
    out = tmp_path / "m.safetensors"
    assert publish("--base", base, "--folds", *folds, "-o", out) == 0
    loaded, shared = load_checkpoint(out), load_checkpoint(base)
    assert loaded.config.ensemble is not None
    assert loaded.config.ensemble.own_encoders is False
    for key, value in shared.model.encoder.state_dict().items():
        assert torch.equal(loaded.model.encoder.state_dict()[key], value)
    for k, fold in enumerate(folds):
        own = torch.load(fold / "best.pt", weights_only=True)["model"]  # noqa: TID251
        member = loaded.model.aggregator.members[k].state_dict()
        assert all(torch.equal(member[key], own[key]) for key in own)
    assert selftest(loaded).ok
    assert loaded.provenance["members"] == ["fold_0", "fold_1"]
    assert [s["data_hash"] for s in loaded.provenance["recipe"]] == ["h0", "h1"]


def test_folds_with_encoders_of_their_own_and_checkpoints_of_folds_are_the_same(
    tmp_path: Path,
) -> None:
    folds = [save_fold(tmp_path / f"fold_{k}", "e2e", k, tiny_config()) for k in (0, 1)]
    out, again = tmp_path / "m.safetensors", tmp_path / "n.safetensors"
    assert publish("--folds", *folds, "-o", out) == 0
    files = [tmp_path / f"fold_{k}.safetensors" for k in (0, 1)]
    for fold, file in zip(folds, files, strict=True):
        assert publish(fold, "-o", file) == 0
    assert publish("--folds", *files, "-o", again) == 0
    first, second = load_checkpoint(out), load_checkpoint(again)
    assert first.config.feature_dim == 2 * first.config.encoder.dim
    state = second.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in first.model.state_dict().items())
    assert selftest(first).found == selftest(second).found


def test_folds_that_do_not_fit_are_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = save_fold(tmp_path / "fold_0", "mil", 0, tiny_config())
    other = tiny_config()
    aggregator = other.aggregator.model_copy(
        update={"args": {**other.aggregator.args, "mlp_dim": 24}}
    )
    other = other.model_copy(update={"aggregator": aggregator})
    bad = save_fold(tmp_path / "fold_1", "mil", 1, other)
    out = tmp_path / "m.safetensors"
    assert publish("--base", base, "--folds", good, bad, "-o", out) == 1
    assert (
        "fold_1 differs from the first fold in 'aggregator'" in capsys.readouterr().err
    )
    assert not out.exists()
    assert publish("--base", base, "--folds", good, good, "-o", out) == 0
    assert publish("--folds", out, out, "-o", tmp_path / "o.safetensors") == 1
    assert "is an ensemble already" in capsys.readouterr().err
    assert publish(good, "--base", out, "-o", tmp_path / "o.safetensors") == 1
    assert "cannot be replaced one by one" in capsys.readouterr().err


def write_validation(path: Path, count: int) -> Path:
    """Predictions of one fold: eight of ten are right with 0.9."""
    labels = np.arange(count) % 2
    right = np.arange(count) % 10 < 8
    own = np.where(right, 0.9, 0.1)
    shares = np.stack([np.where(labels == 0, own, 1 - own), 1 - own], axis=1)
    shares[:, 1] = 1 - shares[:, 0]
    names = tuple(f"{path.parent.name}_{i}" for i in range(count))
    found = Predictions(
        CLASSES, names, names, ("val",) * count, (0,) * count, labels, shares
    )
    return save_predictions(path, found)


def test_temperature_comes_from_the_validation_slides_of_all_folds(
    base: Path, tmp_path: Path
) -> None:
    folds = [save_fold(tmp_path / f"fold_{k}", "mil", k, tiny_config()) for k in (0, 1)]
    tables = [write_validation(fold / "predictions.csv", 30) for fold in folds]
    out = tmp_path / "m.safetensors"
    words = ("--base", base, "--folds", *folds, "--calibrate", *tables)
    assert publish(*words, "-o", out) == 0
    loaded = load_checkpoint(out)
    # sigmoid(ln 9 / T) = 0.8, so T = ln 9 / ln 4, but for the prior's pull towards 1
    assert loaded.config.temperature == pytest.approx(np.log(9) / np.log(4), rel=0.03)
    assert loaded.model.aggregator.temperature == loaded.config.temperature
    assert loaded.provenance["calibration"]["slides"] == 60


def write_slide(path: Path, colour: tuple[int, ...], spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.full((SIZE_WH[1], SIZE_WH[0], 3), 244, np.uint8)
    tissue = pixels[16:-16, 32:-32]
    grain = rng.normal(0, spread, tissue.shape)
    own = np.array(colour) + rng.normal(0, 4, 3)
    tissue[:] = np.clip(own + grain, 0, 255)
    write_pyramid_tiff(path, pixels, mpp=0.5, objective=20)


EOSIN, HAEMATOXYLIN, DAB = (216, 150, 190), (150, 84, 160), (150, 96, 50)


@pytest.fixture
def stained(tmp_path: Path) -> Path:
    """Pink and violet slides: 12 for training, 19 for validation."""
    rows = ["slide_id,path,patient_id,label,mask,split,mpp"]
    for i in range(31):
        colour = (EOSIN, HAEMATOXYLIN)[i % 2]
        write_slide(tmp_path / f"s{i}.tiff", colour, 6, i)
        split = "train" if i < 12 else "val"
        rows.append(f"s{i},s{i}.tiff,P{i},{CLASSES[i % 2]},,{split},")
    table = tmp_path / "cohort.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def test_brown_slides_and_noise_are_called_unlike_and_new_slides_of_the_kind_are_not(
    stained: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bags, out = tmp_path / "bags", tmp_path / "m.safetensors"
    settings = (
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--set",
        "extract.patches=tissue",
    )
    words = ["extract", "--model", base, "--cohort", stained, "-o", bags, *settings]
    assert main(list(map(str, words))) == 0
    fold = save_fold(tmp_path / "fold_0", "mil", 0, tiny_config())
    words = ["--base", base, "--folds", fold, fold, "--bags", bags]
    assert publish(*words, "--cohort", stained, "-o", out) == 0
    limits = read_header(out).config.familiarity
    assert limits is not None
    assert (limits.patients, limits.rate) == (19, 0.05)
    loaded, runtime = load_checkpoint(out), choose_runtime("cpu", "fp32")

    def names(colour: tuple[int, ...], spread: float, seed: int) -> list[str]:
        path = tmp_path / "new.tiff"
        write_slide(path, colour, spread, seed)
        found = classify(path, loaded, runtime=runtime, cache=False, strategy="tissue")
        return [v.name for v in found.verdicts]

    assert names(DAB, 6, 100) == [UNFAMILIAR]
    assert UNFAMILIAR in names(EOSIN, 60, 101)
    known = [names((EOSIN, HAEMATOXYLIN)[k % 2], 6, 200 + k) for k in range(6)]
    assert sum(map(bool, known)) <= 1
    known = tmp_path / "known.safetensors"
    assert (
        publish("--base", base, "--bags", bags, "--cohort", stained, "-o", known) == 0
    )
    assert publish("--base", known, "--folds", fold, "-o", out) == 0
    assert read_header(out).config.familiarity == limits
    own = save_fold(tmp_path / "own", "e2e", 6, tiny_config())
    assert publish("--base", known, "--folds", fold, own, "-o", out) == 0
    assert read_header(out).config.familiarity is None
    other = save_fold(tmp_path / "other", "e2e", 5, tiny_config())
    words = [other, "--bags", bags, "--cohort", stained, "-o", out]
    assert publish(*words) == 1
    assert "made by another encoder" in capsys.readouterr().err


def write_predictions(path: Path, temperature: float) -> Path:
    """300 validation slides of a model that is twice as certain as right, at a temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(300, 2))
    labels = np.array([rng.choice(2, p=p) for p in softmax(logits)])
    names = tuple(f"s{i}" for i in range(300))
    shares = softmax(2 * logits, temperature)
    path.parent.mkdir(exist_ok=True)
    found = Predictions(
        CLASSES, names, names, ("val",) * 300, (0,) * 300, labels, shares
    )
    return save_predictions(path, found)


def test_calibrating_again_starts_from_the_temperature_of_the_base(
    base: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    plain = write_predictions(tmp_path / "plain" / "predictions.csv", 1.0)
    assert publish("--base", base, "--calibrate", plain, "-o", first) == 0
    config = read_header(first).config
    assert config.temperature == pytest.approx(2, rel=0.2)
    # what `evaluate --model` writes has been divided by it
    table = write_predictions(
        tmp_path / "report" / "predictions.csv", config.temperature
    )
    assert publish("--base", first, "--calibrate", table, "-o", second) == 0
    header = read_header(second)
    assert header.config.temperature == pytest.approx(config.temperature, rel=0.01)
    assert header.provenance["calibration"]["temperature"] == header.config.temperature
    assert header.provenance["calibration"]["set_threshold"] == pytest.approx(
        read_header(first).provenance["calibration"]["set_threshold"], rel=0.01
    )


def test_predictions_of_a_training_have_no_temperature(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    fold = save_fold(tmp_path / "fold_0", "mil", 0, tiny_config())
    table = write_predictions(fold / "predictions.csv", 1.0)
    words = ("--calibrate", table, "-o")
    assert publish("--base", base, fold, *words, first) == 0
    wanted = read_header(first).config.temperature
    assert wanted == pytest.approx(2, rel=0.2)
    # the training is beside the table, or is what is published
    assert publish("--base", first, *words, second) == 0
    assert read_header(second).config.temperature == wanted
    assert publish("--base", first, "--folds", fold, fold, *words, second) == 0
    assert read_header(second).config.temperature == wanted
    other = write_predictions(tmp_path / "report" / "predictions.csv", wanted)
    assert publish("--base", first, "--calibrate", table, other, "-o", second) == 1
    assert "made at different temperatures (1, " in capsys.readouterr().err


def test_folds_of_different_temperatures_are_joined_only_with_a_new_one(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, out = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    fold = save_fold(tmp_path / "fold_0", "mil", 0, tiny_config())
    table = write_predictions(fold / "predictions.csv", 1.0)
    assert publish("--base", base, fold, "--calibrate", table, "-o", made) == 0
    words = ("--base", base, "--folds", fold, made)
    assert publish(*words, "-o", out) == 1
    told = capsys.readouterr().err
    assert "1.safetensors has the temperature 2" in told
    assert "the first fold 1, but an ensemble has one" in told
    assert not out.exists()
    assert publish("--folds", made, made, "-o", out) == 0
    wanted = read_header(made).config.temperature
    assert read_header(out).config.temperature == wanted
    other = save_fold(tmp_path / "fold_1", "mil", 1, tiny_config())
    second = write_predictions(other / "predictions.csv", 1.0)
    words = ("--folds", made, made, "--calibrate", table, second)
    assert publish(*words, "-o", out) == 0


def test_the_temperature_of_an_ensemble_stays_where_only_its_own_answers_are_known(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = [save_fold(tmp_path / f"fold_{k}", "mil", k, tiny_config()) for k in (0, 1)]
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    table = write_predictions(folds[0] / "predictions.csv", 1.0)
    words = ("--base", base, "--folds", *folds, "--calibrate", table)
    assert publish(*words, "-o", first) == 0
    config = read_header(first).config
    report = write_predictions(tmp_path / "report" / "predictions.csv", 1.7)
    assert publish("--base", first, "--calibrate", report, "-o", second) == 0
    assert "that of an ensemble is learnt from" in capsys.readouterr().err
    assert read_header(second).config.temperature == config.temperature
