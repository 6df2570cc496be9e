"""The methods that torchmil (Apache-2.0) also has: the same weights give the same answers, or the difference is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from napari_msamil.models.abmil import ABMIL, ABMILArgs
from napari_msamil.models.clam import CLAMArgs, CLAMSingle
from napari_msamil.models.dsmil import DSMIL, DSMILArgs
from napari_msamil.models.dtfd import DTFD, DTFDArgs
from napari_msamil.models.nystrom import NystromAttention
from napari_msamil.models.transmil import TransMIL, TransMILArgs

if TYPE_CHECKING:
    from collections.abc import Iterator

torchmil_models = pytest.importorskip("torchmil.models")
torchmil_attention = pytest.importorskip("torchmil.nn.attention")

D, N = 12, 19


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    yield
    torch.set_default_dtype(before)


def copy(theirs: nn.Module, ours: nn.Linear) -> None:
    theirs = getattr(theirs, "module", theirs)
    with torch.no_grad():
        ours.weight.copy_(theirs.weight)
        if ours.bias is not None:
            ours.bias.copy_(
                torch.zeros_like(ours.bias) if theirs.bias is None else theirs.bias
            )


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def copy_pool(theirs: nn.Module, ours: nn.Module) -> None:
    copy(theirs.fc1, ours.v)
    copy(theirs.fc2, ours.w)
    if ours.u is not None:
        copy(theirs.fc_gated, ours.u)


def no_projection(model: ABMIL | CLAMSingle | DTFD | TransMIL) -> None:
    """torchmil's methods start behind the projection."""
    model.projection = nn.Identity()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("phi", ["tanh", "relu"])
def test_abmil_equals_torchmil(gated: bool, phi: str) -> None:
    theirs = torchmil_models.ABMIL((D,), att_dim=5, att_act=phi, gated=gated).eval()
    args = ABMILArgs(hidden=D, attention_dim=5, gated=gated, activation=phi)
    ours = ABMIL(D, 1, args).eval()
    no_projection(ours)
    copy_pool(theirs.pool, ours.scores)
    copy(theirs.classifier, ours.classifier)
    x, valid = torch.randn(3, N, D), torch.rand(3, N) > 0.4
    logits, scores = theirs(x, valid, return_att=True)
    out = ours(x, valid=valid)
    close(out.logits[:, 0], logits)
    close(out.attention, scores.masked_fill(~valid, float("-inf")).softmax(-1))


def test_clam_sb_bag_answer_equals_torchmil() -> None:
    """The instance losses differ: torchmil adds an out-of-class term always and pushes two-way logits through a binary loss."""
    theirs = torchmil_models.CLAM_SB(
        (D,), att_dim=5, gated=True, inst_loss_name="BCEWithLogitsLoss"
    ).eval()
    ours = CLAMSingle(D, 1, CLAMArgs(hidden=D, attention_dim=5)).eval()
    no_projection(ours)
    copy_pool(theirs.pool, ours.scores)
    copy(theirs.classifier, ours.classifier)
    x = torch.randn(2, N, D)
    logits, scores = theirs(x, return_att=True)
    out = ours(x)
    close(out.logits[:, 0], logits)
    close(out.attention, scores.softmax(-1))


@pytest.mark.parametrize("value", [False, True])
def test_dsmil_equals_torchmil(value: bool) -> None:
    """With one class, torchmil's bag Linear layer is our convolution."""
    theirs = torchmil_models.DSMIL(
        (D,), att_dim=5, nonlinear_q=True, nonlinear_v=value
    ).eval()
    ours = DSMIL(D, 1, DSMILArgs(query_dim=5, value=value)).eval()
    streams = ours.streams
    copy(theirs.inst_classifier, streams.instance)
    for i in (0, 2):
        copy(theirs.q_nn[i], streams.query[i])
    if value:
        copy(theirs.v_nn[1], streams.value[1])
    with torch.no_grad():
        streams.bag.weight.copy_(theirs.bag_classifier.weight[:, None])
        streams.bag.bias.copy_(theirs.bag_classifier.bias)
    x = torch.randn(2, N, D)
    logits, attention, instance = theirs(x, return_att=True, return_inst_pred=True)
    out = ours(x)
    close(out.logits[:, 0], logits)
    close(out.attention, attention[..., 0])
    close(out.instance_logits[..., 0], instance)


