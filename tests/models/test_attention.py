from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from napari_msamil.models.attention import (
    attention_received,
    doubled,
    low_rank_attention,
    merge_heads,
    reference_attention,
    split_heads,
)


@settings(deadline=None, max_examples=40)
@given(
    heads=st.integers(1, 4),
    n=st.integers(1, 40),
    queries=st.integers(1, 9),
    rank=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_padded_attention_is_the_written_formula(
    heads: int, n: int, queries: int, rank: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(n)
    q = torch.randn(2, heads, queries, rank, generator=generator, dtype=torch.float64)
    k = torch.randn(2, heads, n, rank, generator=generator, dtype=torch.float64)
    v = torch.randn(2, heads, n, width, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        low_rank_attention(q, k, v),
        reference_attention(q, k, v),
        atol=1e-12,
        rtol=1e-12,
    )


def test_padded_attention_is_exact_in_float32_at_the_papers_sizes() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 8, 701, 32).unbind()
    v = torch.randn(1, 8, 701, 64)
    exact = reference_attention(q.double(), k.double(), v.double())
    assert (low_rank_attention(q, k, v) - exact).abs().max() < 1e-5


def test_gradients_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, 13, w, dtype=torch.float64, requires_grad=True)
        for w in (3, 3, 5)
    )
    weight = torch.randn(1, 2, 13, 5, dtype=torch.float64)
    fused = torch.autograd.grad((low_rank_attention(q, k, v) * weight).sum(), (q, k, v))
    written = torch.autograd.grad(
        (reference_attention(q, k, v) * weight).sum(), (q, k, v)
    )
    for a, b in zip(fused, written, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("training", [False, True])
def test_the_fused_kernel_really_runs(training: bool) -> None:
    """Only the flash kernel is allowed: a fall-back to the N × N path would raise."""
    q, k, v = (torch.randn(1, 8, 37, w, requires_grad=training) for w in (4, 4, 8))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = low_rank_attention(q, k, v)
        if training:
            out.sum().backward()
            assert q.grad is not None


@pytest.mark.filterwarnings("ignore:Flash attention")
def test_unequal_widths_without_padding_would_fall_back() -> None:
    """What the padding is for; if this starts to pass, torch has learned it and the padding may go."""
    q, k, v = (torch.randn(1, 2, 37, w) for w in (4, 4, 8))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_received_attention_is_the_column_mean(block: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 23, 5).unbind()
    weights = torch.softmax(q @ k.transpose(-1, -2) * 5**-0.5, dim=-1)
    torch.testing.assert_close(attention_received(q, k, block), weights.mean(-2))


def test_heads_are_split_and_merged_back() -> None:
    x = torch.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    heads = split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 2)
    assert heads[1, 2, 0].tolist() == x[1, 0, 4:6].tolist()
    assert torch.equal(merge_heads(heads), x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("heads", "width", "dtype", "kernel"),
    [
        (8, 64, torch.bfloat16, SDPBackend.FLASH_ATTENTION),
        (8, 64, torch.float32, SDPBackend.EFFICIENT_ATTENTION),
        (1, 512, torch.float32, SDPBackend.EFFICIENT_ATTENTION),
    ],
)
def test_a_fused_kernel_runs_on_cuda(
    heads: int, width: int, dtype: torch.dtype, kernel: SDPBackend
) -> None:
    q, k = (torch.randn(1, heads, 777, 32, device="cuda", dtype=dtype) for _ in "qk")
    v = torch.randn(1, heads, 777, width, device="cuda", dtype=dtype)
    with sdpa_kernel(kernel):
        out = low_rank_attention(q, k, v)
    exact = reference_attention(q.double(), k.double(), v.double())
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    assert (out.double() - exact).abs().max() < tolerance


def test_float64_is_made_on_the_cpu_where_the_device_has_none() -> None:
    x = torch.rand(3, dtype=torch.float32)
    assert doubled(x).dtype == torch.float64
    apple = SimpleNamespace(device=SimpleNamespace(type="mps"), cpu=lambda: x)
    torch.testing.assert_close(doubled(apple), x.double())  # type: ignore[arg-type]
