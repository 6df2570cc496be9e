"""Published parameter counts: the cheapest proof that an architecture is the one of its paper."""

from __future__ import annotations

from typing import Any

import pytest

from napari_msamil.config import AggregatorSpec
from napari_msamil.models import build_aggregator
from napari_msamil.models.abmil import ABMIL_PRESETS

PUBLISHED: list[tuple[str, dict[str, Any], int, int, int]] = [
    ("abmil", ABMIL_PRESETS["mhim_gated"], 1024, 2, 657_026),
    ("abmil", ABMIL_PRESETS["mhim"], 1024, 2, 591_490),
    ("abmil", ABMIL_PRESETS["ilse"], 1024, 2, 591_619),
    ("clam_sb", {}, 1024, 2, 790_791),
    ("clam_sb", {"attention_dim": 384}, 1024, 2, 922_247),
    ("clam_mb", {}, 1024, 2, 791_048),
    ("dsmil", {}, 512, 2, 85_252),
    ("dsmil", {"value": True}, 512, 2, 347_908),
    ("dsmil", {}, 1024, 2, 153_860),
    ("dtfd", {}, 1024, 2, 789_254),
    ("transmil", {}, 1024, 2, 2_672_146),
    ("mambamil", {}, 1024, 2, 4_227_843),
    ("csmil", {}, 2048, 1, 137_475),
]


@pytest.mark.parametrize(("name", "args", "in_dim", "classes", "count"), PUBLISHED)
def test_parameter_count_is_the_published_one(
    name: str, args: dict[str, Any], in_dim: int, classes: int, count: int
) -> None:
    model = build_aggregator(
        AggregatorSpec(name=name, in_dim=in_dim, args=args), classes
    )
    assert sum(p.numel() for p in model.parameters()) == count


def test_iaam_count_follows_from_its_equations() -> None:
    d, r, heads, mlp = 512, 32, 8, 2048
    place = 3 * d + d
    mhe = 2 * d * r * heads + d * d + 2 * d + (d * mlp + mlp) + (mlp * d + d)
    dmq = 10 * d + 3 * d * d + d + 1
    model = build_aggregator(AggregatorSpec(), 3)
    assert sum(p.numel() for p in model.parameters()) == place + mhe + dmq + 3 * d + 3
