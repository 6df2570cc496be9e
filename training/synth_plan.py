"""What a synthetic cohort holds: its settings, its table of slides, and how each slide is painted."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field, field_validator

from napari_msamil.config import Spec
from napari_msamil.synthetic import LesionSize, SlideRecipe

THREE_CLASSES = ("glandular-smooth", "glandular-vesicular", "trabecular-smooth")
FOUR_CLASSES = (*THREE_CLASSES, "trabecular-vesicular")
COLUMNS = ("slide_id", "path", "patient_id", "label", "mask", "split", "mpp")


class SynthSpec(Spec):
    """What cohort is written.

    Attributes:
        slides: Number of slides, blank ones not counted.
        seed: Seed of everything.
        size_wh: Width and height of a 20x slide in pixels of 0.5 µm; 40x slides have twice as many per side.
        classes: `normal` and `<glandular|trabecular>-<smooth|vesicular>` in any number from two.
        lesion_size: How large lesions are; None mixes all three.
        slides_per_patient: Smallest and largest number of slides of one patient.
        shares: Shares of train, val and test.
        pen_share: Share of slides with pen marks.
        forty_share: Share of 40x slides (0.25 µm per pixel).
        odd_share: Share of slides with 0.46 (20x) or 0.2277 (40x) µm per pixel.
        blank: Empty slides, written to `blank/` and not part of the cohort.
    """

    slides: int = Field(default=150, gt=0)
    seed: int = Field(default=0, ge=0)
    size_wh: tuple[int, int] = (3072, 2560)
    classes: tuple[str, ...] = Field(default=THREE_CLASSES, min_length=2)
    lesion_size: LesionSize | None = LesionSize.LARGE
    slides_per_patient: tuple[int, int] = (1, 3)
    shares: tuple[float, float, float] = (0.6, 0.15, 0.25)
    pen_share: float = Field(default=0.1, ge=0, le=1)
    forty_share: float = Field(default=0.1, ge=0, le=1)
    odd_share: float = Field(default=0.0, ge=0, le=1)
    blank: int = Field(default=0, ge=0)

    @field_validator("classes")
    @classmethod
    def _classes_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = sorted(set(value) - {"normal", *FOUR_CLASSES})
        if wrong or len(set(value)) != len(value):
            raise ValueError(
                f"classes are normal and {', '.join(FOUR_CLASSES)}, each once; not {wrong or value}"
            )
        return value


def plan_rows(spec: SynthSpec) -> list[dict[str, Any]]:
    """The rows of the cohort table: patients with several slides, classes dealt evenly, splits by patient."""
    rng = np.random.default_rng([spec.seed, 3])
    rows: list[dict[str, Any]] = []
    for number, label in enumerate(spec.classes):
        count = spec.slides // len(spec.classes) + (
            number < spec.slides % len(spec.classes)
        )
        patients: list[int] = []
        while sum(patients) < count:
            low, high = spec.slides_per_patient
            patients.append(
                min(int(rng.integers(low, high + 1)), count - sum(patients))
            )
        for index, slides in enumerate(patients):
            split = _split_of(sum(patients[:index]) + slides / 2, count, spec.shares)
            rows += [
                {"label": label, "split": split, "patient": (number, index)}
                for _ in range(slides)
            ]
    order = rng.permutation(len(rows))
    names = {
        key: f"P{i:03d}"
        for i, key in enumerate(dict.fromkeys(rows[i]["patient"] for i in order))
    }
    return [
        _row(spec, rows[i], names[rows[i]["patient"]], n, rng)
        for n, i in enumerate(order)
    ]


def _split_of(position: float, count: int, shares: tuple[float, float, float]) -> str:
    train, val, _ = np.cumsum(shares) / sum(shares)
    return (
        "train"
        if position < train * count
        else "val"
        if position < val * count
        else "test"
    )


def _row(
    spec: SynthSpec,
    row: dict[str, Any],
    patient: str,
    number: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    forty, odd = rng.random() < spec.forty_share, rng.random() < spec.odd_share
    slide_id = f"slide_{number:04d}"
    return {
        "slide_id": slide_id,
        "path": f"slides/{slide_id}.tiff",
        "patient_id": patient,
        "label": row["label"],
        "mask": f"masks/{slide_id}.png",
        "split": row["split"],
        "mpp": (0.2277 if odd else 0.25) if forty else (0.46 if odd else 0.5),
    }


def blank_rows(spec: SynthSpec) -> list[dict[str, Any]]:
    """The rows of the empty slides, which are no part of the cohort."""
    return [
        {
            "slide_id": f"blank_{i:03d}",
            "path": f"blank_{i:03d}.tiff",
            "patient_id": f"B{i:03d}",
            "label": "normal",
            "mask": "",
            "mpp": 0.5,
        }
        for i in range(spec.blank)
    ]


def slide_recipe(spec: SynthSpec, row: dict[str, Any]) -> SlideRecipe:
    """How one row is painted: seeded by slide name and patient, not by the order of work."""
    number = int(row["slide_id"].rpartition("_")[2])
    blank = row["slide_id"].startswith("blank")
    rng = np.random.default_rng([spec.seed, 4, number, blank])
    size = spec.lesion_size or list(LesionSize)[int(rng.integers(3))]
    return SlideRecipe(
        label=row["label"],
        size_um_wh=(spec.size_wh[0] * 0.5, spec.size_wh[1] * 0.5),
        mpp=row["mpp"],
        lesion_size=size,
        seed=int(rng.integers(2**31)),
        stain_seed=spec.seed * 100_000 + int(row["patient_id"][1:]),
        pen=bool(rng.random() < spec.pen_share),
        blank=blank,
    )
