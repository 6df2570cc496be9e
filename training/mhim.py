"""Train an aggregator with masked hard instance mining (MHIM-MIL) on feature bags.

    msamil-train mhim --config mhim-abmil-camelyon16 --cohort cohort.csv --bags features/ -o runs/mhim

First the plain network is trained on the same split with the recipe's `[mil]` table (or taken from `--pretrained`), then
teacher and student with `[mhim]`. `pretrain/` holds the first run, the folder itself the second, as `msamil-train mil`
writes them; `best.pt` has student and teacher, and `publish` takes the student. With `--visualise SLIDE …` the pictures of
the supplementary's Figures 1 and 2 are drawn into `pictures/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_msamil.errors import CheckpointError, CohortError, ConfigError

from .config import describe, section
from .mhim_task import MhimSpec, MhimTask, mining_spec, require_start
from .mil import (
    BagWork,
    add_bag_arguments,
    finish_run,
    log_data,
    steps_of,
)
from .mil_task import MilSpec, MilTask
from .start_weights import read_weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from torch import Tensor

    from .bag_dataset import BagDataset
    from .cohort import CohortRow
    from .loop import FitResult
    from .mhim_pictures import PictureAlbum

PRETRAIN = "pretrain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `msamil-train mhim`."""
    add_bag_arguments(parser)
    parser.add_argument(
        "--pretrained",
        type=Path,
        metavar="FILE",
        help="plain network trained on the same split (state or checkpoint); without it one is trained first",
    )
    parser.add_argument(
        "--visualise",
        nargs="+",
        default=[],
        metavar="SLIDE",
        help="draw Figures 1 and 2 for these slides of the cohort",
    )
    parser.epilog = (
        "Settings (--set mhim.KEY=VALUE; those of the plain network: mil.KEY=VALUE):\n"
        + describe(MhimSpec, "mhim")
    )


def run(args: argparse.Namespace) -> int:
    """Train as `add_arguments` describes."""
    from .state import claim

    work = BagWork(args)
    spec, plain = read_specs(work)
    parts = work.bags(spec)
    mining = mining_spec(work.model.aggregator, spec.layer)
    require_start(mining, spec, len(work.cohort.classes))
    shown = _shown_rows(work)
    about = work.description(mining, spec, parts)
    plainly = work.description(work.model.aggregator, plain, parts)
    claim(args.out, about, resume=args.resume)
    given = None
    if args.pretrained is None:
        _claim_plain(args.out, plainly, resume=args.resume)
    else:
        given = read_weights(args.pretrained, plainly)
    work.write_config({"mil": plain, "mhim": spec}, about)
    weights = given or pretrained_weights(work, plain, parts)
    if weights is None:
        return 130
    task = student_task(work, spec, parts, weights)
    album = _album(work, task, weights, shown) if shown else None
    result = train_student(work, task, parts)
    finish_run(args.out, task.aggregator, parts, work.cohort, result)
    if album is not None and result.reason != "stopped":
        album.finish()
    return 130 if result.reason == "stopped" else 0


def read_specs(work: BagWork) -> tuple[MhimSpec, MilSpec]:
    """Settings of the student and of the plain network, on the same scales.

    Raises:
        ConfigError: They name different scales.
    """
    spec = section(work.raw, "mhim", MhimSpec)
    plain = section(work.raw, "mil", MilSpec)
    if spec.scales and plain.scales and set(spec.scales) != set(plain.scales):
        raise ConfigError(
            f"mhim.scales ({', '.join(spec.scales)}) and mil.scales ({', '.join(plain.scales)}) differ, but the student "
            "starts from the plain network. Give both the same."
        )
    scales = spec.scales or plain.scales
    return spec.model_copy(update={"scales": scales}), plain


def _claim_plain(out: Path, description: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse a plain network of something else, and another one than the student began with."""
    from .state import LAST, changed_settings, claim, load_state

    last = out / PRETRAIN / LAST
    if resume and (out / LAST).is_file() and last.is_file():
        other = changed_settings(load_state(last), description, ended=True)
        if other:
            raise CheckpointError(
                f"The student in {out} began with a plain network that was trained with another value of mil.{other[0]}. Give "
                "the same to go on, or train into another folder."
            )
    claim(out / PRETRAIN, description, resume=resume)


def pretrained_weights(
    work: BagWork, spec: MilSpec, parts: dict[str, BagDataset]
) -> dict[str, Tensor] | None:
    """Weights of the plain network: finished before with these settings, or trained now; None if a signal stopped it."""
    from .log import RunLog
    from .loop import fit
    from .state import seed_everything

    args = work.args
    now = work.description(work.model.aggregator, spec, parts)
    folder = args.out / PRETRAIN
    if not (args.resume and _is_done(folder, now)):
        seed_everything(spec.seed)
        task = MilTask(
            work.model.aggregator,
            spec,
            parts["train"],
            parts.get("val"),
            work.cohort.classes,
            work.notes(),
        )
        with RunLog(folder, steps_of(spec, len(parts["train"])), title="plain") as log:
            log_data(log, parts, None)
            result = fit(task, spec, folder, log, resume=args.resume)
        if result.reason == "stopped":
            return None
        finish_run(folder, task.aggregator, parts, work.cohort, result)
    return read_weights(folder, now)


def _is_done(folder: Path, description: Mapping[str, Any]) -> bool:
    """Whether a training ended, and with these settings: one that is to last longer goes on."""
    from .state import LAST, changed_settings, load_state

    if not (folder / "predictions.csv").is_file() or not (folder / LAST).is_file():
        return False
    return not changed_settings(load_state(folder / LAST), description, ended=True)


def student_task(
    work: BagWork,
    spec: MhimSpec,
    parts: dict[str, BagDataset],
    weights: dict[str, Tensor],
) -> MhimTask:
    """Student and teacher of the second stage, ready to train."""
    from .state import seed_everything

    seed_everything(spec.seed)
    return MhimTask(
        work.model.aggregator,
        spec,
        parts["train"],
        parts.get("val"),
        work.cohort.classes,
        weights,
        work.notes(),
    )


def train_student(
    work: BagWork, task: MhimTask, parts: dict[str, BagDataset]
) -> FitResult:
    """The second stage."""
    from .log import RunLog
    from .loop import fit

    args = work.args
    steps = steps_of(task.settings, len(parts["train"]))
    with RunLog(args.out, steps, title="mhim") as log:
        log_data(log, parts, args.pretrained)
        return fit(task, task.settings, args.out, log, resume=args.resume)


def _shown_rows(work: BagWork) -> list[CohortRow]:
    """The slides of `--visualise`."""
    wanted = set(work.args.visualise)
    rows = [row for row in work.cohort.rows if row.slide_id in wanted]
    missing = wanted - {row.slide_id for row in rows}
    if missing:
        raise CohortError(
            f"No slide of {work.args.cohort} is called {', '.join(sorted(missing))}. Check --visualise."
        )
    return rows


def _album(
    work: BagWork, task: MhimTask, weights: dict[str, Tensor], rows: list[CohortRow]
) -> PictureAlbum:
    import torch

    from .mhim_pictures import PictureAlbum

    with torch.random.fork_rng():  # who looks on does not change what is drawn
        return PictureAlbum(
            work.cohort,
            rows,
            work.args.bags,
            task,
            weights,
            work.args.out / "pictures",
            resume=work.args.resume,
        )
