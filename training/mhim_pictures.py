"""Figures 1 and 2 of the MHIM-MIL supplementary for chosen slides, gathered while a student trains."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_msamil.annotations import read_mask
from napari_msamil.errors import MaskError, SlideError
from napari_msamil.lesion import lesion_thumbnail
from napari_msamil.models import build_aggregator
from napari_msamil.slide import open_slide

from .bag_cohort import bag_path, keep_scales
from .bag_dataset import BagDataset
from .bags import StoredBag, load_bag
from .loop import Visit
from .mil_task import load_weights
from .state import load_state, save_state
from .visualise import (
    InstanceView,
    PatchMap,
    draw_columns,
    draw_progress,
    view_instances,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from .cohort import Cohort, CohortRow
    from .mhim_task import MhimTask

STAGES = (0.0, 0.05, 0.25, 1.0)
"""Shares of the planned epochs at which the student is looked at."""
KEPT = "stages.pt"
"""What the student saw at each stage so far: a resumed training shows the stages before it, too."""
_THUMBNAIL_PX = 1024


class PictureAlbum:
    """Watches a student and draws what it saw.

    Args:
        cohort: For class names.
        rows: The slides.
        folder: Of the bags.
        task: The training; its `on_epoch` is taken.
        pretrained: Weights of the plain network.
        out: Where the pictures go, and what they are drawn from.
        resume: Whether the training goes on: the stages that are kept in `out` count.
    """

    def __init__(
        self,
        cohort: Cohort,
        rows: Sequence[CohortRow],
        folder: Path,
        task: MhimTask,
        pretrained: dict[str, Tensor],
        out: Path,
        *,
        resume: bool = False,
    ) -> None:
        self.task, self.rows, self.out = task, list(rows), out
        self.bags = [_usable(_load(folder, row, task)) for row in rows]
        device = task.train.features.device
        self.data = BagDataset(self.bags, cohort.labels(rows), device)
        plain = build_aggregator(task.spec, len(cohort.classes)).to(device)
        load_weights(plain, pretrained, "the pretrained network")
        self.plain = [self._view(plain, i) for i in range(len(rows))]
        self.stages: dict[int, dict[str, InstanceView]] = {}
        if resume and (out / KEPT).is_file():
            self.stages = _read_stages(out / KEPT)
        self._due = [int(s * task.settings.epochs) for s in STAGES[:-1]]
        task.on_epoch = self._on_epoch

    def finish(self) -> None:
        """Draw both figures of every slide and write the figures behind them as CSV."""
        for i, row in enumerate(self.rows):
            places = PatchMap(self.bags[i], *_ground(row, self.bags[i]))
            masked = self._masked(i)
            last = self._view(self.task.aggregator, i)
            title = f"{row.slide_id} ({row.label})"
            columns = self.out / f"{row.slide_id}_masked.png"
            draw_columns(places, self.plain[i], masked, last, columns, title)
            views = [*self._stages_of(i), ("end", last)]
            draw_progress(
                places, views, self.out / f"{row.slide_id}_progress.png", title
            )
            table = self.out / f"{row.slide_id}.csv"
            _write_table(table, self.bags[i], self.plain[i], masked, last)

    def _stages_of(self, index: int) -> list[tuple[str, InstanceView]]:
        """The stages at which this slide was looked at; one may be asked for only after a resume."""
        name, count = self.rows[index].slide_id, len(self.bags[index].scale)
        found = ((e, s[name]) for e, s in sorted(self.stages.items()) if name in s)
        return [(f"epoch {e}", v) for e, v in found if len(v.attention) == count]

    def _on_epoch(self, epoch: int) -> None:
        known = self.stages.get(epoch, {})
        if epoch not in self._due or any(r.slide_id in known for r in self.rows):
            return  # an epoch that goes on after a resume was looked at where it began
        self.stages[epoch] = known | {
            row.slide_id: self._view(self.task.aggregator, i)
            for i, row in enumerate(self.rows)
        }
        _keep_stages(self.out / KEPT, self.stages)

    def _view(self, network: object, index: int) -> InstanceView:
        from napari_msamil.models.base import Aggregator

        assert isinstance(network, Aggregator)
        return view_instances(
            network, self.data.one(index), self.data.label_list[index]
        )

    def _masked(self, index: int) -> NDArray[np.bool_]:
        """What the first visit would mask with today's teacher."""
        seen = self.task.look(self.data.one(index))
        masked = self.task.mask_of(seen, self.data, index, Visit(index, 0, index, 1.0))
        return np.asarray(masked.cpu().numpy(), np.bool_)


