"""Graph attention with scatter operations: no graph library is needed.

Paper: Veličković et al., Graph attention networks, ICLR 2018, eq. 1 to 6, heads averaged:
e_ij = LeakyReLU(a_sᵀ W h_j + a_tᵀ W h_i), α = softmax over the edges j → i and i itself, h'_i = mean_heads Σ_j α_ij W h_j + bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from napari_msamil.models.attention import accurate


def edge_softmax(scores: Tensor, target: Tensor, nodes: int) -> Tensor:
    """Softmax of edge scores (E, H) over the edges that share a target (E,)."""
    index = target[:, None].expand_as(scores)
    highest = scores.new_full((nodes, scores.shape[1]), float("-inf"))
    highest = highest.scatter_reduce(0, index, scores.detach(), "amax")
    weights = (scores - highest[target]).exp()
    total = weights.new_zeros(nodes, scores.shape[1]).index_add(0, target, weights)
    return weights / total[target]


class GraphAttention(nn.Module):
    """One layer: nodes (N, in_dim), edges (2, E) → nodes (N, out_dim)."""

    def __init__(
        self, in_dim: int, out_dim: int, heads: int = 3, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.weight = nn.Linear(in_dim, heads * out_dim, bias=False)
        self.source = nn.Parameter(torch.empty(heads, out_dim))
        self.target = nn.Parameter(torch.empty(heads, out_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        nn.init.xavier_uniform_(self.source)
        nn.init.xavier_uniform_(self.target)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Attend over the neighbours and oneself.

        Args:
            x: (N, in_dim).
            edges: int64 (2, E), source and target; self-loops are added here.
        """
        nodes = len(x)
        own = torch.arange(nodes, device=x.device)
        source, target = torch.cat([edges, own.expand(2, -1)], dim=1)
        mapped = self.weight(x).reshape(nodes, self.heads, -1)
        scores = (mapped * self.source).sum(-1)[source] + (mapped * self.target).sum(
            -1
        )[target]
        share = edge_softmax(F.leaky_relu(accurate(scores), 0.2), target, nodes)
        share = F.dropout(share, self.dropout, self.training).to(mapped.dtype)
        gathered = torch.zeros_like(mapped).index_add(
            0, target, share[..., None] * mapped[source]
        )
        return gathered.mean(1) + self.bias
