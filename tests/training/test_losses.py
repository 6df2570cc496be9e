"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from napari_msamil.errors import ConfigError
from training.losses import bag_loss, class_weights, consistency_loss, total_loss


def test_consistency_starts_at_ln_512_for_vanishing_features() -> None:
    zero = torch.zeros(1, 512)
    assert consistency_loss(zero, zero).item() == pytest.approx(math.log(512), abs=1e-5)
    small = 0.01 * torch.randn(1, 512, generator=torch.Generator().manual_seed(1))
    assert consistency_loss(small, small).item() == pytest.approx(6.238, abs=0.01)


def test_consistency_equals_the_written_sum() -> None:
    teacher = torch.tensor([[0.1, 0.3], [0.2, 0.2]], dtype=torch.float64)
    student = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    expected = 0.0
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        weights = [math.exp(v / 0.1) for v in t]
        norm = math.log(sum(math.exp(v / 2.0) for v in s))
        expected -= sum(
            w / sum(weights) * (v / 2.0 - norm) for w, v in zip(weights, s, strict=True)
        )
    found = consistency_loss(teacher, student, 0.1, 2.0).item()
    assert found == pytest.approx(expected / 2, abs=1e-6)


def test_consistency_sends_gradient_to_the_student_only() -> None:
    teacher = torch.randn(1, 8, requires_grad=True)
    student = torch.randn(1, 8, requires_grad=True)
    consistency_loss(teacher, student).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_weighted_batch_equals_the_mean_of_its_bags() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 1, 1])
    weights = torch.tensor([2.0, 0.5, 1.0])
    single = [bag_loss(logits[i : i + 1], labels[i : i + 1], weights) for i in range(5)]
    torch.testing.assert_close(
        bag_loss(logits, labels, weights), torch.stack(single).mean()
    )


def test_balanced_weights_give_each_class_the_same_total() -> None:
    labels = [0, 0, 0, 1]
    weights = class_weights(labels, 2)
    assert weights is not None
    assert weights.tolist() == pytest.approx([4 / 6, 2.0])
    assert sum(weights[i].item() for i in labels) == pytest.approx(4.0)
    assert class_weights(labels, 2, "none") is None


def test_a_class_without_bags_is_named() -> None:
    with pytest.raises(ConfigError, match=r"class \[2\]"):
        class_weights([0, 1], 3)
    with pytest.raises(ConfigError, match="none or balanced"):
        class_weights([0, 1], 2, "sqrt")


def test_total_is_weighted_and_parts_are_logged_unweighted() -> None:
    parts = {"bag": torch.tensor(2.0), "consistency": torch.tensor(6.0)}
    total, logged = total_loss(parts, {"consistency": 0.1})
    assert total.item() == pytest.approx(2.6)
    assert logged["consistency"].item() == 6.0