def _keep_stages(path: Path, stages: Mapping[int, Mapping[str, InstanceView]]) -> None:
    plain = {
        epoch: {
            name: {
                "attention": torch.from_numpy(view.attention),
                "probability": torch.from_numpy(view.probability),
                "bag_probability": view.bag_probability,
            }
            for name, view in views.items()
        }
        for epoch, views in stages.items()
    }
    save_state(path, "stages", {"stages": plain})


def _read_stages(path: Path) -> dict[int, dict[str, InstanceView]]:
    return {
        epoch: {
            name: InstanceView(
                view["attention"].numpy(),
                view["probability"].numpy(),
                view["bag_probability"],
            )
            for name, view in views.items()
        }
        for epoch, views in load_state(path, "stages")["stages"].items()
    }


def _load(folder: Path, row: CohortRow, task: MhimTask) -> StoredBag:
    path = bag_path(folder, row.slide_id) or folder / f"{row.slide_id}.pt"
    return keep_scales(load_bag(path), task.train.scale_names)


def _usable(bag: StoredBag) -> StoredBag:
    """The bag without patches that could not be read, as the data set holds it."""
    keep = bag.valid.bool()
    rows = {
        name: getattr(bag, name)[keep]
        for name in ("features", "coords_xy0", "scale", "valid")
    }
    return StoredBag(
        **rows,
        size_px0=bag.size_px0,
        size_wh0=bag.size_wh0,
        mpp=bag.mpp,
        scale_names=bag.scale_names,
        encoder_id=bag.encoder_id,
        slide=bag.slide,
    )


def _ground(
    row: CohortRow, bag: StoredBag
) -> tuple[NDArray[np.uint8] | None, NDArray[np.bool_] | None]:
    """Thumbnail and lesion where the files are at hand; a picture without them is still a picture."""
    thumbnail = lesion = None
    try:
        with open_slide(row.path, mpp=row.mpp) as slide:
            thumbnail = lesion_thumbnail(slide, _THUMBNAIL_PX)
        if row.mask is not None:
            lesion = read_mask(row.mask, bag.size_wh0).mask
    except (SlideError, MaskError):
        pass
    return thumbnail, lesion


def _write_table(
    path: Path,
    bag: StoredBag,
    plain: InstanceView,
    masked: NDArray[np.bool_],
    mined: InstanceView,
) -> None:
    """One line per instance in level-0 pixels, as `patches.csv` of the plugin."""
    head = ("scale", "x", "y", "width", "height")
    more = (
        "attention_plain",
        "probability_plain",
        "masked",
        "attention",
        "probability",
    )
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*head, *more))
        for i, (x, y) in enumerate(bag.coords_xy0.tolist()):
            scale = int(bag.scale[i])
            side = bag.size_px0[scale]
            figures = (plain.attention[i], plain.probability[i])
            ours = (mined.attention[i], mined.probability[i])
            writer.writerow(
                (
                    bag.scale_names[scale],
                    x,
                    y,
                    side,
                    side,
                    *tuple(f"{v:.6g}" for v in figures),
                    int(masked[i]),
                    *tuple(f"{v:.6g}" for v in ours),
                )
            )
    part.replace(path)