@pytest.mark.parametrize("groups", [1, 4])
def test_dtfd_with_attention_features_equals_torchmil_for_the_same_split(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchmil's attention is not gated, so our gate is opened: U = 0 and a doubled w give w · tanh(V h)."""
    theirs = torchmil_models.DTFDMIL(
        (D,), att_dim=5, n_groups=groups, distill_mode="afs"
    ).eval()
    ours = DTFD(D, 1, DTFDArgs(hidden=D, attention_dim=5, groups=groups)).eval()
    no_projection(ours)
    pairs = (
        (theirs.attention_pool, theirs.classifier, ours.tier1),
        (theirs.u_attention_pool, theirs.u_classifier, ours.tier2),
    )
    for pool, classifier, tier in pairs:
        copy(pool.fc1, tier.scores.v)
        copy(pool.fc2, tier.scores.w)
        copy(classifier, tier.classifier)
        with torch.no_grad():
            tier.scores.w.weight.mul_(2)
            tier.scores.u.weight.zero_()
            tier.scores.u.bias.zero_()
    split = np.array_split(np.arange(N), groups)
    monkeypatch.setattr(np.random, "shuffle", lambda _: None)
    monkeypatch.setattr(ours, "split", lambda _: [torch.tensor(part) for part in split])
    x = torch.randn(1, N, D)
    logits, tier1, cam = theirs(x, return_pseudo_pred=True, return_inst_cam=True)
    label = torch.tensor([0])
    out = ours(x, label=label)
    close(out.logits[:, 0], logits)
    close(out.instance_logits[0, :, 0] - ours.tier1.classifier.bias, cam[0])
    assert tier1.shape == (1, groups)


def nystrom_pair(landmarks: int, iterations: int) -> tuple[nn.Module, NystromAttention]:
    theirs = torchmil_attention.NystromAttention(
        D, att_dim=D, n_heads=3, n_landmarks=landmarks, pinv_iterations=iterations
    ).eval()
    ours = NystromAttention(D, 3, landmarks, iterations).eval()
    with torch.no_grad():
        theirs.qkv_nn.weight.mul_(
            4
        )  # Sharp attention: its landmark matrix is far from singular.
    copy(theirs.qkv_nn, ours.qkv)
    with torch.no_grad():
        ours.value_conv.weight.zero_()
    ours.out = nn.Identity()
    return theirs, ours


@pytest.mark.parametrize("landmarks", [4, 5, 32])
def test_nystrom_attention_equals_torchmil_once_the_inverse_has_converged(
    landmarks: int,
) -> None:
    theirs, ours = nystrom_pair(landmarks, iterations=60)
    x = torch.randn(1, N, D)
    their_out, their_attention = theirs(x, return_att=True)
    out, row = ours(x, with_row=True)
    torch.testing.assert_close(out, their_out, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(row, their_attention[:, :, 0], atol=1e-8, rtol=1e-6)


def test_unlike_torchmil_nystrom_attention_of_a_bag_does_not_depend_on_its_batch() -> (
    None
):
    """The named difference: our inverse starts from each matrix' own norms."""
    theirs, ours = nystrom_pair(4, iterations=2)
    one, other = torch.randn(1, N, D), 9 * torch.randn(1, N, D)
    both = torch.cat([one, other])
    close(ours(both)[0][:1], ours(one)[0])
    assert (theirs(both)[:1] - theirs(one)).abs().max() > 1e-5


def test_transmil_equals_torchmil_once_the_inverse_has_converged() -> None:
    """torchmil has no value convolution, no output projection and no ReLU in front; ours are switched off here."""
    theirs = torchmil_models.TransMIL(
        (D,), att_dim=D, n_heads=3, n_landmarks=6, pinv_iterations=60
    ).eval()
    args = TransMILArgs(hidden=D, heads=3, landmarks=6, iterations=60, mining_layer=1)
    ours = TransMIL(D, 1, args).eval()
    no_projection(ours)
    for their_layer, layer in zip(
        theirs.layers, (ours.layer1, ours.layer2), strict=True
    ):
        with torch.no_grad():
            their_layer.att_module.qkv_nn.weight.mul_(4)
        copy(their_layer.att_module.qkv_nn, layer.attention.qkv)
        layer.norm.load_state_dict(their_layer.norm1.state_dict())
        layer.attention.out = nn.Identity()
        nn.init.zeros_(layer.attention.value_conv.weight)
    their_convs = (
        theirs.pos_layer.proj,
        theirs.pos_layer.proj1,
        theirs.pos_layer.proj2,
    )
    for their_conv, conv in zip(their_convs, ours.ppeg.convs, strict=True):
        conv.load_state_dict(their_conv.state_dict())
    with torch.no_grad():
        ours.class_token.copy_(theirs.cls_token)
    ours.norm.load_state_dict(theirs.norm.state_dict())
    copy(theirs.classifier, ours.classifier)
    x = torch.randn(1, 16, D)
    logits, attention = theirs(x, return_att=True)
    out = ours(x)
    torch.testing.assert_close(out.logits[:, 0], logits, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(
        out.mining_attention.mean(1), attention, atol=1e-8, rtol=1e-6
    )
