"""One slide from pixels to answer: mask, patches, features, class. A generator, so it can be watched and stopped."""

from __future__ import annotations

import platform
import shlex
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.checkpoint import LoadedModel, load_checkpoint
from napari_msamil.config import Fallback, PatchSpec, Strategy
from napari_msamil.device import Runtime, choose_runtime
from napari_msamil.exact import one_thread
from napari_msamil.feature_store import FeatureStore
from napari_msamil.inference import FeatureBag, aggregate, encode_patches
from napari_msamil.masks import MaskSource, SlideMask
from napari_msamil.patches import PatchGrid, make_grid
from napari_msamil.progress import Progress, Stage, finish
from napari_msamil.reliability import judge
from napari_msamil.result import SlideResult, compare_results
from napari_msamil.slide import Slide, open_slide

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from napari_msamil.models.outputs import MILOutput
    from napari_msamil.progress import ProgressGen

PARTIAL_EVERY_S = 0.5
_PACKAGES = ("napari-msamil", "torch", "timm", "numpy", "openslide-python")


@dataclass(frozen=True, eq=False)
class ClassifyOptions:
    """How one slide is classified; None leaves the model's own value.

    Attributes:
        mask: Use this mask; None lets the model's segmenter make one (tissue, where it has none).
        strategy: Which patches are used.
        threshold: Lesion share a patch must exceed.
        fallback: What happens when no patch does.
        seed: Seed of the random strategy.
        runtime: Device and precision; None chooses.
        store: Feature cache; None uses none.
        compiled: Whether the encoder is compiled first: a wait that pays on many patches.
        previous: The answer before this one: the difference becomes part of the result.
        command: Command line to be stored with the result; None writes the one that repeats it.
    """

    mask: SlideMask | None = None
    strategy: Strategy | None = None
    threshold: float | None = None
    fallback: Fallback | None = None
    seed: int | None = None
    runtime: Runtime | None = None
    store: FeatureStore | None = None
    compiled: bool = False
    previous: SlideResult | None = None
    command: str | None = None

    def patch_spec(self, spec: PatchSpec) -> PatchSpec:
        """The model's selection with these options in it."""
        changes = {
            "strategy": self.strategy,
            "lesion_threshold": self.threshold,
            "fallback": self.fallback,
            "seed": self.seed,
        }
        found = {k: v for k, v in changes.items() if v is not None}
        return PatchSpec.model_validate({**spec.model_dump(), **found})


