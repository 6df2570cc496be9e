"""One tester for every aggregator: a new method gets its tests by naming itself."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from napari_msamil.config import AggregatorSpec
from napari_msamil.errors import ConfigError, MsamilError
from napari_msamil.models import AGGREGATORS, build_aggregator

if TYPE_CHECKING:
    from napari_msamil.models.base import Aggregator

IN_DIM, CLASSES = 24, 3


def families(columns: int, rows: int) -> tuple[Tensor, Tensor]:
    """Coords (N, 2) and scale (N,) of nested patches: columns × rows of the coarsest, all their children."""
    coords, scales = [], []
    for s, per_side in ((2, 1), (1, 2), (0, 4)):
        xs = torch.arange(columns * per_side) / (10 * per_side)
        ys = torch.arange(rows * per_side) / (12 * per_side)
        grid = torch.cartesian_prod(xs, ys)
        coords.append(grid)
        scales.append(torch.full((len(grid),), s))
    return torch.cat(coords), torch.cat(scales)


def bag(n: int | None = None, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Features (1, N, IN_DIM), coords, scale of one bag; the first n of 63 patches of three scales."""
    coords, scale = families(3, 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(coords), generator=generator)[:n]
    features = torch.randn(1, len(order), IN_DIM, generator=generator)
    return features, coords[order][None], scale[order][None]


