"""Many slides: one result folder each, finished ones are skipped, and a bad one never stops the others."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_msamil.device import choose_runtime
from napari_msamil.errors import ConfigError, MsamilError
from napari_msamil.progress import Progress, Stage
from napari_msamil.slide.discover import find_slides

if TYPE_CHECKING:
    from pathlib import Path

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.feature_store import FeatureStore
    from napari_msamil.masks import SlideMask
    from napari_msamil.progress import ProgressGen
    from napari_msamil.slide.base import SlideInfo

SUMMARY_FIELDS = (
    "slide",
    "status",
    "prediction",
    "probability",
    "seconds",
    "error",
    "path",
)


@dataclass(frozen=True)
class BatchOptions:
    """How many slides are classified.

    Attributes:
        model: Path, `hf://…` or `demo`.
        output: Folder of the result folders and of `summary.csv`.
        mask: A mask or annotation file, or a folder of them named as the slides.
        patches: `lesion`, `tissue`, `random`, or None: the model's.
        mpp: µm per level-0 pixel for files that have none or a wrong one.
        device, precision: See `device.choose_runtime`.
        workers: Slides at once on this machine.
        cluster: Dask scheduler `tcp://…`, or `local:N`, or None.
        use_cache: Whether features are read from and kept in the cache folder.
        report: Whether `report.html` is written too.
        command: The command line, stored with each result.
    """

    model: str
    output: Path
    mask: Path | None = None
    patches: str | None = None
    mpp: float | None = None
    device: str = "auto"
    precision: str = "auto"
    workers: int = 1
    cluster: str | None = None
    use_cache: bool = True
    report: bool = False
    command: str = ""


@dataclass(frozen=True)
class BatchRow:
    """One slide of the summary; `error` is empty where it was done."""

    slide: str
    path: str
    status: str
    prediction: str = ""
    probability: float = 0.0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class BatchSummary:
    """What became of many slides."""

    rows: tuple[BatchRow, ...]

    @property
    def failed(self) -> int:
        """Number of slides without a result."""
        return sum(bool(row.error) for row in self.rows)

    @property
    def sentence(self) -> str:
        """One line for a person."""
        done = len(self.rows) - self.failed
        return f"{done} of {len(self.rows)} slides done, {self.failed} failed"


def classify_many(
    slides: list[str], options: BatchOptions
) -> ProgressGen[BatchSummary]:
    """Classify slides one after the other.

    Args:
        slides: Files, DICOM folders, folders or globs.
        options: How.

    Yields:
        Progress, one step per finished slide.

    Raises:
        ConfigError: There is nothing to do.
    """
    from napari_msamil.checkpoint import load_checkpoint
    from napari_msamil.feature_store import FeatureStore

    paths = find_slides(slides)
    runtime = choose_runtime(options.device, options.precision)
    loaded = load_checkpoint(options.model, device=runtime.device)
    store = FeatureStore() if options.use_cache else None
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[BatchRow] = []
    for number, path in enumerate(paths):
        yield Progress(Stage.ENCODE, number, len(paths), path.name)
        rows.append(classify_one(path, loaded, options, store))
        write_summary(rows, options.output / "summary.csv")
    return BatchSummary(tuple(rows))


def classify_one(
    path: Path, loaded: LoadedModel, options: BatchOptions, store: FeatureStore | None
) -> BatchRow:
    """Classify one slide into its folder; an expected error becomes the row's reason."""
    from napari_msamil.export import write_result
    from napari_msamil.pipeline import classify
    from napari_msamil.slide import open_slide

    name = path.stem or path.name
    folder = options.output / name
    done = finished_row(folder, path, loaded)
    if done is not None:
        return done
    start = time.perf_counter()
    try:
        with open_slide(path, mpp=options.mpp) as slide:
            mask = find_mask_file(options.mask, name, slide.info)
            result = classify(
                slide, loaded, device=options.device, precision=options.precision, store=store,
                mask=mask, strategy=options.patches, command=options.command,
            )  # fmt: skip
            write_result(result, folder, slide)
            if options.report:
                from napari_msamil.report import write_report

                write_report(result, folder / "report.html", slide)
    except MsamilError as error:
        return BatchRow(name, str(path), "failed", error=str(error))
    seconds = time.perf_counter() - start
    top = float(result.probabilities.max())
    return BatchRow(name, str(path), "done", result.prediction, top, seconds)


def finished_row(folder: Path, path: Path, loaded: LoadedModel) -> BatchRow | None:
    """The row of a slide that an earlier run finished with the same model, or None."""
    try:
        document = json.loads((folder / "result.json").read_text("utf-8"))
        same = document["model"]["sha256"] == loaded.sha256 and document["slide"][
            "path"
        ] == str(path)
        probability = document["probabilities"][document["prediction"]]
    except (OSError, ValueError, KeyError):
        return None
    if not same or document.get("partial"):
        return None
    return BatchRow(
        folder.name, str(path), "skipped", document["prediction"], probability
    )


def find_mask_file(where: Path | None, name: str, info: SlideInfo) -> SlideMask | None:
    """Read the mask given for a slide: the file itself, or the one of its name in a folder.

    Raises:
        ConfigError: A folder was given and holds no file of that name.
    """
    from napari_msamil.annotations import read_mask

    if where is None:
        return None
    if where.is_dir():
        matches = sorted(p for p in where.iterdir() if p.stem == name)
        if not matches:
            raise ConfigError(f"The folder {where} holds no mask named {name}.")
        where = matches[0]
    return read_mask(where, info.size_wh0)


def write_summary(rows: list[BatchRow], path: Path) -> None:
    """Write `summary.csv` beside, then rename."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, SUMMARY_FIELDS)
        writer.writeheader()
        writer.writerows(
            {key: getattr(row, key) for key in SUMMARY_FIELDS} for row in rows
        )
    part.replace(path)
