"""One slide of many: classify it, write its folder, say how it went. Runs here, in a worker, or on a cluster."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import MaskError, MsamilError, StoreError
from napari_msamil.progress import finish

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from napari_msamil.batch_inputs import SlideJob
    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.device import Runtime
    from napari_msamil.masks import SlideMask
    from napari_msamil.pipeline import ClassifyOptions
    from napari_msamil.progress import Progress, ProgressGen
    from napari_msamil.result import SlideResult
    from napari_msamil.slide.base import Slide

RUN_FILE = "run.json"
"""Written into a result folder last: what it was made with. Only a folder that has it counts as finished."""
_FAULTS = (
    OSError,
    ArithmeticError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What one odd slide may raise somewhere deep in a library; it must not stop the others."""


@dataclass(frozen=True)
class BatchOptions:
    """How many slides are classified.

    Attributes:
        model: Path, `hf://owner/name[@revision]`, or `demo`.
        output: Folder of the result folders.
        mask: Mask file of a single slide, or folder of masks by slide name.
        patches: `lesion`, `tissue` or `random`; None leaves the model's choice.
        threshold: Lesion share a patch must exceed; None leaves the model's.
        mpp: µm per level-0 pixel for slides that have none or a wrong one.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        workers: Slides at once on this machine.
        cluster: Dask scheduler `tcp://…`, or `local:N`.
        use_cache: Whether features are cached.
        report: Whether `report.html` is written too.
        backend: Who decodes tiles, as in `open_slide`.
        compiled: Whether the encoder is compiled first.
        command: Command line, stored with each result.
        model_sha256: Hash of the model file; found by `classify_many`.
    """

    output: Path
    model: str = "demo"
    mask: Path | None = None
    patches: str | None = None
    threshold: float | None = None
    mpp: float | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int = 1
    cluster: str | None = None
    use_cache: bool = True
    report: bool = False
    backend: str = "auto"
    compiled: bool = False
    command: str | None = None
    model_sha256: str = ""


@dataclass(frozen=True)
class SlideRow:
    """How one slide went: a row of `summary.csv`.

    Attributes:
        slide: Name of its result folder.
        path: Slide file or folder.
        status: `done`, `skipped` (finished before) or `failed`.
        prediction: Most probable class, or empty.
        probability: Its probability.
        probabilities: By class name.
        patches: Encoded patches, all scales together.
        seconds: Wall time.
        read_s: Time spent reading.
        encode_s: Time spent encoding.
        error: Why it failed, or empty.
        warnings: What the result warns of.
    """

    slide: str
    path: str
    status: str
    prediction: str = ""
    probability: float = 0.0
    probabilities: dict[str, float] = field(default_factory=dict)
    patches: int = 0
    seconds: float = 0.0
    read_s: float = 0.0
    encode_s: float = 0.0
    error: str = ""
    warnings: tuple[str, ...] = ()


def job_steps(job: SlideJob, options: BatchOptions) -> ProgressGen[SlideRow]:
    """Classify one slide and write its folder; whatever is wrong with it ends up in the row.

    Args:
        job: The slide.
        options: How.
    """
    start = time.perf_counter()
    try:
        if job.fault:
            raise MaskError(job.fault)
        row = yield from _classify(job, options)
    except MsamilError as error:
        row = SlideRow(job.name, str(job.path), "failed", error=str(error))
    except _FAULTS as error:
        text = f"{job.path}: unexpected {type(error).__name__}: {error}"
        row = SlideRow(job.name, str(job.path), "failed", error=text)
    return replace(row, seconds=time.perf_counter() - start)


def run_job(
    job: SlideJob,
    options: BatchOptions,
    report: Callable[[Progress], None] | None = None,
) -> SlideRow:
    """`job_steps` to its end; `report` is called with every step."""
    return finish(job_steps(job, options), report)


