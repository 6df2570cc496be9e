"""What travels with weights: strict, frozen pydantic models, and the two presets.

A `ModelConfig` is everything the plugin must know to run a checkpoint: classes, physical scales,
resampler, mask policy, encoder, aggregator and segmenter. Training recipes contain one; they never
repeat it. Scales are physical: 20x means 0.5 µm per pixel whatever the scanner says of itself.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Spec(BaseModel):
    """Base of all configuration: unknown keys are refused, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Resampler(StrEnum):
    """How pixels of a pyramid level become the pixels of a patch (Pillow's filters, named for the checkpoint).

    `bilinear` is Pillow's antialiased triangle filter: smooth for any ratio. `area` is the box filter, an
    exact average at whole ratios. `lanczos` is the sharpest.
    """

    AREA = "area"
    BILINEAR = "bilinear"
    LANCZOS = "lanczos"


class ReadLevel(StrEnum):
    """From which pyramid level a patch is read."""

    NEAREST = "nearest"
    """The level whose mpp is nearest to the patch's by ratio, or the next finer one where its pixels would have to be
    enlarged by more than 1.2 (4–16 times fewer pixels to decode than level 0)."""
    LEVEL0 = "level0"
    """Always the finest level (the paper's literal text)."""


class Strategy(StrEnum):
    """Which patches of a slide are used."""

    LESION = "lesion"
    TISSUE = "tissue"
    RANDOM = "random"


class Fallback(StrEnum):
    """What happens when no patch passes the lesion threshold."""

    TOP = "top"
    """Take the patches with the largest lesion share, with a warning."""
    TISSUE = "tissue"
    """Take the tissue patches, with a warning."""
    ERROR = "error"


class ScaleSpec(Spec):
    """One physical scale.

    Attributes:
        name: The word users read, for example `20x`.
        mpp: Micrometres per pixel of the patch given to the encoder.
        size_px: Side of that patch in its own pixels.
    """

    name: str
    mpp: float = Field(gt=0.01, lt=100)
    size_px: int = Field(gt=7, le=4096)

    @property
    def size_um(self) -> float:
        """Side of the patch on the glass, in µm."""
        return self.mpp * self.size_px


PAPER_SCALES = (
    ScaleSpec(name="20x", mpp=0.5, size_px=512),
    ScaleSpec(name="10x", mpp=1.0, size_px=512),
    ScaleSpec(name="5x", mpp=2.0, size_px=512),
)


