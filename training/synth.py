"""Write a synthetic cohort: H&E-like slides as real pyramidal TIFFs, lesion masks, labels, patients and splits.

The folder holds `slides/*.tiff`, `masks/*.png` (2 µm per pixel), `cohort.csv` with paths relative to itself, and
`synth.json`, the settings. The same settings and seed give the same pixels; a second run writes only what is missing.
"""

from __future__ import annotations

import csv
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import CohortError
from napari_msamil.progress import Progress, ProgressGen, Stage, finish
from napari_msamil.slide.write import write_pyramid_tiff
from napari_msamil.synthetic import LesionSize, SlideRecipe, SynthSlide, paint_slide

from .synth_plan import (
    COLUMNS,
    FOUR_CLASSES,
    SynthSpec,
    blank_rows,
    plan_rows,
    slide_recipe,
)

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train synth`."""
    spec = SynthSpec()
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--slides", type=int, default=spec.slides)
    parser.add_argument("--seed", type=int, default=spec.seed)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=spec.size_wh,
        metavar=("W", "H"),
        help="pixels of 0.5 µm",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=list(spec.classes),
        metavar="NAME",
        help=f"of normal, {', '.join(FOUR_CLASSES)}",
    )
    parser.add_argument(
        "--lesion-size", choices=[*LesionSize, "mixed"], default=LesionSize.LARGE.value
    )
    parser.add_argument(
        "--slides-per-patient",
        type=int,
        nargs=2,
        default=spec.slides_per_patient,
        metavar=("MIN", "MAX"),
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs=3,
        default=spec.shares,
        metavar=("TRAIN", "VAL", "TEST"),
    )
    _add_shares(parser, spec)


def _add_shares(parser: argparse.ArgumentParser, spec: SynthSpec) -> None:
    parser.add_argument("--pen-share", type=float, default=spec.pen_share)
    parser.add_argument(
        "--forty-share",
        type=float,
        default=spec.forty_share,
        help="share of 40x slides",
    )
    parser.add_argument(
        "--odd-share",
        type=float,
        default=spec.odd_share,
        help="share with 0.46 or 0.2277 µm per pixel",
    )
    parser.add_argument(
        "--blank", type=int, default=0, metavar="N", help="also write N empty slides"
    )
    parser.add_argument(
        "--jobs", type=int, default=None, help="processes (default: all cores)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the cohort and say where it is."""
    from tqdm import tqdm

    spec = SynthSpec(
        slides=args.slides,
        seed=args.seed,
        size_wh=tuple(args.size),
        classes=tuple(args.classes),
        lesion_size=None if args.lesion_size == "mixed" else args.lesion_size,
        slides_per_patient=tuple(args.slides_per_patient),
        shares=tuple(args.shares),
        pen_share=args.pen_share,
        forty_share=args.forty_share,
        odd_share=args.odd_share,
        blank=args.blank,
    )
    with tqdm(total=spec.slides + spec.blank, unit="slide") as bar:
        table = finish(
            make_cohort(args.output, spec, jobs=args.jobs),
            lambda step: _advance(bar, step),
        )
    print(table)  # noqa: T201
    return 0


def _advance(bar: Any, step: Progress) -> None:
    bar.update(step.done - bar.n)


def make_slide(recipe: SlideRecipe) -> SynthSlide:
    """Paint one slide in memory."""
    return paint_slide(recipe)


def make_cohort(
    folder: Path, spec: SynthSpec, *, jobs: int | None = None
) -> ProgressGen[Path]:
    """Write a cohort.

    Args:
        folder: Where to; made if absent.
        spec: What to write.
        jobs: Processes; None is all cores, 1 stays in this process.

    Returns:
        Path of `cohort.csv`.

    Raises:
        CohortError: The folder holds a cohort with other settings.
    """
    _claim(folder, spec)
    rows = plan_rows(spec)
    tasks = [(folder, row, slide_recipe(spec, row)) for row in rows]
    tasks += [
        (folder / "blank", row, slide_recipe(spec, row)) for row in blank_rows(spec)
    ]
    todo = [t for t in tasks if not _is_done(t[0], t[1])]
    done = len(tasks) - len(todo)
    yield Progress(Stage.EXPORT, done, len(tasks))
    for _ in _work(todo, jobs):
        done += 1
        yield Progress(Stage.EXPORT, done, len(tasks))
    table = folder / "cohort.csv"
    _write_table(table, rows)
    return table


def _work(
    tasks: list[tuple[Path, dict[str, Any], SlideRecipe]], jobs: int | None
) -> Any:
    """Run the tasks, yielding after each."""
    workers = min(jobs or os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield _make_one(task)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_make_one, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _make_one(task: tuple[Path, dict[str, Any], SlideRecipe]) -> str:
    """Paint and write one slide with its mask (in a worker process)."""
    from PIL import Image

    folder, row, recipe = task
    slide = paint_slide(recipe)
    path = folder / row["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    if row["mask"]:
        mask = folder / row["mask"]
        mask.parent.mkdir(parents=True, exist_ok=True)
        beside = mask.with_suffix(".part.png")
        Image.fromarray(slide.mask).save(beside)
        beside.replace(mask)
    write_pyramid_tiff(
        path, slide.pixels, mpp=slide.mpp, objective=slide.objective, quality=85
    )
    return str(row["slide_id"])


def _is_done(folder: Path, row: dict[str, Any]) -> bool:
    return (folder / row["path"]).exists() and (
        not row["mask"] or (folder / row["mask"]).exists()
    )


def _claim(folder: Path, spec: SynthSpec) -> None:
    """Write the settings, or refuse a folder that holds others."""
    settings = folder / "synth.json"
    wanted = spec.model_dump(mode="json")
    if settings.exists() and json.loads(settings.read_text(encoding="utf-8")) != wanted:
        raise CohortError(
            f"{folder} holds a synthetic cohort with other settings. Choose another folder, or delete it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    beside = path.with_suffix(".part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)
