"""Masked hard instance mining: how a bag becomes the student's loss, and how the teacher follows.

MHIM-MIL supplementary, Algorithm 1. One step, for a bag X with label y:

1. teacher (no gradient): embedding f_t and attention of the whole bag;
2. masked = high ∪ low ∪ random (`masking.py`), the high share h(t) decaying along a cosine with the step;
3. student on the survivors only, gathered **before** the projection: f_s and logits;
4. loss = CE(logits, y) + α · consistency(f_t, f_s) (`losses.py`);
5. Adam on the student, then θ_t ← m θ_t + (1 − m) θ_s over parameters (`ema.py`).

The masks of a visit are drawn from (seed, epoch, position) alone and h(t), m(t) follow from the step, so a resumed
run repeats them. What is open in the text, and what is built: the teacher is in evaluation mode (`teacher_mode =
"train"` is what was released: dropout stays on); the student is what validation monitors and `publish` takes, the
teacher is logged beside it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_msamil.errors import ConfigError
from napari_msamil.models import build_aggregator

from .ema import make_teacher, update_teacher
from .losses import consistency_loss
from .masking import Fusion, MaskRatios, select_masked, survivors
from .mil_figures import bag_figures
from .mil_task import MilSpec, MilTask, load_weights, predict, xavier_start
from .schedules import MomentumSchedule, cosine_decay, momentum_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from napari_msamil.config import AggregatorSpec
    from napari_msamil.models.base import Aggregator
    from napari_msamil.models.outputs import MILOutput

    from .bag_dataset import BagBatch, BagDataset
    from .loop import Visit


class MhimSpec(MilSpec):
    """Masked hard instance mining; names and defaults of the supplementary.

    Attributes:
        alpha: Weight of the consistency loss, α.
        high: Share of the bag masked for its high attention, β_h, at the first step.
        low: Share masked for its low attention, β_l.
        random: Share masked at random, β_r.
        high_randomness: Share of the high candidates that is masked: 0.5 is randomly-high masking, 1 masks all.
        decay: Whether β_h decays to 0 along a cosine over all steps.
        momentum: Momentum m of the teacher at the first step.
        momentum_schedule: `constant`, or `cosine` rising to 1 (in two of the four published recipes).
        teacher_temperature, student_temperature: τ of the consistency loss.
        teacher_mode: `eval` (the text) or `train` (as released: the teacher's dropout is on).
        fusion: How heads agree: `voting` or `averaging`.
        layer: Attention of which layer ranks instances, where the method has several: `first` or `last`.
        start: What the student takes from the pretrained network: `projection` (the paper), `all` or `none`.
        per_scale: Mask each scale by its own shares, so that none disappears.
    """

    alpha: float = Field(default=0.1, ge=0)
    high: float = Field(default=0.01, ge=0, le=1)
    low: float = Field(default=0.0, ge=0, le=1)
    random: float = Field(default=0.0, ge=0, le=1)
    high_randomness: float = Field(default=1.0, gt=0, le=1)
    decay: bool = True
    momentum: float = Field(default=0.9999, ge=0, le=1)
    momentum_schedule: MomentumSchedule = MomentumSchedule.CONSTANT
    teacher_temperature: float = Field(default=0.1, gt=0)
    student_temperature: float = Field(default=1.0, gt=0)
    teacher_mode: Literal["eval", "train"] = "eval"
    fusion: Fusion = Fusion.VOTING
    layer: Literal["first", "last"] = "first"
    start: Literal["projection", "all", "none"] = "projection"
    per_scale: bool = False


class MhimTask(MilTask):
    """Training of a student with a momentum teacher.

    Args:
        spec: What to build.
        settings: How to train it.
        train: Training bags.
        val: Validation bags or None.
        classes: Class names.
        pretrained: Weights of the plain network trained on the same fold.
        notes: Plain data kept in every state.

    Raises:
        CheckpointError: The pretrained weights are those of another network.
    """

    kind = "mhim"
    settings: MhimSpec

    def __init__(
        self,
        spec: AggregatorSpec,
        settings: MhimSpec,
        train: BagDataset,
        val: BagDataset | None,
        classes: Sequence[str],
        pretrained: Mapping[str, Tensor],
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        spec = mining_spec(spec, settings.layer)
        super().__init__(spec, settings, train, val, classes, notes)
        self.teacher = self._teacher(pretrained)
        start_student(self.aggregator, pretrained, settings.start)
        self.network = nn.ModuleDict(
            {"student": self.aggregator, "teacher": self.teacher}
        )
        self.epoch_steps = math.ceil(len(train) / settings.accumulate)
        self.total_steps = settings.epochs * self.epoch_steps

    def _teacher(self, pretrained: Mapping[str, Tensor]) -> Aggregator:
        network = build_aggregator(self.spec, len(self.classes))
        load_weights(network, pretrained, "the pretrained network")
        return make_teacher(network.to(self.train.features.device))

    def backward_window(self, visits: Sequence[Visit]) -> list[float | None]:
        """Never together: each bag has a mask of its own."""
        return [self.backward(visit) for visit in visits]

    def backward(self, visit: Visit) -> float | None:
        """Steps 1 to 4 of the module's text for one bag."""
        batch = self.train.one(visit.item)
        seen = self.look(batch)
        masked = self.mask(seen, visit)
        keep = survivors(masked)
        output = self.aggregator(
            batch.features[:, keep],
            batch.coords[:, keep],
            batch.scale[:, keep],
            label=batch.labels,
        )
        settings = self.settings
        loss = self.objective(output, batch) + settings.alpha * consistency_loss(
            seen.embedding,
            output.embedding,
            settings.teacher_temperature,
            settings.student_temperature,
        )
        torch.autograd.backward(loss * visit.weight)
        return float(loss.detach())

    @torch.no_grad()
    def look(self, batch: BagBatch) -> MILOutput:
        """What the teacher sees in a whole bag."""
        self.teacher.train(self.settings.teacher_mode == "train")
        output: MILOutput = self.teacher(batch.features, batch.coords, batch.scale)
        return output

    def mask(self, seen: MILOutput, visit: Visit) -> Tensor:
        """Which instances of the visited bag the student does not see: bool (N,)."""
        return self.mask_of(seen, self.train, visit.item, visit)

    def mask_of(
        self, seen: MILOutput, bags: BagDataset, index: int, visit: Visit
    ) -> Tensor:
        """The same for a bag of any data set; the visit says which step and which draw."""
        attention = mining_scores(seen)
        seed = int(visit.rng(self.settings.seed).integers(2**62))
        generator = torch.Generator(attention.device).manual_seed(seed)
        return select_masked(
            attention,
            self.ratios(self.step_of(visit)),
            generator,
            fusion=self.settings.fusion,
            groups=scale_groups(bags, index) if self.settings.per_scale else (),
        )

    def step_of(self, visit: Visit) -> int:
        """Optimiser step a visit belongs to."""
        return (
            visit.epoch * self.epoch_steps + visit.position // self.settings.accumulate
        )

    def ratios(self, step: int) -> MaskRatios:
        """Shares to mask at a step; only the high one decays."""
        s = self.settings
        high = cosine_decay(s.high, step, self.total_steps) if s.decay else s.high
        return MaskRatios(high, s.low, s.random, s.high_randomness)

    def after_step(self, step: int) -> None:
        """Step 5: the teacher follows the student."""
        s = self.settings
        m = momentum_at(s.momentum_schedule, s.momentum, step, self.total_steps)
        update_teacher(self.teacher, self.aggregator, m)

    def validate(self) -> dict[str, float]:
        """Figures of the student, and those of the teacher as `teacher_…`."""
        if self.val is None:
            return {}
        logits = predict(self.teacher, self.val)
        teacher = bag_figures(logits, self.val.labels.cpu(), prefix="teacher_")
        return {**super().validate(), **teacher}


def scale_groups(bags: BagDataset, index: int) -> list[Tensor]:
    """The instances of a bag parted by scale; empty scales are left out."""
    scale = bags.one(index).scale[0]
    counts = bags.scale_counts[index]
    return [(scale == s).nonzero().squeeze(1) for s, n in enumerate(counts) if n]


def mining_spec(spec: AggregatorSpec, layer: str) -> AggregatorSpec:
    """The same method, ranking by its first or last layer where it has several (supplementary section 2.3).

    Raises:
        ConfigError: The last layer is asked of a method that has one ranking only, or the method's own argument says another.
    """
    if spec.name == "transmil":
        place = 0 if layer == "first" else 1
        if spec.args.get("mining_layer", place) != place:
            raise ConfigError(
                f"model.aggregator.args.mining_layer is {spec.args['mining_layer']}, but mhim.layer is {layer!r}. Set "
                "mhim.layer only."
            )
        args = {**spec.args, "mining_layer": place}
        return spec.model_copy(update={"args": args})
    if layer == "last":
        raise ConfigError(
            f"The method {spec.name!r} has one attention to rank by. Set mhim.layer to first."
        )
    return spec


def mining_scores(output: MILOutput) -> Tensor:
    """What the instances of a batch of one are ranked by: (heads, N)."""
    if output.mining_attention is None:
        return output.attention
    return output.mining_attention[0]


def require_start(spec: AggregatorSpec, settings: MhimSpec, n_classes: int) -> None:
    """Check that a student of this network can start as it is to, before the plain one is trained.

    Raises:
        ConfigError: The network has no projection to take over.
    """
    if settings.start == "projection":
        projection_of(build_aggregator(spec, n_classes).state_dict())


def projection_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projection's weights.

    Raises:
        ConfigError: There is none.
    """
    found = {k: v for k, v in weights.items() if k.startswith("projection.")}
    if not found:
        raise ConfigError(
            "This aggregator has no projection that the student could take from the plain network (IAAM has one where its "
            "width differs from the features'). Set mhim.start to all or none, or another width."
        )
    return found


def start_student(
    student: Aggregator, pretrained: Mapping[str, Tensor], what: str
) -> None:
    """Fill a fresh student: Xavier-normal, then the projection (or all, or nothing) of the pretrained network.

    Args:
        student: Changed in place.
        pretrained: Weights of the plain network.
        what: `projection` (supplementary section 2.2), `all` or `none`.

    Raises:
        ConfigError: The network has no projection to take over.
    """
    xavier_start(student)
    if what == "none":
        return
    if what == "all":
        load_weights(student, pretrained, "the pretrained network")
        return
    weights = projection_of(pretrained)
    load_weights(student, {**student.state_dict(), **weights}, "the projection")
