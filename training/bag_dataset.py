"""Bags in memory: one flat tensor for all, so that a bag is a view and a batch is one gather.

Patches that could not be read are dropped when a bag is taken in; the order of the file (paper order) is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from napari_msamil.errors import StoreError

from .bags import StoredBag, load_bag

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, eq=False)
class BagBatch:
    """What an aggregator takes, for B bags.

    Attributes:
        features: float32 (B, N, D).
        coords: float32 (B, N, 2), corners as shares of the slide.
        scale: int64 (B, N).
        labels: int64 (B,).
        valid: bool (B, N), or None where no bag is padded.
        lengths: Instances of each bag, known to the host.
    """

    features: Tensor
    coords: Tensor
    scale: Tensor
    labels: Tensor
    valid: Tensor | None
    lengths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PackedBags:
    """Bags one behind the other, without padding.

    Attributes:
        features: float32 (ΣN, D).
        coords: float32 (ΣN, 2).
        scale: int64 (ΣN,).
        labels: int64 (B,).
        lengths: Instances of each bag.
    """

    features: Tensor
    coords: Tensor
    scale: Tensor
    labels: Tensor
    lengths: tuple[int, ...]

    def pad(self, projected: Tensor | None = None) -> BagBatch:
        """The same bags padded to the longest; `projected` (ΣN, H) takes the place of the features."""
        flat = self.features if projected is None else projected
        features = _pad(flat, self.lengths)
        longest = features.shape[1]
        valid = None
        if min(self.lengths) < longest:
            lengths = torch.tensor(self.lengths, device=flat.device)
            valid = torch.arange(longest, device=flat.device) < lengths[:, None]
        return BagBatch(
            features,
            _pad(self.coords, self.lengths),
            _pad(self.scale, self.lengths),
            self.labels,
            valid,
            self.lengths,
        )


def _pad(flat: Tensor, lengths: Sequence[int]) -> Tensor:
    return pad_sequence(list(torch.split(flat, list(lengths))), batch_first=True)


class BagDataset:
    """Labelled bags on one device.

    Args:
        bags: The bags.
        labels: Class index of each.
        device: Where they live; all of them, for an epoch should cost milliseconds per slide.
        names: Name of each slide; that of the bag where absent.

    Attributes:
        scale_names: Names of the scales, alike in all bags.
        placed: Whether all bags say where their instances lie.
        truth: Per bag whether each instance is positive (bool, on the CPU); empty where it is not known.

    Raises:
        StoreError: There are no bags, they do not fit together, or one has no valid instance.
    """

    def __init__(
        self,
        bags: Sequence[StoredBag],
        labels: Sequence[int],
        device: str | torch.device = "cpu",
        names: Sequence[str] = (),
    ) -> None:
        _check(bags, labels)
        self.names = tuple(names) or tuple(bag.slide for bag in bags)
        self.label_list = tuple(int(label) for label in labels)
        keep = [bag.valid.bool() for bag in bags]
        self.lengths = tuple(int(k.sum()) for k in keep)
        self._check_filled()
        self.offsets = (0, *torch.tensor(self.lengths).cumsum(0).tolist())
        self.features = _join([b.features for b in bags], keep).float().to(device)
        self.coords = _join([b.coords for b in bags], keep).to(device)
        self.scale = _join([b.scale for b in bags], keep).long().to(device)
        self.labels = torch.tensor(self.label_list, device=device)
        self.scale_counts = tuple(
            tuple(torch.bincount(b.scale[k].long()).tolist())
            for b, k in zip(bags, keep, strict=True)
        )
        self.encoder_id = bags[0].encoder_id
        self.scale_names = bags[0].scale_names
        self.placed = all(bag.placed for bag in bags)
        self.truth = _truth(bags, keep)

    @classmethod
    def from_files(
        cls,
        paths: Sequence[Path],
        labels: Sequence[int],
        device: str | torch.device = "cpu",
    ) -> BagDataset:
        """Read bag files; see the class."""
        return cls([load_bag(path) for path in paths], labels, device)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def dim(self) -> int:
        """Width of the features."""
        return int(self.features.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes the features take on the device."""
        return self.features.numel() * self.features.element_size()

    def one(self, index: int) -> BagBatch:
        """Bag `index` as a batch of one: views, nothing is copied."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return BagBatch(
            self.features[rows][None],
            self.coords[rows][None],
            self.scale[rows][None],
            self.labels[index : index + 1],
            None,
            (self.lengths[index],),
        )

    def packed(self, indices: Sequence[int]) -> PackedBags:
        """Several bags one behind the other."""
        rows = [slice(self.offsets[i], self.offsets[i + 1]) for i in indices]
        return PackedBags(
            torch.cat([self.features[r] for r in rows]),
            torch.cat([self.coords[r] for r in rows]),
            torch.cat([self.scale[r] for r in rows]),
            self.labels[list(indices)],
            tuple(self.lengths[i] for i in indices),
        )

    def padded(self, indices: Sequence[int]) -> BagBatch:
        """Several bags padded to the longest."""
        return self.packed(indices).pad()

    def _check_filled(self) -> None:
        empty = [n for n, k in zip(self.names, self.lengths, strict=True) if k == 0]
        if empty:
            raise StoreError(
                f"These bags have no valid instance: {', '.join(empty)}. "
                "Take them out of the cohort, or extract them with a lower threshold."
            )


def _join(parts: Sequence[Tensor], keep: Sequence[Tensor]) -> Tensor:
    return torch.cat([p[k] for p, k in zip(parts, keep, strict=True)])


def _truth(bags: Sequence[StoredBag], keep: Sequence[Tensor]) -> tuple[Tensor, ...]:
    found = [b.instance_labels for b in bags]
    known = [t[k] > 0 for t, k in zip(found, keep, strict=True) if t is not None]
    return tuple(known) if len(known) == len(bags) else ()


def _check(bags: Sequence[StoredBag], labels: Sequence[int]) -> None:
    if not bags or len(bags) != len(labels):
        raise StoreError(
            f"{len(bags)} bags and {len(labels)} labels: give each bag one label."
        )
    widths = {int(bag.features.shape[1]) for bag in bags}
    encoders = {bag.encoder_id for bag in bags}
    scales = {bag.scale_names for bag in bags}
    if len(widths) > 1 or len(encoders) > 1:
        raise StoreError(
            f"The bags do not fit together: feature widths {sorted(widths)}, encoders {sorted(encoders)}. "
            "Extract all with one encoder."
        )
    if len(scales) > 1:
        found = " and ".join(sorted("/".join(names) for names in scales))
        raise StoreError(
            f"The bags do not fit together: some have the scales {found}. Extract all with one model, or name the scales "
            "that all have with mil.scales."
        )