def finished_row(job: SlideJob, options: BatchOptions) -> SlideRow | None:
    """The row of a slide that was finished before with the same file, model, mask and options; else None."""
    folder = options.output / job.name
    try:
        made_with = json.loads((folder / RUN_FILE).read_text("utf-8"))
        if made_with != fingerprint(job, options):
            return None
        document = json.loads((folder / "result.json").read_text("utf-8"))
        probabilities = document["probabilities"]
        return SlideRow(
            job.name,
            str(job.path),
            "skipped",
            document["prediction"],
            probabilities[document["prediction"]],
            probabilities,
            sum(document["patches"].values()),
            warnings=tuple(document["warnings"]),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def fingerprint(job: SlideJob, options: BatchOptions) -> dict[str, Any]:
    """Everything an answer depends on, as plain JSON; cheap: no pixel is read."""
    unusual = {
        "backend": options.backend if options.backend != "auto" else None,
        "compiled": options.compiled or None,
    }
    return {
        "slide": _file_state(job.path),
        "model": options.model_sha256,
        "mask": _content(job.mask),
        "patches": options.patches,
        "threshold": options.threshold,
        "mpp": job.mpp,
        "precision": options.precision,
        "report": options.report,
        **{key: value for key, value in unusual.items() if value is not None},
    }


def _file_state(path: Path) -> list[list[str | int]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(p.name, p.stat()) for p in files]
    return [[name, s.st_size, s.st_mtime_ns] for name, s in stats]


def _content(path: Path | None) -> str | None:
    if path is None:
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _classify(job: SlideJob, options: BatchOptions) -> ProgressGen[SlideRow]:
    from napari_msamil.export import write_json
    from napari_msamil.pipeline import classify_steps
    from napari_msamil.slide import open_slide

    runtime, loaded = _tools(options.device, options.precision, options.model)
    folder = options.output / job.name
    before = fingerprint(job, options)
    start = time.perf_counter()
    with open_slide(job.path, mpp=job.mpp, backend=options.backend) as slide:
        opened = time.perf_counter() - start
        asked = _asked(job, options, slide, runtime)
        result = yield from classify_steps(slide, loaded, asked)
        timings = {**result.timings_s, "open": opened}
        timings["total"] += opened
        result = replace(result, timings_s=timings)
        _write(result, folder, slide, options)
    with suppress(FileNotFoundError):  # another run has just put its own folder there
        write_json(before, folder / RUN_FILE)
    return _row(job, result)


@lru_cache(maxsize=2)
def _tools(device: str, precision: str, model: str) -> tuple[Runtime, LoadedModel]:
    """Runtime and model, loaded once per process."""
    from napari_msamil.checkpoint import load_checkpoint
    from napari_msamil.device import choose_runtime

    runtime = choose_runtime(device, precision)
    return runtime, load_checkpoint(model, device=runtime.device)


def _asked(
    job: SlideJob, options: BatchOptions, slide: Slide, runtime: Runtime
) -> ClassifyOptions:
    from napari_msamil.config import Strategy
    from napari_msamil.feature_store import FeatureStore
    from napari_msamil.pipeline import ClassifyOptions

    return ClassifyOptions(
        mask=_read_mask(job, slide),
        strategy=Strategy(options.patches) if options.patches else None,
        threshold=options.threshold,
        runtime=runtime,
        store=FeatureStore() if options.use_cache else None,
        compiled=options.compiled,
        command=options.command,
    )


def _read_mask(job: SlideJob, slide: Slide) -> SlideMask | None:
    from napari_msamil.annotations import read_mask

    return read_mask(job.mask, slide.info.size_wh0) if job.mask else None


def _write(
    result: SlideResult, folder: Path, slide: Slide, options: BatchOptions
) -> None:
    from napari_msamil.export import write_result
    from napari_msamil.report import write_report

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_result(result, folder, slide)
        if options.report:
            write_report(result, folder / "report.html", slide)
    except OSError as error:
        raise StoreError(
            f"The result folder {folder} cannot be written ({error.strerror or error}). "
            "Make room on the disk, or choose another folder, and run the same command again."
        ) from error


def _row(job: SlideJob, result: SlideResult) -> SlideRow:
    probabilities = dict(
        zip(result.classes, result.probabilities.tolist(), strict=True)
    )
    return SlideRow(
        job.name,
        str(job.path),
        "done",
        result.prediction,
        probabilities[result.prediction],
        probabilities,
        sum(result.counts.values()),
        read_s=result.timings_s["read"],
        encode_s=result.timings_s["encode"],
        warnings=result.warnings,
    )
