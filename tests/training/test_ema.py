"""The teacher follows the student by the written formula and by nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.ema import make_teacher, update_teacher
from training.schedules import MomentumSchedule, cosine_decay, momentum_at


def test_teacher_matches_closed_form_after_k_steps() -> None:
    student = nn.Linear(3, 2).double()
    teacher = make_teacher(student)
    start = teacher.weight.clone()
    with torch.no_grad():
        student.weight.fill_(5.0)
    m, k = 0.97, 11
    for _ in range(k):
        update_teacher(teacher, student, m)
    expected = m**k * start + (1 - m**k) * 5.0
    torch.testing.assert_close(teacher.weight, expected, rtol=0, atol=1e-12)


def test_buffers_are_never_averaged() -> None:
    student = nn.BatchNorm1d(2)
    teacher = make_teacher(student)
    student(torch.randn(7, 2) + 10)
    update_teacher(teacher, student, 0.5)
    assert torch.equal(teacher.running_mean, torch.zeros(2))


def test_no_gradient_reaches_the_teacher_or_the_student_through_it() -> None:
    student = nn.Linear(2, 2)
    teacher = make_teacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.training
    update_teacher(teacher, student, 0.9)
    assert all(p.grad_fn is None for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_different_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="different parameters"):
        update_teacher(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.9)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.03), (50, 0.03 * 0.8535533905932737), (100, 0.015), (200, 0.0), (300, 0.0)],
)
def test_high_ratio_decays_along_a_cosine(step: int, expected: float) -> None:
    assert cosine_decay(0.03, step, 200) == pytest.approx(expected, abs=1e-12)


def test_a_quarter_of_the_high_ratio_is_left_at_epoch_132_of_200() -> None:
    assert cosine_decay(1.0, 132, 200) == pytest.approx(0.259, abs=0.001)


def test_momentum_rises_to_one_or_stays() -> None:
    cosine, constant = MomentumSchedule.COSINE, MomentumSchedule.CONSTANT
    assert momentum_at(constant, 0.9999, 77, 100) == 0.9999
    assert momentum_at(cosine, 0.9999, 0, 100) == pytest.approx(0.9999, abs=1e-15)
    assert momentum_at(cosine, 0.9999, 50, 100) == pytest.approx(0.99995, abs=1e-15)
    assert momentum_at(cosine, 0.9999, 100, 100) == 1.0
