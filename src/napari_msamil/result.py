"""The answer for one slide, with everything needed to explain it and to ask again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.masks import SlideMask
    from napari_msamil.patches import PatchGrid
    from napari_msamil.slide.base import SlideInfo


@dataclass(frozen=True, eq=False)
class ResultChange:
    """How an answer differs from the one before it, usually after the mask was edited.

    Attributes:
        before: Prediction before.
        after: Prediction after.
        delta_probabilities: float32 (C,), after minus before.
        gained: Patches of the new grid that the old one did not have.
        lost: Patches of the old grid that the new one does not have.
    """

    before: str
    after: str
    delta_probabilities: NDArray[np.float32]
    gained: int
    lost: int


@dataclass(frozen=True)
class Verdict:
    """A reason not to judge a slide.

    Attributes:
        name: Short, the same for every slide: `not enough tissue` or `unlike the training data`.
        value: What was found: patches, or the distance of the features.
        limit: What it should have been.
        sentence: For the user.
    """

    name: str
    value: float
    limit: float
    sentence: str


@dataclass(frozen=True, eq=False)
class SlideResult:
    """The answer for one slide.

    Attributes:
        info: The slide.
        model_name: Short name of the model.
        model_sha256: Hash of the checkpoint file.
        classes: Class names, in the order of the logits.
        logits: float32 (C,).
        probabilities: float32 (C,), sums to 1.
        attention: float32 (N,), sums to 1 over all patches; 0 where a patch could not be read.
        grid: The patches.
        mask: The mask they were chosen by.
        features: float32 (N, D), zero where `valid` is False.
        valid: bool (N,), False where a patch was not encoded: it cannot be read, or the result is partial.
        query_attention: float32 (Q, N) per learned query, or None.
        gates: float32 (Q,) or None.
        mining_attention: float32 (H, N) what MHIM ranks by, or None.
        instance_logits: float32 (N, C) or None.
        timings_s: Seconds by stage: open, mask, read, encode, aggregate, total. Reading and encoding overlap.
        warnings: Sentences for the user.
        partial: True while patches are still missing.
        command: The command line that gives this result.
        software: Versions by package name.
        change: Difference to the result before it, where there was one.
        member_probabilities: float32 (K, C) of the members of an ensemble, whose mean is `probabilities`; else None.
        class_set: Classes that hold the true one with probability `coverage`, the likeliest first; empty: not calibrated.
        coverage: Promised by the model's calibration, or None.
        verdicts: Why this model should not judge this slide; empty where nothing speaks against it.
    """

    info: SlideInfo
    model_name: str
    model_sha256: str
    classes: tuple[str, ...]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    attention: NDArray[np.float32]
    grid: PatchGrid
    mask: SlideMask
    features: NDArray[np.float32]
    valid: NDArray[np.bool_]
    query_attention: NDArray[np.float32] | None = None
    gates: NDArray[np.float32] | None = None
    mining_attention: NDArray[np.float32] | None = None
    instance_logits: NDArray[np.float32] | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    partial: bool = False
    command: str = ""
    software: dict[str, str] = field(default_factory=dict)
    change: ResultChange | None = None
    member_probabilities: NDArray[np.float32] | None = None
    class_set: tuple[str, ...] = ()
    coverage: float | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def spread(self) -> NDArray[np.float32] | None:
        """Standard deviation of each probability over the members (C,), with K − 1; None for fewer than two."""
        members = self.member_probabilities
        if members is None or len(members) < 2:
            return None
        found: NDArray[np.float32] = members.std(axis=0, ddof=1)
        return found

    @property
    def prediction(self) -> str:
        """Name of the most probable class."""
        return self.classes[int(np.argmax(self.probabilities))]

    @property
    def counts(self) -> dict[str, int]:
        """Encoded patches per scale, by scale name."""
        scale = self.grid.scale[self.valid]
        return {
            spec.name: int((scale == code).sum())
            for code, spec in enumerate(self.grid.spec.scales)
        }


def trust_lines(result: SlideResult) -> list[str]:
    """Who answered, and whether one class is left, in words; several classes that are left are among the warnings."""
    lines = []
    if result.member_probabilities is not None and result.spread is not None:
        count, best = (
            len(result.member_probabilities),
            int(result.probabilities.argmax()),
        )
        agree = int((result.member_probabilities.argmax(axis=1) == best).sum())
        lines.append(
            f"Mean of {count} trainings, ± their standard deviation; {agree} of {count} say {result.prediction}."
        )
    if result.coverage is not None and len(result.class_set) == 1:
        lines.append(
            f"No other class than {result.class_set[0]} is left with {100 * result.coverage:.0f} % coverage."
        )
    return lines


def compare_results(before: SlideResult, after: SlideResult) -> ResultChange:
    """Say what changed between two answers of one model for one slide."""
    old, new = _patch_set(before), _patch_set(after)
    return ResultChange(
        before=before.prediction,
        after=after.prediction,
        delta_probabilities=after.probabilities - before.probabilities,
        gained=len(new - old),
        lost=len(old - new),
    )


def _patch_set(result: SlideResult) -> set[tuple[int, int, int]]:
    grid = result.grid
    rows = np.column_stack([grid.scale, grid.coords_xy0])[result.valid]
    return set(map(tuple, rows.tolist()))
