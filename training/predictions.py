"""One line per slide: what was predicted and what is true."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from .bag_dataset import BagDataset
    from .cohort import Cohort


def write_predictions(
    path: Path, parts: Mapping[str, tuple[BagDataset, Tensor]], cohort: Cohort
) -> Path:
    """Write `slide_id, patient_id, split, label, prediction, p_<class> …`.

    Args:
        path: The CSV.
        parts: Per split its bags and their logits (bags, C).
        cohort: For patients and class names.
    """
    patient = {row.slide_id: row.patient_id for row in cohort.rows}
    beside = path.with_suffix(".part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ("slide_id", "patient_id", "split", "label", "prediction")
        writer.writerow((*head, *(f"p_{name}" for name in cohort.classes)))
        for split, (bags, logits) in parts.items():
            probabilities = torch.softmax(logits.cpu().double(), dim=1).tolist()
            for name, label, p in zip(
                bags.names, bags.label_list, probabilities, strict=True
            ):
                best = cohort.classes[max(range(len(p)), key=p.__getitem__)]
                row = (name, patient.get(name, ""), split, cohort.classes[label], best)
                writer.writerow((*row, *(f"{value:.6f}" for value in p)))
    beside.replace(path)
    return path
