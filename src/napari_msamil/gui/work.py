"""The long jobs of the workbench as generators of `Progress`. Knows no window; runs in any thread."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from napari_msamil.config import Fallback, Strategy
from napari_msamil.gui.settings import Settings
from napari_msamil.gui.strings import RUN
from napari_msamil.progress import Progress, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from napari_msamil.checkpoint import LoadedModel, SelftestResult
    from napari_msamil.gui.session import Choice
    from napari_msamil.masks import SlideMask
    from napari_msamil.progress import ProgressGen
    from napari_msamil.result import SlideResult
    from napari_msamil.slide.base import Slide


@dataclass(frozen=True, eq=False)
class Question:
    """Everything a job needs, taken from a session at the moment it starts.

    Attributes:
        slide: The open slide; the job never closes it.
        model_ref: The model asked for.
        loaded: That model, if it is loaded already.
        choice: The user's choices about patches.
        mask: The mask on screen, or None: the job finds one.
        tissue: Tissue mask, if known already.
        previous: The answer before this one, for the difference.
        settings: Device, precision, cache.
        version: The session's version, to tell a stale answer.
    """

    slide: Slide
    model_ref: str
    choice: Choice
    loaded: LoadedModel | None = None
    mask: SlideMask | None = None
    tissue: SlideMask | None = None
    previous: SlideResult | None = None
    settings: Settings = field(default_factory=Settings)
    version: int = 0


@dataclass(frozen=True, eq=False)
class MaskFound:
    """A mask, the tissue where it was needed, and what the user must know."""

    mask: SlideMask
    tissue: SlideMask | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Answer:
    """A result with the model that gave it."""

    result: SlideResult
    loaded: LoadedModel


def load(ref: str, loaded: LoadedModel | None, settings: Settings) -> LoadedModel:
    """The model of a reference, unless it is loaded already."""
    from napari_msamil.checkpoint import load_checkpoint

    if loaded is not None:
        return loaded
    return load_checkpoint(ref, device=settings.runtime().device)


def find_mask_steps(question: Question, kind: str = "lesion") -> ProgressGen[MaskFound]:
    """Find the mask a classification would use, or the one asked for.

    Args:
        question: The slide and model.
        kind: `lesion` (the model's segmenter), `tissue` or `all` (the whole slide).
    """
    if kind != "lesion":
        yield Progress(Stage.MASK)
        return _found_without_model(question, kind)
    yield Progress(Stage.OPEN, message=RUN.loading)
    loaded = load(question.model_ref, question.loaded, question.settings)
    yield Progress(Stage.MASK)
    return _found_by(question, loaded)


def _found_without_model(question: Question, kind: str) -> MaskFound:
    import numpy as np

    from napari_msamil.config import TissueSpec
    from napari_msamil.masks import MaskSource, SlideMask
    from napari_msamil.tissue import find_tissue

    if kind == "all":
        everything = np.ones((1024, 1024), bool)
        size = question.slide.info.size_wh0
        return MaskFound(
            SlideMask(everything, size, MaskSource.USER), question.tissue, ()
        )
    tissue = find_tissue(question.slide, TissueSpec())
    return MaskFound(tissue, tissue, ())


def _found_by(question: Question, loaded: LoadedModel) -> MaskFound:
    from napari_msamil.pipeline import find_mask
    from napari_msamil.tissue import find_tissue

    spec = question.choice.applied(loaded.config.patches)
    tissue = question.tissue
    by_tissue = spec.strategy is not Strategy.LESION
    if tissue is None and (by_tissue or spec.fallback is Fallback.TISSUE):
        tissue = find_tissue(question.slide, loaded.config.tissue)
    if by_tissue and tissue is not None:
        return MaskFound(tissue, tissue, ())
    mask, notes = find_mask(question.slide, loaded, question.settings.runtime())
    return MaskFound(mask, tissue, notes)


def classify_question(question: Question) -> ProgressGen[Answer]:
    """Load the model, find a mask if there is none, classify.

    Yields:
        Progress; its `partial` is a `MaskFound` once, then `Answer`s with partial results.
    """
    from napari_msamil.pipeline import ClassifyOptions, classify_steps

    if question.loaded is None:
        yield Progress(Stage.OPEN, message=RUN.loading)
    loaded = load(question.model_ref, question.loaded, question.settings)
    mask, notes = question.mask, tuple[str, ...]()
    if mask is None:
        yield Progress(Stage.MASK)
        found = _found_by(question, loaded)
        mask, notes = found.mask, found.notes
        yield Progress(Stage.MASK, 1, 1, partial=found)
    options = ClassifyOptions(
        mask=mask,
        strategy=question.choice.strategy,
        threshold=question.choice.threshold,
        runtime=question.settings.runtime(),
        store=question.settings.store(),
        previous=question.previous,
    )
    steps = classify_steps(question.slide, loaded, options)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return Answer(_with_notes(end.value, notes), loaded)
        if step.partial is not None:
            step = replace(
                step, partial=Answer(_with_notes(step.partial, notes), loaded)
            )
        yield step


def _with_notes(result: SlideResult, notes: tuple[str, ...]) -> SlideResult:
    return replace(result, warnings=(*notes, *result.warnings)) if notes else result


def selftest_steps(
    ref: str, loaded: LoadedModel | None, settings: Settings
) -> ProgressGen[SelftestResult]:
    """Load a checkpoint and compare its recorded logits with those found here."""
    from napari_msamil.checkpoint import selftest

    yield Progress(Stage.OPEN, message=RUN.loading)
    model = load(ref, loaded, settings)
    yield Progress(Stage.VALIDATE)
    return selftest(model)


def sample_steps() -> ProgressGen[Path]:
    """Paint the demo slide into the cache folder, or find it there."""
    from napari_msamil.cache import cache_dir
    from napari_msamil.demo import demo_slide

    yield Progress(Stage.OPEN)
    return demo_slide(cache_dir() / "samples")
