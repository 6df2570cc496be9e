"""What every aggregator is: a bag of features with places in, one `MILOutput` out.

A method is written once, in `_pool`, for bags of equal length without padding. Batches with padding are
taken apart here, run bag by bag, and put together again: no method ever sees an invalid instance, so
padding cannot change an answer, and no boolean mask keeps a fused attention kernel from being used. (AB-MIL, which has
no such kernel, takes padded bags in one pass.)

Legend: B bags, N instances, D width after the projection, C classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.config import Spec
from napari_msamil.errors import ConfigError, SelectionError
from napari_msamil.models.attention import accurate
from napari_msamil.models.outputs import MILOutput

if TYPE_CHECKING:
    from napari_msamil.config import AggregatorSpec

_PADDED_AXIS = {
    "attention": 1,
    "query_attention": 2,
    "mining_attention": 2,
    "instance_logits": 1,
}
"""Fields of `MILOutput` that have an instance axis, and which one it is."""


class OwnStart(nn.Linear):
    """A linear layer whose start is part of its method: training does not give it another one."""


def parse_args(kind: type[Spec], spec: AggregatorSpec) -> Spec:
    """Arguments of a method, checked by its own class of arguments.

    Raises:
        ConfigError: An argument is unknown or out of range.
    """
    try:
        return kind.model_validate(spec.args)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "args"
        known = ", ".join(kind.model_fields)
        raise ConfigError(
            f"The aggregator {spec.name!r} has a wrong argument {where!r}: {first['msg']}. It knows: {known}."
        ) from error


def activation(name: str) -> nn.Module:
    """The activation function of a name that the arguments of a method use."""
    kinds: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
    }
    return kinds[name]()


class Aggregator(nn.Module, ABC):
    """Base of all methods: features (B, N, in_dim) → `MILOutput`.

    Attributes:
        Args: The class of arguments of the method; unknown keys are refused.
        needs_positions: Whether coordinates and scale are part of the method.
        one_by_one: Whether `_pool` takes only one bag at a time.
        needs_negatives: Whether `fit` must see features of negative bags before training.
        bag_loss_weight: The training loss is `bag_loss_weight · CE(logits, label) + Σ output.losses`, whose terms
            are weighted already.
        pads: Whether `_pool_padded` pools padded bags in one pass and the method has no losses of its own.
        in_dim: Width of the features.
        n_classes: Number of classes.
        projection: The per-instance part: a subclass puts its own in place of the identity.
    """

    Args: ClassVar[type[Spec]] = Spec
    needs_negatives: ClassVar[bool] = False
    pads: ClassVar[bool] = False
    needs_positions: bool = False
    one_by_one: bool = False
    bag_loss_weight: float = 1.0

    def __init__(self, in_dim: int, n_classes: int, args: Any = None) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.n_classes = n_classes
        self.projection: nn.Module = nn.Identity()

    def project(self, features: Tensor) -> Tensor:
        """The per-instance part: features (B, N, in_dim) → (B, N, D). MHIM masks instances before it."""
        projected: Tensor = self.projection(features)
        return projected

    def forward(
        self,
        features: Tensor,
        coords: Tensor | None = None,
        scale: Tensor | None = None,
        valid: Tensor | None = None,
        label: Tensor | None = None,
    ) -> MILOutput:
        """Classify a batch of bags.

        Args:
            features: (B, N, in_dim).
            coords: (B, N, 2), top-left corners as shares of the slide's width and height, x then y.
            scale: int64 (B, N), index of the scale, 0 the finest.
            valid: bool (B, N); False marks padding and unreadable patches. None: all are valid.
            label: int64 (B,), for methods whose training losses need it.

        Raises:
            SelectionError: A bag has no valid instance.
            ConfigError: The method needs coordinates and got none.
        """
        self._check_width(features)
        if valid is not None:
            # what was read into padding may be anything; NaN would reach the gradients of the projection
            features = features.masked_fill(~valid[..., None], 0)
        return self.aggregate(self.project(features), coords, scale, valid, label=label)

    def aggregate(
        self,
        projected: Tensor,
        coords: Tensor | None = None,
        scale: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        label: Tensor | None = None,
    ) -> MILOutput:
        """The bag part: projected (B, N, D) → `MILOutput`; arguments as in `forward`."""
        self._check_positions(coords, scale)
        counts = valid_counts(projected, valid)
        alone = len(projected) == 1 or not self.one_by_one
        if alone and (valid is None or min(counts) == projected.shape[1]):
            return self._pool(projected, coords, scale, label)
        return self._pool_padded(projected, valid, coords, scale, label)

    @abstractmethod
    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        """The method itself, for bags of equal length without padding: x (B, N, D)."""

    def _pool_padded(
        self, x: Tensor, valid: Tensor | None, *others: Tensor | None
    ) -> MILOutput:
        """The same for padded bags: taken apart and put together again; others: coords, scale, label."""
        outputs = []
        for b in range(len(x)):
            keep = slice(None) if valid is None else valid[b]
            parts = [None if t is None else t[b][keep][None] for t in (x, *others[:2])]
            label = None if others[2] is None else others[2][b : b + 1]
            assert parts[0] is not None
            outputs.append(self._pool(parts[0], parts[1], parts[2], label))
        return _merge(outputs, valid)

    def fit(self, negatives: Tensor) -> None:
        """Learn from features (M, in_dim) of negative bags before training; most methods need nothing."""
        del negatives

    def _check_width(self, features: Tensor) -> None:
        if features.ndim != 3 or features.shape[2] != self.in_dim:
            raise ConfigError(
                f"{type(self).__name__} takes features of shape (bags, instances, {self.in_dim}), "
                f"but got {tuple(features.shape)}. Use features of the encoder it was trained with."
            )

    def _check_positions(self, coords: Tensor | None, scale: Tensor | None) -> None:
        if self.needs_positions and (coords is None or scale is None):
            raise ConfigError(
                f"{type(self).__name__} needs coordinates and scales beside the features. "
                "Use feature files that hold them."
            )


def valid_counts(projected: Tensor, valid: Tensor | None) -> list[int]:
    """Valid instances per bag; costs one host synchronisation only where `valid` is given."""
    if valid is None:
        counts = [projected.shape[1]] * len(projected)
    else:
        counts = valid.sum(1).tolist()
    if not counts or min(counts) == 0:
        raise SelectionError(
            "A bag has no valid patch, so there is nothing to classify. Lower the threshold or change the mask."
        )
    return counts


def _merge(outputs: list[MILOutput], valid: Tensor | None) -> MILOutput:
    """Outputs of single bags → one output with the padding of `valid` (zeros) put back."""
    merged: dict[str, Tensor | dict[str, Tensor] | None] = {}
    for name in (f.name for f in fields(MILOutput)):
        parts = [getattr(o, name) for o in outputs]
        if parts[0] is None:
            merged[name] = None
        elif name == "losses":
            merged[name] = {
                k: torch.stack([p[k] for p in parts]).mean(0) for k in parts[0]
            }
        else:
            axis = _PADDED_AXIS.get(name)
            if axis is not None and valid is not None:
                parts = [_unpad(p, v, axis) for p, v in zip(parts, valid, strict=True)]
            merged[name] = torch.cat(parts)
    return MILOutput(**merged)  # type: ignore[arg-type]


def _unpad(part: Tensor, valid: Tensor, axis: int) -> Tensor:
    """Spread (1, …, n, …) over the N places of `valid`, zeros elsewhere."""
    shape = list(part.shape)
    shape[axis] = len(valid)
    return part.new_zeros(shape).index_copy(axis, valid.nonzero().squeeze(1), part)


def normalise_positive(weights: Tensor) -> Tensor:
    """Negative values to 0, then shares that sum to 1 over the last axis; equal shares where nothing is left."""
    positive = accurate(weights).clamp_min(0)
    total = positive.sum(-1, keepdim=True)
    equal = torch.full_like(positive, 1 / positive.shape[-1])
    return torch.where(
        total > 0, positive / total.clamp_min(torch.finfo(torch.float32).tiny), equal
    )


def masked_softmax(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax over the last axis in float32, exactly 0 where invalid; logits (B, …, N), valid (B, N)."""
    logits = accurate(logits)
    if valid is not None:
        hidden = ~valid.reshape(len(valid), *[1] * (logits.ndim - 2), -1)
        logits = logits.masked_fill(hidden, float("-inf"))
    return F.softmax(logits, dim=-1)
