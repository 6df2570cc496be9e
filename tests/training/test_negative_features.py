"""MILBooster's bag filter learns from negative training slides before the first step, and travels in the state."""

from __future__ import annotations

import pytest
import torch

from napari_msamil.config import AggregatorSpec
from napari_msamil.errors import CohortError
from training.bag_dataset import BagDataset
from training.bags import StoredBag
from training.mil_task import MilSpec, MilTask

SPEC = AggregatorSpec(name="milbooster", in_dim=3, args={"clusters": 2, "hidden": 8})


def bag(name: str, n: int, shift: float) -> StoredBag:
    g = torch.Generator().manual_seed(n)
    return StoredBag(
        features=torch.randn(n, 3, generator=g) + shift,
        coords_xy0=torch.zeros(n, 2, dtype=torch.int64),
        scale=torch.zeros(n, dtype=torch.int8),
        valid=torch.ones(n, dtype=torch.bool),
        size_px0=(5,),
        size_wh0=(101, 99),
        mpp=0.5,
        scale_names=("20x",),
        encoder_id="toy",
        slide=name,
    )


def task(labels: list[int]) -> MilTask:
    bags = [bag("a", 31, 0.0), bag("b", 17, 50.0), bag("c", 23, 0.0)]
    return MilTask(
        SPEC, MilSpec(), BagDataset(bags, labels), None, ("normal", "tumour")
    )


def test_the_filter_learns_from_slides_of_the_first_class_only() -> None:
    learned = task([0, 1, 0]).aggregator.filter
    assert learned.threshold > 0
    assert (learned.distance(torch.randn(50, 3)) < 5).all()
    assert (learned.distance(torch.randn(50, 3) + 50) > 20).all()


def test_without_negative_slides_there_is_one_sentence() -> None:
    with pytest.raises(CohortError, match="first class"):
        task([1, 1, 1])