def classify(
    slide: Slide | Path | str,
    model: LoadedModel | Path | str = "demo",
    *,
    mpp: float | None = None,
    device: str = "auto",
    precision: str = "auto",
    cache: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> SlideResult:
    """Classify one slide.

    Args:
        slide: A path or an open slide.
        model: A loaded model, a path, `hf://owner/name[@revision]`, or `demo`.
        mpp: µm per level-0 pixel, where the file has none or a wrong one; only with a path.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        cache: Whether features are taken from, and put into, the cache folder.
        on_progress: Called with every step.
        options: Fields of `ClassifyOptions`.

    Raises:
        MsamilError: One of its children, with a sentence that says what to do.
    """
    runtime = options.pop("runtime", None) or choose_runtime(device, precision)
    if not isinstance(model, LoadedModel):
        model = load_checkpoint(model, device=runtime.device)
    options.setdefault("store", FeatureStore() if cache else None)
    asked = ClassifyOptions(runtime=runtime, **options)
    if not isinstance(slide, str | Path):
        return finish(classify_steps(slide, model, asked), on_progress)
    start = time.perf_counter()
    with open_slide(Path(slide), mpp=mpp) as opened:
        seconds = time.perf_counter() - start
        result = finish(classify_steps(opened, model, asked), on_progress)
    timings = {**result.timings_s, "open": seconds}
    timings["total"] += seconds
    return replace(result, timings_s=timings)


def classify_steps(
    slide: Slide, loaded: LoadedModel, options: ClassifyOptions | None = None
) -> ProgressGen[SlideResult]:
    """Classify one open slide step by step; closing the generator stops it.

    Args:
        slide: The open slide; it stays open.
        loaded: The model.
        options: How.

    Yields:
        Progress; about twice a second with a `SlideResult` of the patches so far as `partial`.

    Returns:
        The answer.

    Raises:
        ResolutionError: The slide has no pixel size, or is too coarse.
        SelectionError: There is no patch to classify.
        RegionError: Not one patch can be read.
    """
    options = options or ClassifyOptions()
    job = _Job(slide, loaded, options, options.runtime or choose_runtime())
    yield Progress(Stage.MASK)
    grid = job.select_patches()
    yield Progress(Stage.PATCHES, len(grid), len(grid))
    steps = encode_patches(
        slide, grid, loaded, job.runtime, options.store, compiled=options.compiled
    )
    bag = yield from job.with_partials(steps)
    yield Progress(Stage.AGGREGATE)
    result = job.result(bag)
    if options.previous is not None:
        result = replace(result, change=compare_results(options.previous, result))
    return result


def find_mask(
    slide: Slide, loaded: LoadedModel, runtime: Runtime | None = None
) -> tuple[SlideMask, tuple[str, ...]]:
    """The lesion mask of the model's segmenter; the tissue mask, with a sentence that says so, where it has none."""
    from napari_msamil.lesion import find_lesion
    from napari_msamil.tissue import find_tissue

    spec, segmenter = loaded.config.segmenter, loaded.model.segmenter
    if spec is not None and segmenter is not None:
        with one_thread(bool(runtime and runtime.exact)):
            return find_lesion(
                slide, segmenter, spec, runtime, tissue=loaded.config.tissue
            ), ()
    warning = "The model has no lesion segmenter: the tissue mask is used instead."
    return find_tissue(slide, loaded.config.tissue), (warning,)


class _Job:
    """The state of one classification between its steps."""

    def __init__(
        self,
        slide: Slide,
        loaded: LoadedModel,
        options: ClassifyOptions,
        runtime: Runtime,
    ) -> None:
        self.slide = slide
        self.loaded = loaded
        self.options = options
        self.runtime = runtime
        self.start = time.perf_counter()
        self.timings = dict.fromkeys(
            ("open", "mask", "read", "encode", "aggregate", "total"), 0.0
        )
        self.warnings = [*slide.info.warnings, *_model_warnings(loaded)]

    def select_patches(self) -> PatchGrid:
        """Mask and grid."""
        from napari_msamil.tissue import find_tissue

        start = time.perf_counter()
        spec = self.options.patch_spec(self.loaded.config.patches)
        tissue, notes = None, tuple[str, ...]()
        if spec.strategy is not Strategy.LESION or spec.fallback is Fallback.TISSUE:
            tissue = find_tissue(self.slide, self.loaded.config.tissue)
        if self.options.mask is not None:
            mask = self.options.mask
        elif tissue is not None and spec.strategy is not Strategy.LESION:
            mask = tissue
        else:
            mask, notes = find_mask(self.slide, self.loaded, self.runtime)
        if tissue is None and not mask.mask.any():
            tissue = find_tissue(self.slide, self.loaded.config.tissue)
        self.timings["mask"] = time.perf_counter() - start
        self.mask = mask
        grid = make_grid(self.slide.info, spec, mask, tissue=tissue)
        self.warnings += [*notes, *grid.warnings]
        return grid

    def with_partials(self, steps: ProgressGen[FeatureBag]) -> ProgressGen[FeatureBag]:
        """Hand progress on, now and then with an answer from the patches so far."""
        due = time.perf_counter() + PARTIAL_EVERY_S
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                bag: FeatureBag = end.value
                return bag
            partial, now = None, time.perf_counter()
            if now >= due and step.partial.valid.any() and not step.partial.valid.all():
                partial = self.result(step.partial, partial=True)
                # An aggregator that takes long is asked less often: at most a fifth of the time goes there.
                took = time.perf_counter() - now
                due = time.perf_counter() + max(PARTIAL_EVERY_S, 4 * took)
            yield replace(step, partial=partial)

    def result(self, bag: FeatureBag, *, partial: bool = False) -> SlideResult:
        """Ask the aggregator and put everything together."""
        start = time.perf_counter()
        output = aggregate(self.loaded, bag, self.runtime)
        logits = _row(output.logits)
        now = time.perf_counter()
        timings = {**self.timings, **bag.timings_s, "aggregate": now - start}
        timings["total"] = now - self.start
        config = self.loaded.config
        probabilities = _softmax(logits / config.temperature)
        trust = judge(self.loaded, bag, output, probabilities)
        return SlideResult(
            info=self.slide.info,
            model_name=config.name,
            model_sha256=self.loaded.sha256,
            classes=config.classes,
            logits=logits,
            probabilities=probabilities,
            grid=bag.grid,
            mask=self.mask,
            features=bag.features.copy() if partial else bag.features,
            valid=bag.valid.copy() if partial else bag.valid,
            timings_s=timings,
            warnings=(*trust.sentences, *self.warnings, *_bag_warnings(bag)),
            partial=partial,
            command=self.command(),
            software=dict(_software()),
            member_probabilities=trust.members,
            class_set=trust.class_set,
            coverage=trust.coverage,
            verdicts=trust.verdicts,
            **_explanations(output),
        )

    def command(self) -> str:
        """The command line that repeats this classification."""
        if self.options.command is not None:
            return self.options.command
        words = ["msamil", "classify", str(self.slide.info.path)]
        words += ["--model", str(self.loaded.path), "-o", "results"]
        if self.mask.source in (MaskSource.FILE, MaskSource.USER):
            words += ["--mask", "mask.geojson"]
        if self.options.strategy is not None:
            words += ["--patches", str(self.options.strategy)]
        if self.slide.info.mpp_source == "user":
            words += ["--mpp", str(self.slide.info.mpp)]
        words += ["--precision", str(self.runtime.precision)]
        return shlex.join(words)


def _explanations(output: MILOutput) -> dict[str, Any]:
    names = (
        "attention",
        "query_attention",
        "gates",
        "mining_attention",
        "instance_logits",
    )
    found = {name: getattr(output, name) for name in names}
    return {k: None if v is None else _row(v) for k, v in found.items()}


def _row(values: Tensor) -> NDArray[np.float32]:
    """The only bag of a batch as numpy."""
    array: NDArray[np.float32] = values[0].detach().float().cpu().numpy()
    return array


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    shares: NDArray[np.float32] = (powers / powers.sum()).astype(np.float32)
    return shares


def _model_warnings(loaded: LoadedModel) -> list[str]:
    if "synthetic" in str(loaded.provenance.get("data", "")).lower():
        return [
            "This model was trained on synthetic tissue: its answer has no medical meaning."
        ]
    return []


def _bag_warnings(bag: FeatureBag) -> list[str]:
    if not bag.faults:
        return []
    count, first = len(bag.faults), next(iter(bag.faults.values()))
    return [
        f"{count} of {len(bag)} patches could not be read and were left out: {first}"
    ]


@lru_cache(maxsize=1)
def _software() -> tuple[tuple[str, str], ...]:
    """Versions that an answer may depend on."""
    found = [("python", platform.python_version())]
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "not installed"))
    return tuple(found)
