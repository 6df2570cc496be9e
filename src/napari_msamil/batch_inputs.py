"""From the words of a command line to slides: files, DICOM folders, folders, globs, cohort tables."""

from __future__ import annotations

import csv
import glob
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_msamil.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# fmt: off
SLIDE_SUFFIXES = frozenset({
    ".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm",
})
# fmt: on
"""What is taken from a folder; a file named on its own may have any suffix."""
_PATH_COLUMNS = ("slide_path", "path", "file", "slide")
_GLOB_SIGNS = frozenset("*?[")


@dataclass(frozen=True)
class SlideJob:
    """One slide to classify.

    Attributes:
        path: Slide file or DICOM folder.
        name: Name of its result folder; differs within a run.
        mask: Mask or annotation file, or None: the model makes one.
        mpp: µm per level-0 pixel, replacing what the file says, or None.
        fault: Why it cannot be classified, known before it is opened; empty otherwise.
    """

    path: Path
    name: str
    mask: Path | None = None
    mpp: float | None = None
    fault: str = ""


def find_slides(
    words: Sequence[str | Path], mask: Path | None = None, mpp: float | None = None
) -> list[SlideJob]:
    """Find every slide that was asked for, each once, in a stable order.

    Args:
        words: Files, DICOM folders, folders of slides, globs, or cohort tables (`.csv` with a column `slide_path`,
            `path`, `file` or `slide`, and optionally `mask` and `mpp`; relative paths start at the table).
        mask: A mask file for a single slide, or a folder of them by slide name.
        mpp: Pixel size for slides whose table row has none.

    Raises:
        ConfigError: A word matches nothing, a table has no usable column, or one mask is given for many slides.
    """
    found: dict[Path, SlideJob] = {}
    for word in words:
        for job in _expand(word):
            found.setdefault(job.path.resolve(), job)
    if mask is not None and not mask.is_dir() and len(found) > 1:
        raise ConfigError(
            f"One mask file cannot serve {len(found)} slides. Give a folder of masks named after the slides."
        )
    jobs = [
        replace(job, mpp=mpp if job.mpp is None else job.mpp) for job in found.values()
    ]
    return [_with_mask(job, mask) for job in _distinct_names(jobs)]


def _expand(word: str | Path) -> Iterator[SlideJob]:
    path = Path(word).expanduser()
    if path.suffix.lower() == ".csv":
        yield from _from_table(path)
    elif path.is_dir():
        yield from map(_job, _from_folder(path))
    elif not path.exists() and _GLOB_SIGNS.intersection(str(word)):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
        if not matches:
            raise ConfigError(f"No file matches {word}. Check the pattern.")
        for match in matches:
            yield from _expand(match)
    else:
        yield _job(path)


def _job(path: Path) -> SlideJob:
    """A DICOM file stands for its folder, so that a slide of many files is one slide."""
    if path.suffix.lower() == ".dcm" and _is_dicom_folder(path.parent):
        path = path.parent
    return SlideJob(path, path.name if path.is_dir() else path.stem)


def _is_dicom_folder(folder: Path) -> bool:
    """Whether a folder is one DICOM slide: it holds DICOM files and nothing else."""
    files = [p for p in folder.iterdir() if not p.name.startswith(".")]
    return bool(files) and all(p.suffix.lower() == ".dcm" for p in files)


def _from_folder(folder: Path) -> list[Path]:
    """A DICOM folder itself, or the slides inside a folder (files, and DICOM folders one step down)."""
    if _is_dicom_folder(folder):
        return [folder]
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    slides = [
        p
        for p in inside
        if (p.is_dir() and _is_dicom_folder(p))
        or (p.is_file() and p.suffix.lower() in SLIDE_SUFFIXES)
    ]
    if not slides:
        raise ConfigError(f"There is no slide in the folder {folder}. Check the path.")
    return slides


def _from_table(path: Path) -> Iterator[SlideJob]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"The cohort table {path} cannot be read: {error}."
        ) from error
    names = set(rows[0]) if rows else set()
    column = next((c for c in _PATH_COLUMNS if c in names), None)
    if column is None:
        raise ConfigError(
            f"The cohort table {path} has no rows with a column slide_path. Add one with the slides' paths."
        )
    for row in rows:
        slide = _job(path.parent / row[column])
        mask = path.parent / row["mask"] if row.get("mask") else None
        yield replace(slide, mask=mask, mpp=_number(row.get("mpp"), path))


def _number(text: str | None, path: Path) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise ConfigError(
            f"The cohort table {path} has the mpp {text!r}, which is no number."
        ) from error


def _distinct_names(jobs: list[SlideJob]) -> list[SlideJob]:
    """Slides of one name get their folder's name in front, and a number if that is not enough."""
    counts = Counter(job.name for job in jobs)
    named = [
        replace(job, name=f"{job.path.parent.name}__{job.name}")
        if counts[job.name] > 1
        else job
        for job in jobs
    ]
    seen: Counter[str] = Counter()
    result = []
    for job in named:
        seen[job.name] += 1
        again = seen[job.name]
        result.append(replace(job, name=f"{job.name}__{again}") if again > 1 else job)
    return result


def _with_mask(job: SlideJob, mask: Path | None) -> SlideJob:
    if job.mask is not None or mask is None:
        return job
    if not mask.is_dir():
        return replace(job, mask=mask)
    fits = sorted(p for p in mask.iterdir() if p.stem in (job.name, job.path.stem))
    if fits:
        return replace(job, mask=fits[0])
    fault = (
        f"There is no mask named {job.name} in {mask}. Add it, or leave the slide out."
    )
    return replace(job, fault=fault)