class NoFloat64(TorchDispatchMode):
    """A device without float64, as Apple's mps is."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            assert getattr(tensor, "dtype", None) != torch.float64, str(func)
        return found


class AggregatorTester:
    """Behaviour every method must have; subclasses give a registry name."""

    name: ClassVar[str]
    args: ClassVar[dict[str, Any]] = {}
    order_matters: ClassVar[bool] = False
    padding_tolerance: ClassVar[float] = 1e-5

    def build(self) -> Aggregator:
        torch.manual_seed(0)
        spec = AggregatorSpec(name=self.name, in_dim=IN_DIM, args=self.args)
        return build_aggregator(spec, CLASSES).eval()

    @pytest.mark.parametrize("n", [1, 2, 5, 17, 63])
    def test_any_number_of_instances_gives_finite_logits_and_attention_of_sum_1(
        self, n: int
    ) -> None:
        out = self.build()(*bag(n))
        assert out.logits.shape == (1, CLASSES)
        assert out.logits.isfinite().all()
        assert out.embedding.shape[0] == 1
        assert out.embedding.ndim == 2
        assert out.attention.shape == (1, n)
        assert (out.attention >= 0).all()
        torch.testing.assert_close(out.attention.sum(1), torch.ones(1))

    def test_runs_where_the_device_has_no_float64(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # what `doubled` makes lies on the CPU there
        monkeypatch.setattr("napari_msamil.models.lattice.doubled", torch.Tensor.float)
        network = self.build()
        with NoFloat64():
            network(*bag(17))
            network.train()(*bag(17)).logits.sum().backward()

    def test_fields_with_instances_have_their_documented_shapes(self) -> None:
        out = self.build()(*bag(17))
        if out.query_attention is not None:
            assert out.gates is not None
            assert out.query_attention.shape == (1, out.gates.shape[1], 17)
            torch.testing.assert_close(
                out.query_attention.sum(-1), torch.ones_like(out.gates)
            )
        if out.mining_attention is not None:
            assert out.mining_attention.ndim == 3
            assert out.mining_attention.shape[2] == 17
        if out.instance_logits is not None:
            assert out.instance_logits.shape == (1, 17, CLASSES)

    def test_an_empty_bag_is_an_error_and_not_nan(self) -> None:
        model = self.build()
        features, coords, scale = bag(4)
        with pytest.raises(MsamilError, match="no valid patch"):
            model(features[:, :0], coords[:, :0], scale[:, :0])
        valid = torch.tensor([[True] * 4, [False] * 4])
        two = [t.expand(2, *t.shape[1:]) for t in (features, coords, scale)]
        with pytest.raises(MsamilError, match="no valid patch"):
            model(*two, valid)

    def test_features_of_another_width_are_refused(self) -> None:
        features, coords, scale = bag(4)
        with pytest.raises(ConfigError, match=str(IN_DIM)):
            self.build()(features[..., :7], coords, scale)

    def test_padding_changes_nothing(self) -> None:
        model = self.build()
        short, long = bag(11, seed=1), bag(19, seed=2)
        valid = torch.zeros(2, 23, dtype=torch.bool)
        padded = [torch.full((2, 23, *t.shape[2:]), 99).to(t.dtype) for t in short]
        places = (torch.randperm(23)[:11].sort().values, torch.arange(19))
        for b, (one, place) in enumerate(zip((short, long), places, strict=True)):
            valid[b, place] = True
            for whole, part in zip(padded, one, strict=True):
                whole[b, place] = part[0]
        padded[0][~valid] = float("nan")
        together = model(*padded, valid)
        for b, (one, place) in enumerate(zip((short, long), places, strict=True)):
            alone = model(*one)
            close = {"atol": self.padding_tolerance, "rtol": 1e-4}
            torch.testing.assert_close(together.logits[b], alone.logits[0], **close)
            torch.testing.assert_close(
                together.attention[b, place], alone.attention[0], **close
            )
            torch.testing.assert_close(
                together.embedding[b], alone.embedding[0], **close
            )
            assert (together.attention[b, ~valid[b]] == 0).all()
        together.logits.square().sum().backward()
        wrong = [k for k, p in model.named_parameters() if p.grad is not None]
        wrong = [k for k in wrong if not model.get_parameter(k).grad.isfinite().all()]
        assert wrong == []

    def test_order_of_instances_matters_only_where_it_should(self) -> None:
        model = self.build()
        features, coords, scale = bag(31)
        order = torch.randperm(31, generator=torch.Generator().manual_seed(5))
        one = model(features, coords, scale)
        other = model(features[:, order], coords[:, order], scale[:, order])
        if self.order_matters:
            assert (one.logits - other.logits).abs().max() > 1e-6
        else:
            torch.testing.assert_close(one.logits, other.logits)
            torch.testing.assert_close(one.attention[:, order], other.attention)

    def test_evaluation_is_deterministic(self) -> None:
        model = self.build()
        torch.testing.assert_close(
            model(*bag(29)).logits, model(*bag(29)).logits, rtol=0, atol=0
        )

    def test_project_then_aggregate_is_forward(self) -> None:
        model = self.build()
        features, coords, scale = bag(29)
        parts = model.aggregate(model.project(features), coords, scale)
        torch.testing.assert_close(
            parts.logits, model(features, coords, scale).logits, rtol=0, atol=0
        )

    def test_gradients_reach_every_parameter_and_every_instance(self) -> None:
        model = self.build().train()
        features, coords, scale = bag()
        features.requires_grad_()
        label = torch.tensor([2])
        out = model(features, coords, scale, label=label)
        loss = model.bag_loss_weight * F.cross_entropy(out.logits, label)
        loss = loss + sum((out.losses or {}).values())
        loss.backward()
        untouched = [k for k, p in model.named_parameters() if p.grad is None]
        assert untouched == []
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert features.grad is not None
        assert features.grad.isfinite().all()

    def test_gradients_are_right_in_float64(self) -> None:
        model = self.build().double()
        features, coords, scale = bag(9)
        label = torch.tensor([1])

        def loss(x: Tensor) -> Tensor:
            out = model(x, coords.double(), scale, label=label)
            return F.cross_entropy(out.logits, label) + sum((out.losses or {}).values())

        leaf = features.double().requires_grad_()
        assert torch.autograd.gradcheck(loss, (leaf,), fast_mode=True)

    def test_losses_appear_only_with_a_label(self) -> None:
        assert self.build()(*bag(9)).losses is None

    def test_state_survives_a_safetensors_round_trip(self) -> None:
        model, fresh = self.build(), self.build()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * torch.randn_like(p))
        fresh.load_state_dict(load(save(model.state_dict())), strict=True)
        torch.testing.assert_close(
            fresh(*bag(13)).logits, model(*bag(13)).logits, rtol=0, atol=0
        )

    def test_bfloat16_autocast_stays_near_float32(self) -> None:
        model = self.build()
        features, coords, scale = bag(41)
        exact = model(features, coords, scale).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(features, coords, scale)
        torch.testing.assert_close(rough.logits.float(), exact, atol=0.08, rtol=0.08)
        torch.testing.assert_close(
            rough.attention.float().sum(1), torch.ones(1), atol=0.02, rtol=0
        )

    def test_unknown_arguments_are_refused_with_those_it_knows(self) -> None:
        spec = AggregatorSpec(name=self.name, in_dim=IN_DIM, args={"headz": 3})
        with pytest.raises(ConfigError, match="headz"):
            build_aggregator(spec, CLASSES)

    def test_methods_that_need_places_say_so(self) -> None:
        model = self.build()
        if model.needs_positions:
            with pytest.raises(ConfigError, match="coordinates"):
                model(bag(3)[0])
        else:
            assert model(bag(3)[0]).logits.isfinite().all()


class TestIAAM(AggregatorTester):
    name = "iaam"
    order_matters = True


class TestIAAMResidualTwoLayersNormalisedGates(AggregatorTester):
    name = "iaam"
    args: ClassVar = {
        "residual": True,
        "layers": 2,
        "gate": "normalised",
        "dim": 40,
        "heads": 5,
        "rank": 3,
    }
    order_matters = True


class TestABMIL(AggregatorTester):
    name = "abmil"


class TestABMILAsInMHIM(AggregatorTester):
    name = "abmil"
    args: ClassVar = {"gated": False, "activation": "relu", "bias": False}


class TestCLAMSingle(AggregatorTester):
    name = "clam_sb"
    args: ClassVar = {"subtyping": True}


class TestCLAMMulti(AggregatorTester):
    name = "clam_mb"
    args: ClassVar = {"subtyping": True, "instance_loss": "svm"}


class TestDSMIL(AggregatorTester):
    name = "dsmil"


class TestDSMILWithProjectionAndValues(AggregatorTester):
    name = "dsmil"
    args: ClassVar = {"hidden": 32, "value": True}


class TestDTFD(AggregatorTester):
    name = "dtfd"
    order_matters = True


class TestDTFDMaxMin(AggregatorTester):
    name = "dtfd"
    args: ClassVar = {"distill": "maxmins", "groups": 3}
    order_matters = True


class TestTransMIL(AggregatorTester):
    name = "transmil"
    args: ClassVar = {"hidden": 64, "heads": 4}
    order_matters = True


class TestTransMILAsInMHIM(AggregatorTester):
    name = "transmil"
    args: ClassVar = {
        "hidden": 64,
        "square": "ppeg",
        "landmark_kind": "segments",
        "mining_layer": 1,
    }
    order_matters = True


class TestMambaMIL(AggregatorTester):
    name = "mambamil"
    args: ClassVar = {"hidden": 16, "state": 4}
    order_matters = True


class TestCSMIL(AggregatorTester):
    name = "csmil"


class TestMILBooster(AggregatorTester):
    name = "milbooster"


class TestDASMIL(AggregatorTester):
    name = "dasmil"
    args: ClassVar = {"hidden": 20, "distill": 0.5}


def test_every_registered_method_has_a_tester() -> None:
    testers = [
        c
        for c in globals().values()
        if inspect.isclass(c) and issubclass(c, AggregatorTester)
    ]
    assert {c.name for c in testers if c is not AggregatorTester} == set(AGGREGATORS)


def test_an_unknown_method_is_answered_with_the_list() -> None:
    with pytest.raises(ConfigError, match="iaam, abmil"):
        build_aggregator(AggregatorSpec(name="mean"), 2)
