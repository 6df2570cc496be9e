"""Pictures of masked hard instance mining: what the baseline looks at, what is masked, what MHIM looks at.

Figure 1 of the MHIM-MIL supplementary: three columns per slide: attention and positive instances of the plain network, the
instances masked in one visit, the same of the MHIM student. Figure 2: the student at several epochs. Patches are
drawn at their places over the slide's thumbnail where there is one; brighter is more attention, cyan a high probability of
the slide's class for that instance alone, blue the outline of the lesion where a mask is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from napari_msamil.models.base import Aggregator

    from .bag_dataset import BagBatch
    from .bags import StoredBag

_ALONE = 32
"""Instances that are classified as bags of their own at once; bounds the memory."""
CYAN_FROM = 0.5
"""Probability above which an instance is drawn cyan."""


@dataclass(frozen=True, eq=False)
class InstanceView:
    """What a network makes of each instance of a bag.

    Attributes:
        attention: float32 (N,), sums to 1.
        probability: float32 (N,), of the class in question if the instance were the whole bag.
        bag_probability: The same for the bag.
    """

    attention: NDArray[np.float32]
    probability: NDArray[np.float32]
    bag_probability: float


@torch.no_grad()
def view_instances(
    aggregator: Aggregator, bag: BagBatch, class_index: int
) -> InstanceView:
    """Attention and instance probabilities of a bag (a batch of one), in evaluation mode.

    Methods that score instances use those scores; for the others each instance is classified as a bag of its own.
    """
    training = aggregator.training
    aggregator.eval()
    output = aggregator(bag.features, bag.coords, bag.scale)
    if output.instance_logits is not None:
        scores = output.instance_logits[0]
    else:
        alone = (bag.features[0], bag.coords[0], bag.scale[0])
        # TransMIL fills up each bag, also one of a single instance
        cut = zip(*(torch.split(part[:, None], _ALONE) for part in alone), strict=True)
        scores = torch.cat([aggregator(*some).logits for some in cut])
    aggregator.train(training)
    return InstanceView(
        output.attention[0].float().cpu().numpy(),
        scores.float().softmax(-1)[:, class_index].cpu().numpy(),
        float(output.logits[0].float().softmax(-1)[class_index]),
    )


@dataclass(frozen=True, eq=False)
class PatchMap:
    """Where the instances of a slide lie, and what is under them.

    Attributes:
        bag: The instances.
        thumbnail: uint8 (H, W, 3) of the whole slide, or None: a white ground.
        lesion: bool (h, w) mask of the whole slide, or None.
    """

    bag: StoredBag
    thumbnail: NDArray[np.uint8] | None = None
    lesion: NDArray[np.bool_] | None = None


def draw_columns(
    places: PatchMap,
    plain: InstanceView,
    masked: NDArray[np.bool_],
    mined: InstanceView,
    path: Path,
    title: str = "",
) -> Path:
    """Figure 1: plain network, masked instances, MHIM; one PNG."""
    figure = _figure(3)
    axes = figure.subplots(1, 3)
    _draw_view(axes[0], places, plain, "plain")
    _draw_masked(axes[1], places, masked)
    _draw_view(axes[2], places, mined, "MHIM")
    return _save(figure, path, title)


def draw_progress(
    places: PatchMap,
    views: Sequence[tuple[str, InstanceView]],
    path: Path,
    title: str = "",
) -> Path:
    """Figure 2: one column per stage of training, named."""
    figure = _figure(len(views))
    axes = np.atleast_1d(figure.subplots(1, len(views)))
    for axis, (name, view) in zip(axes, views, strict=True):
        _draw_view(axis, places, view, name)
    return _save(figure, path, title)


def attention_shades(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    """Brightness 0 … 1 of each instance: its rank, so that a few large values do not leave the rest black."""
    order = np.argsort(np.argsort(attention, kind="stable"), kind="stable")
    return (order / max(len(attention) - 1, 1)).astype(np.float32)


def _figure(columns: int) -> Figure:
    figure = Figure(figsize=(4.2 * columns, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path, title: str) -> Path:
    if title:
        figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.stem}.part.png")
    figure.savefig(beside, dpi=110)
    beside.replace(path)
    return path


def _draw_view(axis: Axes, places: PatchMap, view: InstanceView, name: str) -> None:
    shade = attention_shades(view.attention)
    colours = np.repeat(shade[:, None], 3, axis=1)
    cyan = view.probability > CYAN_FROM
    colours[cyan] = shade[cyan, None] * np.array([0.0, 1.0, 1.0])
    _ground(axis, places, f"{name} (p = {view.bag_probability:.2f})")
    _squares(axis, places, colours, 0.75)


def _draw_masked(axis: Axes, places: PatchMap, masked: NDArray[np.bool_]) -> None:
    colours = np.where(masked[:, None], 0.1, 0.9) * np.ones((1, 3))
    _ground(axis, places, f"masked {int(masked.sum())} of {len(masked)}")
    _squares(axis, places, colours, 0.75)


def _squares(
    axis: Axes, places: PatchMap, colours: NDArray[np.floating], alpha: float
) -> None:
    """One square per instance; large patches below small ones."""
    bag = places.bag
    sides = np.array(bag.size_px0)[bag.scale.numpy()]
    order = np.argsort(-sides, kind="stable")
    corners = bag.coords_xy0.numpy()
    squares = [
        Rectangle((corners[i, 0], corners[i, 1]), sides[i], sides[i]) for i in order
    ]
    axis.add_collection(
        PatchCollection(
            squares, facecolor=colours[order], edgecolor="none", alpha=alpha
        )
    )


def _ground(axis: Axes, places: PatchMap, title: str) -> None:
    width, height = places.bag.size_wh0
    extent = (0.0, float(width), float(height), 0.0)
    if places.thumbnail is not None:
        axis.imshow(places.thumbnail, extent=extent)
    if places.lesion is not None and places.lesion.any():
        rows, columns = places.lesion.shape
        axis.contour(
            (np.arange(columns) + 0.5) * width / columns,
            (np.arange(rows) + 0.5) * height / rows,
            places.lesion.astype(float),
            levels=[0.5],
            colors="blue",
            linewidths=1.2,
        )
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], title=title)
    axis.set_aspect("equal")
