"""CLAM: attention pooling whose strongest and weakest instances also train a classifier of instances.

Paper: Lu et al., Data-efficient and weakly supervised computational pathology on whole-slide images, Nature
Biomedical Engineering 2021. Written from the paper's equations.

h = ReLU(W x); a = softmax_n(w_aᵀ(tanh(V h) ⊙ σ(U h))); z = Σ a h. Single branch (SB): one attention, one Linear layer. Multi
branch (MB): one attention and one linear output per class. Instance clustering for a bag of class c: the k instances with the
largest attention get label 1, the k with the smallest get 0, by a two-way classifier of class c; with `subtyping`, the
strongest instances get label 0 in the classifiers of all other classes. L = 0.7 · CE(bag) + 0.3 · L_instance.

What differs: k is clamped to half the bag, so that small bags neither fail nor put an instance into both sets; with one
instance only the positive set is used. For MB, `attention` is the mean of the classes' attentions weighted by the predicted
probabilities, and `embedding` the mean of their vectors. `instance_logits` is log-odds of each class's instance classifier.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_msamil.config import Spec
from napari_msamil.models.abmil import InstanceScores, projection
from napari_msamil.models.attention import accurate
from napari_msamil.models.base import Aggregator
from napari_msamil.models.outputs import MILOutput


class CLAMArgs(Spec):
    """Arguments of CLAM; `attention_dim=384` is the paper's "big" model.

    Attributes:
        hidden: Width of the projection.
        attention_dim: Hidden width of the gated attention.
        dropout: Behind the projection and inside the attention.
        k: Instances in each of the two sets.
        subtyping: Whether classes exclude each other, so that out-of-class instances are trained as negative.
        instance_loss: `ce`, or `svm`: the smooth top-1 support vector loss, τ = α = 1.
        instance_weight: Share of the instance loss in the sum.
    """

    hidden: int = Field(default=512, ge=1)
    attention_dim: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    k: int = Field(default=8, ge=1)
    subtyping: bool = False
    instance_loss: Literal["ce", "svm"] = "ce"
    instance_weight: float = Field(default=0.3, ge=0, le=1)


def smooth_top1_svm(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over K of log Σ_j exp(1[j ≠ y] + s_j − s_y); logits (…, K, C), target (…, K) → (…)."""
    own = logits.take_along_dim(target[..., None], -1)
    other = torch.arange(logits.shape[-1], device=logits.device) != target[..., None]
    return torch.logsumexp(other.to(logits.dtype) + logits - own, dim=-1).mean(-1)


class CLAMSingle(Aggregator):
    """CLAM-SB."""

    Args = CLAMArgs
    branches: ClassVar[Literal["one", "classes"]] = "one"

    def __init__(
        self, in_dim: int, n_classes: int, args: CLAMArgs | None = None
    ) -> None:
        super().__init__(in_dim, n_classes)
        self.args = args = args or CLAMArgs()
        self.bag_loss_weight = 1.0 - args.instance_weight
        self.projection = projection(in_dim, args.hidden, args.dropout)
        out = 1 if self.branches == "one" else n_classes
        self.scores = InstanceScores(
            args.hidden, args.attention_dim, out, gated=True, dropout=args.dropout
        )
        self.classifier = nn.Linear(args.hidden, n_classes)
        self.instance_classifiers = nn.ModuleList(
            nn.Linear(args.hidden, 2) for _ in range(n_classes)
        )

    def _pool(
        self,
        x: Tensor,
        coords: Tensor | None,
        scale: Tensor | None,
        label: Tensor | None,
    ) -> MILOutput:
        branches = accurate(self.scores(x)).softmax(1).transpose(1, 2)
        bags = branches.to(x.dtype) @ x
        if self.branches == "one":
            logits = self.classifier(bags[:, 0])
            attention = branches[:, 0]
        else:
            logits = (bags * self.classifier.weight).sum(-1) + self.classifier.bias
            attention = (
                accurate(logits.detach()).softmax(-1)[..., None] * branches
            ).sum(1)
        scored = torch.stack([c(x) for c in self.instance_classifiers], dim=2)
        losses = (
            None if label is None else self._instance_losses(scored, branches, label)
        )
        return MILOutput(
            logits,
            attention,
            bags.mean(1),
            instance_logits=scored[..., 1] - scored[..., 0],
            losses=losses,
        )

    def _instance_losses(
        self, scored: Tensor, branches: Tensor, label: Tensor
    ) -> dict[str, Tensor]:
        """Instance clustering loss, weighted; scored (B, N, C, 2), branches (B, 1 or C, N), label (B,)."""
        branches = branches.detach().expand(-1, self.n_classes, -1)
        own = label[:, None, None]
        scores = scored.take_along_dim(own[..., None], 2).squeeze(2)
        loss = self._clustering(scores, branches.take_along_dim(own, 1).squeeze(1))
        if self.args.subtyping:
            other = torch.arange(self.n_classes, device=label.device) != label[:, None]
            rejected = (self._rejection(scored, branches) * other).sum(1)
            loss = (loss + rejected) / self.n_classes
        return {"instance": self.args.instance_weight * loss.mean()}

    def _clustering(self, scores: Tensor, attention: Tensor) -> Tensor:
        """Strongest k → 1, weakest k → 0; scores (B, N, 2), attention (B, N) → (B,)."""
        n = attention.shape[1]
        k = min(self.args.k, n // 2)
        order = attention.argsort(dim=1, descending=True)
        strong, weak = order[:, : max(k, 1)], order[:, n - k :]
        target = torch.cat([torch.ones_like(strong), torch.zeros_like(weak)], 1)
        chosen = torch.cat([strong, weak], 1)[..., None]
        return self._loss(scores.take_along_dim(chosen, 1), target)

    def _rejection(self, scored: Tensor, branches: Tensor) -> Tensor:
        """Strongest k of each class → 0; scored (B, N, C, 2), branches (B, C, N) → (B, C)."""
        k = min(self.args.k, branches.shape[2])
        strong = branches.topk(k, dim=2).indices
        scores = scored.transpose(1, 2).take_along_dim(strong[..., None], 2)
        return self._loss(scores, torch.zeros_like(strong))

    def _loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Mean over the last axis of instances: scores (…, K, 2), target (…, K) → (…)."""
        scores = accurate(scores)
        if self.args.instance_loss == "svm":
            return smooth_top1_svm(scores, target)
        each = scores.log_softmax(-1).take_along_dim(target[..., None], -1)
        return -each.squeeze(-1).mean(-1)


class CLAMMulti(CLAMSingle):
    """CLAM-MB."""

    branches = "classes"
