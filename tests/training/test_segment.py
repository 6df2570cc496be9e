"""Training of the segmenter: data, losses, augmentation, figures, exact resume, and a small run to the end."""

from __future__ import annotations

import argparse
import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from napari_msamil.config import SegmenterSpec
from napari_msamil.device import Precision, Runtime
from napari_msamil.errors import CohortError, ConfigError
from training import segment
from training.cohort import read_cohort
from training.segment_augment import changed, stain_jitter
from training.segment_data import SegmentItem, read_items
from training.segment_figures import (
    best_global_threshold,
    best_threshold,
    count_levels,
    mean_interval,
)
from training.segment_task import SegmentSpec, SegmentTask, segment_losses
from training.state import load_state

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CPU = Runtime("cpu", Precision.FP32, channels_last=False)
NET = SegmenterSpec(
    encoder="tu-lcnet_035",
    decoder_channels=(16, 12, 8, 8, 8),
    channels=("lesion",),
    size_px=64,
)
GLASS, PINK, VIOLET = (243, 241, 244), (225, 160, 200), (120, 90, 165)


def picture(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pink tissue on glass; the lesion is a striped square in it, as dark on average as the decoy beside it."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (90, 70), GLASS)
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 4, 85, 66), fill=PINK)
    x, y = int(rng.integers(20, 42)), int(rng.integers(18, 32))
    for row in range(y, y + 20, 4):
        draw.rectangle((x, row, x + 22, row + 1), fill=VIOLET)
    lesion = np.zeros((70, 90), dtype=bool)
    lesion[y : y + 20, x : x + 23] = True
    noisy = np.asarray(image) + rng.normal(0, 3, (70, 90, 3))
    return noisy.clip(0, 255).astype(np.uint8), lesion


def write_pairs(folder: Path, count: int = 8) -> Path:
    rows = []
    for number in range(count):
        pixels, lesion = picture(number)
        Image.fromarray(pixels).save(folder / f"s{number}.png")
        Image.fromarray(lesion.astype(np.uint8) * 255).save(folder / f"m{number}.png")
        split = (
            "train" if number < count - 4 else "val" if number < count - 2 else "test"
        )
        rows.append(
            [
                f"s{number}",
                f"s{number}.png",
                f"p{number // 2}",
                "",
                f"m{number}.png",
                split,
            ]
        )
    table = folder / "cohort.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "path", "patient_id", "label", "mask", "split"])
        writer.writerows(rows)
    return table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def items_of(table: Path, split: str = "train", **words: Any) -> list[SegmentItem]:
    cohort = read_cohort(table, need_labels=False)
    return list(
        read_items(cohort.part(split), 64, words.pop("channels", ("lesion",)), **words)
    )


def plain_item(seed: int = 0) -> SegmentItem:
    rng = np.random.default_rng(seed)
    positive = rng.random((1, 16, 16)) < 0.4
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return SegmentItem("a", "p", pixels, positive, np.ones_like(positive))


# Data


def test_pairs_are_squeezed_with_their_masks(table: Path) -> None:
    items = items_of(table)
    assert [i.name for i in items] == ["s0", "s1", "s2", "s3"]
    assert [i.group for i in items] == ["p0", "p0", "p1", "p1"]
    for number, item in enumerate(items):
        share = picture(number)[1].mean()
        assert item.pixels.shape == (64, 64, 3)
        assert item.positive[0].mean() == pytest.approx(share, abs=0.02)
        assert item.known.all()
        assert item.has_lesion


def partial_cohort(folder: Path, colours: bool) -> Path:
    table = write_pairs(folder, 6)
    _pixels, lesion = picture(0)
    paint = np.zeros((70, 90, 3), dtype=np.uint8)
    paint[lesion] = (255, 0, 0) if colours else 255
    if colours:
        paint[50:58, 30:50] = (0, 255, 0)
    Image.fromarray(paint).save(folder / "m0.png")
    return table