class PatchSpec(Spec):
    """Which patches a model sees, and how their pixels are made.

    Attributes:
        scales: Finest first; the index is the paper's scale code (0 = 20x, 1 = 10x, 2 = 5x).
        stride: Step between patches as a share of their side; 1 is no overlap (settled: counts 16 : 4 : 1).
        resampler: Filter between level pixels and patch pixels.
        read_level: Which pyramid level is read.
        strategy: Which patches are used.
        lesion_threshold: A patch is kept if its lesion share is above this (paper section 3.1).
        tissue_threshold: A patch is "non-background" if its tissue share is above this.
        random_counts: Patches per scale for `random` (paper section 4.2: 2300, 570, 130).
        max_patches: Upper bound per scale, keeping the largest share; None is no bound.
        fallback: What to do when nothing passes the threshold.
        fallback_count: How many patches per scale the `top` fallback keeps at most.
        seed: Seed of the random strategy.
    """

    scales: tuple[ScaleSpec, ...] = PAPER_SCALES
    stride: float = Field(default=1.0, gt=0, le=4)
    resampler: Resampler = Resampler.BILINEAR
    read_level: ReadLevel = ReadLevel.NEAREST
    strategy: Strategy = Strategy.LESION
    lesion_threshold: float = Field(default=0.7, ge=0, lt=1)
    tissue_threshold: float = Field(default=0.1, ge=0, lt=1)
    random_counts: tuple[int, ...] = (2300, 570, 130)
    max_patches: int | None = Field(default=None, gt=0)
    fallback: Fallback = Fallback.TOP
    fallback_count: int = Field(default=12, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> Self:
        if not self.scales:
            raise ValueError("at least one scale is needed")
        if len({s.name for s in self.scales}) != len(self.scales):
            raise ValueError("scale names must differ")
        sizes = [s.size_um for s in self.scales]
        if sizes != sorted(sizes):
            raise ValueError(
                "scales go from the smallest patch to the largest (20x, 10x, 5x)"
            )
        return self


class TissueSpec(Spec):
    """How tissue is told from background on a thumbnail.

    Attributes:
        mpp: Target resolution of the thumbnail in µm per pixel.
        max_side_px: Bound on the longer side of the thumbnail.
        saturation_floor: Smallest HSV saturation (0 … 1) that may count as tissue.
        min_area_um2: Smaller parts are dropped.
        hole_area_um2: Smaller holes are filled.
        remove_pen: Whether marks of common pen colours are taken out.
    """

    mpp: float = Field(default=8.0, gt=0)
    max_side_px: int = Field(default=2048, ge=64)
    saturation_floor: float = Field(default=0.04, ge=0, le=1)
    min_area_um2: float = Field(default=20_000.0, ge=0)
    hole_area_um2: float = Field(default=20_000.0, ge=0)
    remove_pen: bool = True


class SegmenterSpec(Spec):
    """UNet++ on the anisotropic thumbnail (paper section 3.1).

    Attributes:
        encoder: Encoder name of segmentation-models-pytorch (`tu-…` for any timm encoder).
        decoder_channels: Channels of the decoder, deep to shallow.
        channels: Names of the sigmoid output channels; the first is the lesion.
        threshold: Lesion probability above which a thumbnail pixel is lesion.
        size_px: Side of the square thumbnail.
        mean, std: Normalisation of RGB in 0 … 1.
    """

    encoder: str = "efficientnet-b3"
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    channels: tuple[str, ...] = ("lesion", "stroma", "necrosis")
    threshold: float = Field(default=0.5, gt=0, lt=1)
    size_px: int = Field(default=1024, ge=64)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class EncoderSpec(Spec):
    """Patch → feature.

    Attributes:
        kind: `msfem` (CNN map → tokens → Transformer → class token, paper section 3.2) or `timm` (pooled features).
        backbone: timm model name.
        out_stage: Which feature stage is used, counted as timm's `out_indices`; None is the last
            (3 on ResNet-50, whose index 0 is the stem, gives the 1024-d features of the MHIM supplementary).
        dim: Width of the feature for `msfem`; for `timm` the width of the chosen stage, checked when built.
        layers, heads, ffn, dropout: The Transformer of `msfem`.
        project: `before`: tokens are projected to `dim` before the Transformer (settled); `after`: the literal text.
        grid: Side of the token grid its learned positions are made for (512 px / 32 = 16).
        mean, std: Normalisation of RGB in 0 … 1, inside the module so that it cannot be forgotten.
    """

    kind: str = Field(default="msfem", pattern="^(msfem|timm)$")
    backbone: str = "efficientnet_b3"
    out_stage: int | None = None
    dim: int = Field(default=512, gt=0)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=8, ge=1)
    ffn: int = Field(default=2048, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    project: str = Field(default="before", pattern="^(before|after)$")
    grid: int = Field(default=16, ge=1)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class AggregatorSpec(Spec):
    """Bag of features → class.

    Attributes:
        name: Registry name: iaam, abmil, clam_sb, clam_mb, dsmil, dtfd, transmil, mambamil, csmil, milbooster, dasmil.
        in_dim: Width of the features it takes.
        args: Arguments of that aggregator, checked by its own dataclass of arguments.
    """

    name: str = "iaam"
    in_dim: int = Field(default=512, gt=0)
    args: dict[str, Any] = Field(default_factory=dict)


class EnsembleSpec(Spec):
    """Several trainings of one model in one file.

    Attributes:
        members: How many.
        own_encoders: Whether each has an encoder of its own, or all share one.
    """

    members: int = Field(ge=1, le=100)
    own_encoders: bool = False


class FamiliaritySpec(Spec):
    """From when on a slide is called unlike the training data, or too small. Learnt from validation slides.

    Attributes:
        distance: Largest distance of features that is still familiar.
        patches: Smallest number of patches that is enough.
        rate: Share of patients like those of the validation slides of whom each limit calls some slide wrongly, at most.
        patients: Patients whose validation slides they were learnt from.
    """

    distance: float = Field(ge=0)
    patches: int = Field(ge=0)
    rate: float = Field(gt=0, lt=1)
    patients: int = Field(gt=0)


class ModelConfig(Spec):
    """Everything the plugin must know to run a checkpoint.

    Attributes:
        name: Short name, shown to users.
        classes: Class names, in the order of the logits.
        patches: Scales, resampler and selection.
        tissue: Background detection.
        encoder, aggregator: The classifier.
        segmenter: The lesion segmenter, or None: then tissue is used and the result says so.
        temperature: Divides the logits before the softmax (calibration); 1 is none.
        ensemble: Several trainings that answer together, or None.
        familiarity: Which slides the model should not judge, or None: not learnt.
        description, licence, intended_use: Shown in the model dialog.
    """

    name: str
    classes: tuple[str, ...]
    patches: PatchSpec = PatchSpec()
    tissue: TissueSpec = TissueSpec()
    encoder: EncoderSpec = EncoderSpec()
    aggregator: AggregatorSpec = AggregatorSpec()
    segmenter: SegmenterSpec | None = None
    temperature: float = Field(default=1.0, gt=0)
    ensemble: EnsembleSpec | None = None
    familiarity: FamiliaritySpec | None = None
    description: str = ""
    licence: str = ""
    intended_use: str = "Research only. Not for diagnosis."

    @property
    def feature_dim(self) -> int:
        """Width of the features of all encoders together."""
        own = self.ensemble is not None and self.ensemble.own_encoders
        return self.encoder.dim * (
            self.ensemble.members if self.ensemble and own else 1
        )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if len(self.classes) < 2:
            raise ValueError("at least two classes are needed")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class names must differ")
        if self.encoder.dim != self.aggregator.in_dim:
            raise ValueError(
                f"the encoder gives {self.encoder.dim} values, the aggregator takes {self.aggregator.in_dim}"
            )
        return self


def paper_config(name: str, classes: tuple[str, ...]) -> ModelConfig:
    """The paper's sizes: EfficientNet-B3, 512-wide MSFEM and IAAM, 512-px patches (sections 3.1–3.3)."""
    return ModelConfig(name=name, classes=classes, segmenter=SegmenterSpec())


def small_config(name: str, classes: tuple[str, ...]) -> ModelConfig:
    """The same model for CPUs: it differs from `paper_config` only in sizes (and so in the number of heads)."""
    dim = 128
    scales = tuple(ScaleSpec(name=s.name, mpp=s.mpp, size_px=256) for s in PAPER_SCALES)
    return ModelConfig(
        name=name,
        classes=classes,
        patches=PatchSpec(scales=scales),
        encoder=EncoderSpec(
            backbone="lcnet_050", dim=dim, layers=1, heads=4, ffn=256, grid=8
        ),
        aggregator=AggregatorSpec(
            in_dim=dim, args={"heads": 4, "rank": 16, "mlp_dim": 256}
        ),
        segmenter=SegmenterSpec(
            encoder="tu-lcnet_050", decoder_channels=(48, 32, 24, 16, 16)
        ),
    )
