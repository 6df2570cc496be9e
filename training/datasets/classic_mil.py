"""Classic multiple-instance data (Musk, Elephant, Fox …) with their published folds.

A file holds `X` (instances, features), `bag_id` (instances,) ascending from 0, `bag_label` (bags,) and `folds`
(repeats, bags): the test fold of each bag in each repeat of the published cross-validation. Features are
standardised with the training bags of a fold only, and those that are constant there are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from napari_msamil.errors import CohortError

from ..bags import StoredBag

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEYS = ("X", "bag_id", "bag_label", "folds")


@dataclass(frozen=True, eq=False)
class ClassicSet:
    """Bags without places.

    Attributes:
        name: Of the file.
        features: float32 (instances, D), as published.
        bag_id: int (instances,), ascending.
        labels: int (bags,).
        folds: int (repeats, bags), test fold of each bag.
    """

    name: str
    features: NDArray[np.float32]
    bag_id: NDArray[np.int64]
    labels: NDArray[np.int64]
    folds: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def standardised(
        self, train: NDArray[np.bool_], *, drop: bool = True
    ) -> NDArray[np.float32]:
        """Features with mean 0 and deviation 1 over the instances of the training bags.

        Args:
            train: bool (bags,).
            drop: Whether features that are constant there are dropped, or set to 0 so that all folds keep one width.
        """
        rows = self.features[train[self.bag_id]].astype(np.float64)
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        varied = deviation > 1e-8
        scaled = (self.features - mean) / np.where(varied, deviation, 1.0)
        found = scaled[:, varied] if drop else scaled * varied
        return np.asarray(found, np.float32)

    def bags(self, features: NDArray[np.float32]) -> list[StoredBag]:
        """The bags with given features (instances, D), as the trainers take them."""
        return [
            _place_free(torch.as_tensor(features[self.bag_id == b]), f"{self.name}-{b}")
            for b in range(len(self))
        ]


def read_classic_set(path: Path) -> ClassicSet:
    """Read an `.npz` of the layout above.

    Raises:
        CohortError: The file is missing or its arrays do not fit together.
    """
    path = Path(path)
    if not path.is_file():
        raise CohortError(
            f"There is no bag file {path}. Give an .npz of classic MIL data."
        )
    with np.load(path, allow_pickle=False) as file:
        missing = [k for k in _KEYS if k not in file]
        if missing:
            raise CohortError(
                f"{path} has no array {', '.join(missing)}. Needed: {', '.join(_KEYS)}."
            )
        arrays = {k: file[k] for k in _KEYS}
    bag_id = arrays["bag_id"].astype(np.int64)
    labels = arrays["bag_label"].astype(np.int64)
    folds = np.atleast_2d(arrays["folds"].astype(np.int64))
    fits = (
        len(bag_id) == len(arrays["X"])
        and (np.diff(bag_id) >= 0).all()
        and set(bag_id.tolist()) == set(range(len(labels)))
        and folds.shape[1] == len(labels)
    )
    if not fits:
        raise CohortError(
            f"The arrays of {path} do not fit together: bag_id must name every bag 0 … in ascending order."
        )
    return ClassicSet(path.stem, arrays["X"].astype(np.float32), bag_id, labels, folds)


def _place_free(features: torch.Tensor, name: str) -> StoredBag:
    """A bag whose instances have no place: all at the origin, one scale."""
    n = len(features)
    return StoredBag(
        features=features,
        coords_xy0=torch.zeros(n, 2, dtype=torch.int64),
        scale=torch.zeros(n, dtype=torch.int8),
        valid=torch.ones(n, dtype=torch.bool),
        size_px0=(0,),
        size_wh0=(0, 0),
        mpp=float("nan"),
        scale_names=("none",),
        encoder_id="classic",
        slide=name,
    )
