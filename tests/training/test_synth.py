"""The synthetic cohort: real slides, planted truth, classes that need the scale they claim to need."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter

from napari_msamil.errors import CohortError
from napari_msamil.progress import finish
from napari_msamil.slide import open_slide
from napari_msamil.synthetic import LesionSize, SlideRecipe, paint_slide
from napari_msamil.synthetic_cells import KINDS, mean_haematoxylin_um2, nucleus_bank
from training.cohort import read_cohort
from training.synth import make_cohort
from training.synth_plan import FOUR_CLASSES, SynthSpec, plan_rows

SMALL = SynthSpec(
    slides=5,
    seed=3,
    size_wh=(701, 530),
    blank=1,
    forty_share=0.4,
    odd_share=0.3,
    pen_share=0.5,
)


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    finish(make_cohort(folder, SMALL, jobs=1))
    return folder


def hashes(folder):
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*.*"))
    }


def test_slides_open_with_their_mpp_and_objective_and_masks_fit(cohort_folder):
    cohort = read_cohort(cohort_folder / "cohort.csv")
    assert {r.mpp for r in cohort.rows} > {0.5}
    for row in cohort.rows:
        with open_slide(row.path) as slide:
            assert slide.info.mpp == pytest.approx(row.mpp, rel=1e-3)
            assert slide.info.objective_power == (40 if row.mpp < 0.35 else 20)
            assert slide.info.size_wh0 == (round(350.5 / row.mpp), round(265 / row.mpp))
        mask = np.asarray(Image.open(row.mask))
        assert mask.shape == (132, 175)
        assert 0.1 < mask.mean() < 0.7


def test_blank_slides_stay_outside_the_cohort(cohort_folder):
    assert len(read_cohort(cohort_folder / "cohort.csv")) == 5
    with open_slide(cohort_folder / "blank" / "blank_000.tiff") as slide:
        pixels = slide.read_region((0, 0), 0, (701, 530)).astype(float)
    assert pixels.min() > 200


def test_the_same_settings_give_the_same_files_whatever_the_number_of_processes(
    cohort_folder, tmp_path
):
    table = finish(make_cohort(tmp_path, SMALL, jobs=2))
    assert table == tmp_path / "cohort.csv"
    assert hashes(tmp_path) == hashes(cohort_folder)


def test_a_second_run_writes_only_what_is_missing(cohort_folder):
    before = {p: p.stat().st_mtime_ns for p in cohort_folder.rglob("*.tiff")}
    lost = cohort_folder / "slides" / "slide_0002.tiff"
    lost.unlink()
    steps = list(make_cohort(cohort_folder, SMALL, jobs=1))
    assert [s.done for s in steps] == [5, 6]
    assert [p.name for p, t in before.items() if p.stat().st_mtime_ns != t] == [
        lost.name
    ]


def test_a_folder_with_other_settings_is_refused(cohort_folder):
    with pytest.raises(CohortError, match="other settings"):
        finish(make_cohort(cohort_folder, SMALL.model_copy(update={"seed": 4}), jobs=1))


def test_patients_stay_together_and_classes_are_even():
    rows = plan_rows(
        SynthSpec(slides=97, classes=FOUR_CLASSES, slides_per_patient=(2, 4))
    )
    where, label = defaultdict(set), defaultdict(set)
    for row in rows:
        where[row["patient_id"]].add(row["split"])
        label[row["patient_id"]].add(row["label"])
    assert all(len(found) == 1 for found in (*where.values(), *label.values()))
    counts = [sum(r["label"] == c for r in rows) for c in FOUR_CLASSES]
    assert sorted(counts) == [24, 24, 24, 25]
    test = sum(r["split"] == "test" for r in rows)
    assert 0.15 < test / 97 < 0.35


def test_unknown_classes_are_refused():
    with pytest.raises(ValidationError, match="classes are normal"):
        SynthSpec(classes=("normal", "tumour"))


@pytest.mark.parametrize("size", list(LesionSize))
def test_lesions_grow_with_their_name_and_normal_slides_have_none(size):
    recipe = SlideRecipe("glandular-smooth", (900.0, 700.0), 1.0, size, seed=5)
    share = paint_slide(recipe).mask.mean()
    low, high = {"small": (0.01, 0.1), "medium": (0.15, 0.35), "large": (0.3, 0.55)}[
        size
    ]
    assert low < share < high
    assert not paint_slide(SlideRecipe("normal", (500.0, 400.0), 1.0, size)).mask.any()


def test_medium_and_large_lesions_hold_whole_patches_of_the_coarsest_scale():
    for seed in range(12):
        for size in (LesionSize.MEDIUM, LesionSize.LARGE):
            mask = paint_slide(
                SlideRecipe("trabecular-smooth", mpp=4.0, lesion_size=size, seed=seed)
            ).mask
            cells = mask[:512, :768].reshape(2, 256, 3, 256).mean(axis=(1, 3))
            assert cells.max() > 0.7


def test_slides_of_one_patient_share_the_stain():
    first, same, other = (
        paint_slide(
            SlideRecipe("normal", (600.0, 500.0), 1.0, seed=s, stain_seed=t)
        ).pixels.reshape(-1, 3)
        for s, t in ((1, 1), (2, 1), (2, 2))
    )

    def ratio(pixels):
        return pixels.mean(axis=0) / pixels.mean()

    assert (
        np.abs(ratio(first) - ratio(same)).max()
        < np.abs(ratio(same) - ratio(other)).max()
    )


def texture(label, seed, factor):
    """Mean colour, and spread of fine detail, inside the lesion at `factor` times 0.5 µm per pixel."""
    slide = paint_slide(SlideRecipe(label, (1300.0, 1100.0), seed=seed, stain_seed=9))
    image = Image.fromarray(slide.pixels).reduce(factor)
    mask = np.asarray(Image.fromarray(slide.mask).resize(image.size))
    grey = np.asarray(image, np.float32).mean(axis=-1)
    detail = gaussian_filter(grey, 0.5) - gaussian_filter(grey, 1)
    return np.asarray(image)[mask].mean(axis=0), float(detail[mask].std())


def test_nuclei_differ_at_20x_and_match_in_colour_and_grain_at_5x():
    change = {}
    for factor in (1, 4):
        pairs = [
            (
                texture("glandular-smooth", s, factor),
                texture("glandular-vesicular", s, factor),
            )
            for s in (1, 2)
        ]
        change[factor] = np.mean([b[1] / a[1] - 1 for a, b in pairs])
        colour = np.mean([b[0] - a[0] for a, b in pairs], axis=0)
        assert np.abs(colour).max() < 2.5
    assert change[1] > 0.3
    assert abs(change[4]) < 0.08


def test_architectures_match_in_colour_and_detail_at_20x():
    pairs = [
        (texture("glandular-smooth", s, 1), texture("trabecular-smooth", s, 1))
        for s in (1, 2, 3)
    ]
    assert np.abs(np.mean([b[0] - a[0] for a, b in pairs], axis=0)).max() < 5
    assert abs(np.mean([b[1] / a[1] - 1 for a, b in pairs])) < 0.08


def test_the_mimic_is_as_dark_as_the_lesion():
    """A global threshold on a smoothed thumbnail stays far below what a segmenter reaches."""
    best = []
    for seed in range(4):
        slide = paint_slide(
            SlideRecipe("glandular-smooth", mpp=2.0, seed=seed, stain_seed=seed)
        )
        grey = gaussian_filter(slide.pixels.astype(np.float32).mean(axis=-1), 10)
        ious = [
            ((grey < t) & slide.mask).sum() / ((grey < t) | slide.mask).sum()
            for t in range(100, 250, 5)
        ]
        best.append(max(ious))
    assert np.mean(best) < 0.65


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_nuclei_keep_their_haematoxylin_at_40x(kind):
    assert mean_haematoxylin_um2(kind, 0.25) == pytest.approx(
        mean_haematoxylin_um2(kind, 0.5), rel=0.12
    )
    assert all(
        s.shape[0] == s.shape[1] and s.shape[0] % 2 for s in nucleus_bank(kind, 0.25)
    )


def test_command_writes_the_table(tmp_path, capsys):
    from training.cli import main

    words = [
        "synth",
        "-o",
        str(tmp_path),
        "--slides",
        "2",
        "--size",
        "300",
        "260",
        "--jobs",
        "1",
        "--forty-share",
        "0",
    ]
    assert (
        main(
            [
                *words,
                "--classes",
                "normal",
                "glandular-smooth",
                "--lesion-size",
                "mixed",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out.strip() == str(tmp_path / "cohort.csv")
    with (tmp_path / "cohort.csv").open(encoding="utf-8") as file:
        assert {r["label"] for r in csv.DictReader(file)} == {
            "normal",
            "glandular-smooth",
        }
