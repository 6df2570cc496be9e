"""Other ways to block the exact low-rank attention on a CPU, against the one built in: why it is not faster.

python benchmarks/attention_ways.py 4000 --repeats 3
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_msamil.models.attention import low_rank_attention


def all_heads(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """Blocks of queries, every head at once, no padding."""
    q, keys, v = q[0] * q.shape[-1] ** -0.5, k[0].transpose(1, 2), v[0]
    out = torch.empty_like(v)
    for s in range(0, q.shape[1], block):
        out[:, s : s + block] = torch.softmax(q[:, s : s + block] @ keys, -1) @ v
    return out[None]


def head_by_head(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """One head at a time; the sum of a row divides after the product with V."""
    out = torch.empty_like(v)
    for h in range(q.shape[1]):
        keys, queries = k[0, h].t().contiguous(), q[0, h] * q.shape[-1] ** -0.5
        for s in range(0, len(queries), block):
            a = queries[s : s + block] @ keys
            a.sub_(a.amax(1, keepdim=True)).exp_()
            out[0, h, s : s + block] = (a @ v[0, h]) / a.sum(1, keepdim=True)
    return out


def shifted_by_bound(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """The bound |q| max |k| in place of each row's maximum; row sums come from a column of ones beside V."""
    out, ones = torch.empty_like(v), v.new_ones(v.shape[2], 1)
    for h in range(q.shape[1]):
        keys, queries = k[0, h].t().contiguous(), q[0, h] * q.shape[-1] ** -0.5
        bound = queries.norm(dim=1, keepdim=True) * k[0, h].norm(dim=1).max()
        values = torch.cat([v[0, h], ones], 1)
        for s in range(0, len(queries), block):
            part = slice(s, s + block)
            found = torch.addmm(-bound[part], queries[part], keys).exp_() @ values
            out[0, h, part] = found[:, :-1] / found[:, -1:]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("n", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    q, k = (torch.randn(1, 8, args.n, 32) for _ in range(2))
    v = torch.randn(1, 8, args.n, 64)
    ways = {"N × N": F.scaled_dot_product_attention, "built in": low_rank_attention}
    for kind in (all_heads, head_by_head, shifted_by_bound):
        for block in (128, 256, 1024):
            ways[f"{kind.__name__}, {block}"] = lambda *x, f=kind, b=block: f(*x, b)
    with torch.inference_mode():
        exact = low_rank_attention(q, k, v)
        for name, way in ways.items():
            gap, turns = float((way(q, k, v) - exact).abs().max()), []
            for _ in range(args.repeats):
                start = time.perf_counter()
                way(q, k, v)
                turns.append(time.perf_counter() - start)
            print(f"{name:24s} {statistics.median(turns):7.3f} s  differs by {gap:.1e}")


if __name__ == "__main__":
    main()
