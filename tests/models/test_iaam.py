from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from napari_msamil.errors import ConfigError
from napari_msamil.models.iaam import IAAM, IAAMArgs, sinusoid


def small(**changes: object) -> IAAM:
    torch.manual_seed(1)
    args = IAAMArgs.model_validate(
        {"heads": 2, "rank": 3, "mlp_dim": 11, "queries": 4, **changes}
    )
    return IAAM(8, 3, args).double().eval()


def a_bag(n: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    return (
        torch.randn(1, n, 8, dtype=torch.float64),
        torch.rand(1, n, 2, dtype=torch.float64),
        torch.randint(0, 3, (1, n)),
    )


def by_hand(
    model: IAAM, features: Tensor, coords: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Equations 2 to 8 written out for one bag, heads one after the other."""
    t, n = features[0], features.shape[1]
    place = torch.cat([coords[0], scale[0][:, None].double()], dim=1)
    position = torch.zeros(n, 8, dtype=torch.float64)
    for p in range(n):
        for i in range(4):
            position[p, 2 * i] = math.sin(p / 10_000 ** (2 * i / 8))
            position[p, 2 * i + 1] = math.cos(p / 10_000 ** (2 * i / 8))
    t1 = t + place @ model.place.weight.T + model.place.bias + position
    layer = model.layers[0]
    inter = []
    for h in range(2):
        q, k = (t1 @ w.weight[3 * h : 3 * h + 3].T for w in (layer.query, layer.key))
        v = t1 @ layer.value.weight[4 * h : 4 * h + 4].T
        inter.append(torch.softmax(q @ k.T / math.sqrt(3), dim=1) @ v)
    t3 = layer.mlp(layer.norm(torch.cat(inter, dim=1)))
    dmq = model.dmq
    q_z, k, v = (
        dmq.queries @ dmq.query.weight.T,
        t3 @ dmq.key.weight.T,
        t3 @ dmq.value.weight.T,
    )
    attention = torch.softmax(q_z @ k.T / math.sqrt(8), dim=1)
    z = attention @ v
    gates = torch.sigmoid(z @ dmq.gate.weight.T + dmq.gate.bias)[:, 0]
    bag = (gates[:, None] * z).sum(0)
    return bag @ model.classifier.weight.T + model.classifier.bias, attention, gates


def test_iaam_is_the_equations_written_out() -> None:
    model = small()
    features, coords, scale = a_bag()
    logits, attention, gates = by_hand(model, features, coords, scale)
    out = model(features, coords, scale)
    torch.testing.assert_close(out.logits[0], logits, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(out.query_attention[0], attention, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(out.gates[0], gates, atol=1e-7, rtol=1e-7)
    mean = (gates[:, None] * attention).sum(0) / gates.sum()
    torch.testing.assert_close(out.attention[0], mean, atol=1e-7, rtol=1e-7)


def test_sinusoid_starts_with_sine_0_and_cosine_1_and_has_any_length_and_width() -> (
    None
):
    table = sinusoid(5, 7)
    assert table.shape == (5, 7)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert table[3, 0].item() == pytest.approx(math.sin(3))
    assert table[2, 3].item() == pytest.approx(math.cos(2 / 10_000 ** (2 / 7)))


def test_position_and_scale_both_move_the_answer() -> None:
    model = small()
    features, coords, scale = a_bag()
    logits = model(features, coords, scale).logits
    assert (model(features, coords.flip(-1), scale).logits - logits).abs().max() > 1e-6
    assert (model(features, coords, 2 - scale).logits - logits).abs().max() > 1e-6


def test_the_papers_sizes_are_the_defaults() -> None:
    model = IAAM(512, 3)
    layer = model.layers[0]
    assert len(model.layers) == 1
    assert layer.query.weight.shape == (8 * 32, 512)
    assert layer.value.weight.shape == (512, 512)
    assert layer.mlp[0].weight.shape == (2048, 512)
    assert model.dmq.queries.shape == (10, 512)
    assert model.place.weight.shape == (512, 3)
    assert model.classifier.weight.shape == (3, 512)


@pytest.mark.parametrize(("gate", "total"), [("normalised", 1.0), ("softmax", 1.0)])
def test_gates_sum_to_one_only_where_they_are_normalised(
    gate: str, total: float
) -> None:
    assert small(gate=gate)(*a_bag()).gates.sum().item() == pytest.approx(total)
    assert small()(*a_bag()).gates.sum().item() != pytest.approx(1.0, abs=1e-3)


def test_iaam_runs_on_the_fused_kernel_in_training() -> None:
    torch.manual_seed(0)
    model = IAAM(16, 3, IAAMArgs(heads=2, rank=4)).train()
    bag = (
        torch.randn(1, 21, 16),
        torch.rand(1, 21, 2),
        torch.zeros(1, 21, dtype=torch.long),
    )
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        model(*bag).logits.sum().backward()


def test_received_attention_is_the_mean_column_of_the_low_rank_matrix() -> None:
    model = small()
    features, coords, scale = a_bag()
    found = model.received(features, coords, scale, block=2)
    t1 = model.inject(features, coords, scale)[0]
    layer = model.layers[0]
    for h in range(2):
        q, k = (t1 @ w.weight[3 * h : 3 * h + 3].T for w in (layer.query, layer.key))
        column = torch.softmax(q @ k.T / math.sqrt(3), dim=1).mean(0)
        torch.testing.assert_close(found[0, h], column, atol=1e-7, rtol=1e-7)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.numel())
        return out


def test_no_tensor_ever_grows_with_the_square_of_the_bag() -> None:
    """512 instances in blocks of 16: N × N would be 262,144 numbers; the widest thing allowed is N × 64."""
    torch.manual_seed(0)
    model = IAAM(8, 2, IAAMArgs(heads=2, rank=2, mlp_dim=16)).train()
    bag = torch.randn(1, 512, 8), torch.rand(1, 512, 2), torch.zeros(1, 512).long()
    with LargestTensor() as seen:
        model(*bag).logits.sum().backward()
        model.received(*bag, block=16)
    assert 512 * 16 <= seen.numel <= 512 * 64


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads"):
        IAAM(10, 2, IAAMArgs(heads=3))
