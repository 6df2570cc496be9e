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
from torch.nn import functional as F

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
    """Mean over rows of log Σ_j exp(1[j ≠ y] + s_j − s_y); logits (M, C), target (M,)."""
    margin = 1.0 - F.one_hot(target, logits.shape[1])
    own = logits.gather(1, target[:, None])
    return torch.logsumexp(margin + logits - own, dim=1).mean()


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

    def project(self, features: Tensor) -> Tensor:
        """Features (B, N, in_dim) → (B, N, hidden)."""
        projected: Tensor = self.projection(features)
        return projected

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
        """Instance clustering loss, weighted; scored (B, N, C, 2), branches (B, 1 or C, N)."""
        each = []
        for scores, attention, true in zip(
            scored, branches, label.tolist(), strict=True
        ):
            terms = [
                self._clustering(scores[:, true], attention[true % len(attention)])
            ]
            if self.args.subtyping:
                others = (c for c in range(self.n_classes) if c != true)
                terms += [
                    self._rejection(scores[:, c], attention[c % len(attention)])
                    for c in others
                ]
            each.append(
                torch.stack(terms).sum()
                / (self.n_classes if self.args.subtyping else 1)
            )
        return {"instance": self.args.instance_weight * torch.stack(each).mean()}

    def _clustering(self, scores: Tensor, attention: Tensor) -> Tensor:
        """Strongest k → 1, weakest k → 0; scores (N, 2), attention (N,)."""
        k = min(self.args.k, len(attention) // 2)
        order = attention.detach().argsort(descending=True)
        strong, weak = order[: max(k, 1)], order[len(order) - k :]
        target = torch.cat([torch.ones_like(strong), torch.zeros_like(weak)])
        return self._loss(scores[torch.cat([strong, weak])], target)

    def _rejection(self, scores: Tensor, attention: Tensor) -> Tensor:
        """Strongest k of a class the bag does not have → 0."""
        k = min(self.args.k, len(attention))
        strong = attention.detach().topk(k).indices
        return self._loss(scores[strong], torch.zeros_like(strong))

    def _loss(self, scores: Tensor, target: Tensor) -> Tensor:
        if self.args.instance_loss == "svm":
            return smooth_top1_svm(accurate(scores), target)
        return F.cross_entropy(accurate(scores), target)


class CLAMMulti(CLAMSingle):
    """CLAM-MB."""

    branches = "classes"
