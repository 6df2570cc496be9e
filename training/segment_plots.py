"""Pictures of a segmenter's training: IoU per epoch (Figure 3a of MsaMIL-Net), and slides with truth and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from napari_msamil.lesion import lesion_probability

from .log import read_log

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .segment_data import SegmentItem
    from .segment_task import SegmentTask

_EXAMPLES = 4


def iou_curve(run: Path, path: Path) -> None:
    """Draw validation IoU and Dice per epoch from the log of a run; nothing where nothing was validated."""
    lines = {
        line["epoch"]: line
        for line in read_log(run)
        if "val_iou" in line and "epoch" in line
    }
    if not lines:
        return
    epochs = sorted(lines)
    figure = Figure(figsize=(5, 3.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for key, name in (("val_iou", "IoU"), ("val_dice", "Dice")):
        axes.plot(epochs, [lines[e][key] for e in epochs], marker=".", label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean over validation slides")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")


def example_picture(
    task: SegmentTask, items: Sequence[SegmentItem], threshold: float, path: Path
) -> None:
    """Draw a few slides with the outline of the truth (blue) and of the prediction (red)."""
    step = max(1, len(items) // _EXAMPLES)
    shown = items[::step][:_EXAMPLES]
    figure = Figure(figsize=(3.2 * len(shown), 3.4), dpi=110, layout="constrained")
    for index, item in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), index + 1)
        axes.imshow(item.pixels)
        probability = lesion_probability(item.pixels, task.segmenter, task.runtime)
        for plane, colour in (
            (item.positive[0], "tab:blue"),
            (probability > threshold, "tab:red"),
        ):
            if plane.any() and not plane.all():
                axes.contour(
                    np.asarray(plane, dtype=float), [0.5], colors=colour, linewidths=1
                )
        axes.set_title(item.name, fontsize=8)
        axes.set_axis_off()
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png")