def test_unmarked_tissue_of_a_partial_annotation_is_unknown_and_glass_is_negative(
    tmp_path: Path,
) -> None:
    table = partial_cohort(tmp_path, colours=True)
    item = items_of(table, channels=("lesion", "stroma"))[0]
    lesion, stroma = item.positive
    assert stroma.any()
    assert not (lesion & stroma).any()
    assert (item.known[0] == item.known[1]).all()
    assert item.known[0][lesion | stroma].all()
    assert item.known[0][0, :5].all()
    assert not item.known[0][28:36, 9:13].any()
    assert item.known[0].mean() < 0.75


def test_classes_that_a_mask_does_not_know_are_unknown(tmp_path: Path) -> None:
    table = partial_cohort(tmp_path, colours=False)
    item = items_of(table, channels=("lesion", "stroma"))[0]
    assert item.known[0].all()
    assert not item.known[1].any()
    ignoring = items_of(table, unlabelled="ignore")[0]
    assert ignoring.known[0].mean() < 0.75


def test_slides_without_mask_are_left_out_unless_their_label_says_no_lesion(
    table: Path, tmp_path: Path
) -> None:
    text = table.read_text().replace(",,m0.png", ",benign,")
    other = table.with_name("benign.csv")
    other.write_text(text)
    assert [i.name for i in items_of(other)] == ["s1", "s2", "s3"]
    first = items_of(other, negative_labels=("benign",))[0]
    assert not first.has_lesion
    assert first.known.all()


def test_an_unreadable_mask_is_named_with_its_line(tmp_path: Path) -> None:
    table = write_pairs(tmp_path, 6)
    Image.new("L", (50, 50)).save(tmp_path / "m0.png")
    with pytest.raises(CohortError, match=r"Line 2, s0: m0.png has 50 × 50 pixels"):
        items_of(table)


# Losses


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[[2.0, -1.0], [0.5, 0.0]]]])
    positive = torch.tensor([[[[True, False], [True, False]]]])
    known = torch.tensor([[[[True, True], [True, False]]]])
    bce, dice = segment_losses(logits, positive, known)
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0, 0.5])))
    expected = -(np.log(p[0]) + np.log(1 - p[1]) + np.log(p[2])) / 3
    assert float(bce) == pytest.approx(expected, rel=1e-5)
    overlap = p[0] + p[2]
    assert float(dice) == pytest.approx(
        1 - (2 * overlap + 1) / (p.sum() + 2 + 1), rel=1e-5
    )


def test_unknown_pixels_and_channels_have_no_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    positive = torch.rand(2, 3, 8, 8) < 0.5
    known = torch.rand(2, 3, 8, 8) < 0.5
    known[:, 2] = False
    known[1] = False
    bce, dice = segment_losses(logits, positive, known)
    assert float(bce[1]) == float(dice[1]) == 0
    (bce + dice).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[~known] == 0).all()
    assert (logits.grad[known] != 0).all()


