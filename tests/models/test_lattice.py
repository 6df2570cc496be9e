from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_msamil.models.csmil import places
from napari_msamil.models.lattice import lattice


def nested(
    columns: int, rows: int, side_x: float, side_y: float, offset: float = 0.0
) -> tuple[torch.Tensor, ...]:
    """All patches of three nested scales, and for each its column, row in finest sides."""
    coords, scales, cells = [], [], []
    for s in range(3):
        step = 2**s
        xs, ys = torch.arange(0, columns * 4, step), torch.arange(0, rows * 4, step)
        cell = torch.cartesian_prod(xs, ys)
        coords.append(cell * torch.tensor([side_x, side_y]) + offset)
        scales.append(torch.full((len(cell),), s))
        cells.append(cell)
    return torch.cat(coords), torch.cat(scales), torch.cat(cells)


@settings(deadline=None, max_examples=50)
@given(
    columns=st.integers(1, 3),
    rows=st.integers(1, 3),
    side_x=st.floats(0.002, 0.03),
    side_y=st.floats(0.002, 0.03),
    offset=st.floats(0, 0.3),
    seed=st.integers(0, 1000),
)
def test_parents_contain_their_children(
    columns: int, rows: int, side_x: float, side_y: float, offset: float, seed: int
) -> None:
    """Against brute force by containment of boxes, for a random part of the patches that keeps all of the finest."""
    coords, scale, cell = nested(columns, rows, side_x, side_y, offset)
    keep = (
        torch.rand(len(scale), generator=torch.Generator().manual_seed(seed)) < 0.6
    ) | (scale == 0)
    coords, scale, cell = coords[keep], scale[keep], cell[keep]
    found = lattice(coords, scale).parents()
    for i in range(len(scale)):
        inside = [
            j
            for j in range(len(scale))
            if scale[j] == scale[i] + 1
            and ((cell[j] <= cell[i]) & (cell[i] < cell[j] + 2 ** int(scale[j]))).all()
        ]
        assert found[i] == (inside[0] if inside else -1)


def test_neighbours_touch_within_their_scale_both_ways() -> None:
    coords, scale, cell = nested(1, 1, 0.01, 0.013)
    pairs = {tuple(p) for p in lattice(coords, scale).neighbours().T.tolist()}
    expected = {
        (i, j)
        for i in range(len(scale))
        for j in range(len(scale))
        if i != j
        and scale[i] == scale[j]
        and (cell[i] - cell[j]).abs().max() == 2 ** int(scale[i])
    }
    assert pairs == expected
    assert len([p for p in pairs if scale[p[0]] == 0]) == 84


def test_the_finest_side_is_recovered_from_coarse_patches_where_fine_ones_are_apart() -> (
    None
):
    coords = torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.0, 0.0], [0.2, 0.0]])
    scale = torch.tensor([0, 0, 1, 1])
    assert lattice(coords, scale).parents().tolist() == [2, 3, -1, -1]


def test_patches_without_any_gap_share_one_cell() -> None:
    assert lattice(
        torch.full((3, 2), 0.4), torch.tensor([0, 1, 2])
    ).parents().tolist() == [1, 2, -1]


def test_places_hold_the_chain_of_every_patch_that_contains_no_finer_one() -> None:
    coords = torch.tensor(
        [[0.0, 0.0], [0.1, 0.0], [0.4, 0.0], [0.0, 0.0], [0.4, 0.4], [0.0, 0.0]]
    )
    scale = torch.tensor([0, 0, 0, 1, 1, 2])
    rows = {tuple(r) for r in places(coords, scale, 2).tolist()}
    assert rows == {(0, 3, 5), (1, 3, 5), (2, -1, -1), (-1, 4, -1)}