def test_a_batch_has_the_losses_of_its_pictures() -> None:
    torch.manual_seed(0)
    logits, positive = torch.randn(3, 2, 9, 7), torch.rand(3, 2, 9, 7) < 0.5
    known = torch.rand(3, 2, 9, 7) < 0.8
    together = segment_losses(logits, positive, known)
    for i in range(3):
        alone = segment_losses(logits[i : i + 1], positive[i : i + 1], known[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b[0])


# Augmentation


def test_no_stain_change_is_the_identity_and_a_change_keeps_white() -> None:
    pixels = torch.randint(1, 256, (3, 20, 20)).float()
    rng = np.random.default_rng(0)
    torch.testing.assert_close(
        stain_jitter(pixels, 0.0, rng), pixels, atol=0.02, rtol=0
    )
    other = stain_jitter(pixels, 0.2, rng)
    assert 1 < (other - pixels).abs().mean() < 40
    white = torch.full((3, 4, 4), 255.0)
    assert stain_jitter(white, 0.2, rng).min() > 225


def test_picture_and_mask_move_together() -> None:
    """A picture that is its own mask stays its own mask under every change of geometry."""
    spec = SegmentSpec(stain=0, stretch=0.3, shift=0.15)
    square = torch.zeros(1, 64, 64, dtype=torch.bool)
    square[:, 20:44, 12:40] = True
    pixels = square.float().repeat(3, 1, 1) * 255
    for seed in range(12):
        moved, marked, told = changed(
            pixels, square, torch.ones_like(square), spec, np.random.default_rng(seed)
        )
        assert ((moved[0] > 127) == marked[0])[told[0]].float().mean() > 0.99
        assert told.any()


def test_the_same_visit_draws_the_same_change() -> None:
    spec = SegmentSpec()
    item = plain_item()
    args = (
        torch.from_numpy(item.pixels).permute(2, 0, 1).float(),
        torch.from_numpy(item.positive),
        torch.from_numpy(item.known),
    )
    one, two = (changed(*args, spec, np.random.default_rng([1, 2])) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# Figures


def test_iou_and_dice_at_every_threshold() -> None:
    item = plain_item(3)
    item.known[0, :4] = False
    levels = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    counts = count_levels(levels, item)
    for level in (0, 1, 100, 200, 255):
        marked = (levels >= level) & item.known[0]
        truth = item.positive[0] & item.known[0]
        both, any_ = (marked & truth).sum(), (marked | truth).sum()
        assert counts.iou()[level] == pytest.approx(both / any_)
        assert counts.dice()[level] == pytest.approx(
            2 * both / (marked.sum() + truth.sum())
        )


def test_no_lesion_and_no_mark_is_a_full_hit() -> None:
    item = plain_item()
    empty = SegmentItem("e", "p", item.pixels, np.zeros_like(item.positive), item.known)
    counts = count_levels(np.full((16, 16), 10, np.uint8), empty)
    assert counts.iou()[200] == 1
    assert counts.iou()[5] == 0


def test_best_threshold_is_found() -> None:
    item = plain_item(5)
    levels = np.where(item.positive[0], 180, 90).astype(np.uint8)
    threshold = best_threshold([count_levels(levels, item)])
    assert 90 < threshold * 256 <= 180


def test_the_baseline_finds_a_colour_that_tells_all() -> None:
    items = []
    for seed in range(3):
        item = plain_item(seed)
        pixels = np.where(item.positive[0][..., None], (200, 60, 90), (200, 180, 90))
        items.append(
            SegmentItem(
                f"s{seed}",
                f"p{seed}",
                pixels.astype(np.uint8),
                item.positive,
                item.known,
            )
        )
    rule = best_global_threshold(items)
    assert rule.iou.value == 1
    assert rule.name.split()[0] in ("green", "grey", "saturation")


def test_interval_resamples_patients() -> None:
    values = [0.1] * 50 + [0.9]
    narrow = mean_interval(values, [f"p{i}" for i in range(51)])
    wide = mean_interval(values, ["a"] * 50 + ["b"])
    assert narrow.value == pytest.approx(np.mean(values))
    assert narrow.low <= narrow.value <= narrow.high
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


# The run


def arguments(
    table: Path, out: Path, *settings: str, resume: bool = False
) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    segment.add_arguments(parser)
    words = [
        "--cohort",
        str(table),
        "-o",
        str(out),
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    tiny = [
        "model.preset=small",
        "model.segmenter.encoder=tu-lcnet_035",
        "model.segmenter.decoder_channels=[16,12,8,8,8]",
        'model.segmenter.channels=["lesion"]',
        "model.segmenter.size_px=64",
        "segment.accumulate=2",
        "segment.lr=0.005",
    ]
    for text in (*tiny, *settings):
        words += ["--set", text]
    return parser.parse_args([*words, *(["--resume"] if resume else [])])


def test_a_run_leaves_everything_it_says(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert segment.run(arguments(table, out, "segment.epochs=2")) == 0
    printed = json.loads(capsys.readouterr().out)
    names = {p.name for p in out.iterdir()}
    assert names >= {
        "best.pt",
        "state.pt",
        "log.jsonl",
        "config.json",
        "figures.json",
        "slides.csv",
        "iou.png",
        "examples.png",
    }
    figures = json.loads((out / "figures.json").read_text())
    assert figures["test"]["slides"] == 2
    assert figures["val"]["iou"] == printed["val"]["iou"]
    assert set(figures["test"]["best_global_threshold"]) == {"name", "iou", "dice"}
    state = load_state(out / "best.pt", "segment")
    spec = SegmenterSpec.model_validate_json(state["description"]["segmenter"])
    assert spec.threshold == printed["threshold"] == state["metrics"]["threshold"]
    assert state["description"]["data_hash"]
    with pytest.raises(ConfigError, match="holds a training already"):
        segment.run(arguments(table, out, "segment.epochs=2"))


def test_resume_equals_an_uninterrupted_run_bit_for_bit(
    table: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    segment.run(arguments(table, whole, "segment.epochs=2", "segment.save_every=1"))
    task_class = SegmentTask.backward_window
    visits = 0

    def stops(self: SegmentTask, window: Any) -> Any:
        nonlocal visits
        visits += 1
        if visits == 3:
            raise KeyboardInterrupt
        return task_class(self, window)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentTask, "backward_window", stops)
        with pytest.raises(KeyboardInterrupt):
            segment.run(arguments(table, parts, "segment.epochs=2"))
    segment.run(arguments(table, parts, "segment.epochs=2", resume=True))
    one, two = (load_state(folder / "state.pt")["model"] for folder in (whole, parts))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_window_has_the_gradient_of_its_weighted_slides(table: Path) -> None:
    torch.manual_seed(0)
    from napari_msamil.models.segmenter import Segmenter
    from training.loop import Visit

    network = Segmenter(NET).eval()
    items = items_of(table)
    task = SegmentTask(network, SegmentSpec(), items, [], CPU)
    visits = [Visit(i, 0, i, 0.5) for i in range(2)]

    def gradient(windows: list[list[Visit]]) -> torch.Tensor:
        network.zero_grad()
        for window in windows:
            task.backward_window(window)
        return torch.cat(
            [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        )

    torch.testing.assert_close(
        gradient([visits]), gradient([[v] for v in visits]), atol=1e-4, rtol=1e-3
    )


def test_bf16_trains_with_nearly_the_losses_of_float32(table: Path) -> None:
    from napari_msamil.models.segmenter import Segmenter
    from training.loop import Visit

    torch.manual_seed(0)
    network = Segmenter(NET)
    items = items_of(table)
    visits = [Visit(i, 0, i, 1.0) for i in range(2)]
    losses, gradients = [], []
    for precision in (Precision.FP32, Precision.BF16):
        network.zero_grad()
        runtime = Runtime("cpu", precision, channels_last=False)
        task = SegmentTask(network.eval(), SegmentSpec(), items, [], runtime)
        assert task.logits(torch.zeros(1, 3, 64, 64)).dtype is torch.float32
        losses.append(task.backward_window(visits))
        grads = [p.grad for p in network.parameters() if p.grad is not None]
        gradients.append(torch.cat([g.flatten() for g in grads]))
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[1] != losses[0]
    exact, half = gradients
    assert torch.cosine_similarity(exact, half, dim=0) > 0.95


@pytest.mark.slow
def test_training_beats_the_best_threshold(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "learn"
    segment.run(arguments(table, out, "segment.epochs=25", "segment.patience=0"))
    found = json.loads((out / "figures.json").read_text())["val"]
    assert found["iou"]["value"] > found["best_global_threshold"]["iou"]["value"] + 0.2


def test_no_training_mask_is_an_error(table: Path, tmp_path: Path) -> None:
    other = table.with_name("none.csv")
    other.write_text(table.read_text().replace(",train", ",val"))
    with pytest.raises(CohortError, match="no training slide with a mask"):
        segment.run(arguments(other, tmp_path / "x"))
