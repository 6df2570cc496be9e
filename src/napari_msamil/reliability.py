"""How far an answer can be trusted: spread over members, the set of possible classes, and slides not to be judged.

Everything here was learnt from validation slides and lies in the checkpoint (`msamil-train publish`); a checkpoint
without it gives an answer without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from napari_msamil.class_sets import conformal_set
from napari_msamil.models.attention import doubled
from napari_msamil.result import Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_msamil.checkpoint import LoadedModel
    from napari_msamil.config import FamiliaritySpec
    from napari_msamil.inference import FeatureBag
    from napari_msamil.models.outputs import MILOutput

LITTLE_TISSUE = "not enough tissue"
UNFAMILIAR = "unlike the training data"


@dataclass(frozen=True, eq=False)
class Reliability:
    """What is said beside the answer.

    Attributes:
        members: float32 (K, C) probabilities of the members of an ensemble; None for a single model.
        class_set: Classes that hold the true one with the promised coverage, the likeliest first; empty: not calibrated.
        coverage: That promise; None where not calibrated.
        verdicts: Why the slide should not be judged by this model; empty if nothing speaks against it.
    """

    members: NDArray[np.float32] | None
    class_set: tuple[str, ...]
    coverage: float | None
    verdicts: tuple[Verdict, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Warnings for the user, the gravest first."""
        found = [v.sentence for v in self.verdicts]
        if len(self.class_set) > 1 and self.coverage is not None:
            found.append(
                f"The model is not sure: with {100 * self.coverage:.0f} % coverage the class is one of "
                f"{', '.join(self.class_set)}."
            )
        return tuple(found)


def judge(
    loaded: LoadedModel,
    bag: FeatureBag,
    output: MILOutput,
    probabilities: NDArray[np.float32],
) -> Reliability:
    """What the checkpoint knows about the reliability of an answer.

    Args:
        loaded: The model.
        bag: The features; patches whose turn has not come are not counted as missing.
        output: Of the aggregator.
        probabilities: (C,) of the answer.
    """
    found: dict[str, Any] = loaded.provenance.get("calibration") or {}
    names: tuple[str, ...] = ()
    coverage = None
    if "set_threshold" in found:
        coverage = float(found.get("coverage", 0.9))
        chosen = conformal_set(
            probabilities, float(found["set_threshold"]), found.get("set_penalty", 0.0)
        )
        names = tuple(loaded.config.classes[c] for c in chosen)
    return Reliability(
        members=_members(output, loaded.config.temperature),
        class_set=names,
        coverage=coverage,
        verdicts=find_verdicts(loaded, bag),
    )


def find_verdicts(loaded: LoadedModel, bag: FeatureBag) -> tuple[Verdict, ...]:
    """Reasons not to judge a slide; none where the checkpoint has no limits."""
    limits = loaded.config.familiarity
    if limits is None:
        return ()
    count = len(bag) - len(bag.faults)
    verdicts = []
    if count < limits.patches:
        verdicts.append(_little_tissue(count, limits))
    distance = slide_distance(loaded, bag)
    if distance > limits.distance:
        verdicts.append(_unfamiliar(distance, limits))
    return tuple(verdicts)


def slide_distance(loaded: LoadedModel, bag: FeatureBag) -> float:
    """Distance of the features of a slide from those of the training slides; 1 is the usual one of a patch."""
    module = loaded.model.familiarity
    if module is None:
        raise ValueError("the model has no statistics of its training features")
    device = module.mean.device
    features = torch.from_numpy(bag.features[bag.valid]).to(device)
    scale = torch.from_numpy(bag.grid.scale[bag.valid].astype(np.int64)).to(device)
    with torch.inference_mode():
        return float(module(features, scale))


def _members(output: MILOutput, temperature: float) -> NDArray[np.float32] | None:
    if output.member_logits is None:
        return None
    logits = doubled(output.member_logits[0].detach()) / temperature
    shares: NDArray[np.float32] = logits.softmax(-1).float().cpu().numpy()
    return shares


def _little_tissue(count: int, limits: FamiliaritySpec) -> Verdict:
    return Verdict(
        LITTLE_TISSUE,
        count,
        limits.patches,
        f"Not enough tissue: {count} patches were chosen; of {100 * (1 - limits.rate):.0f} % of patients like those the model "
        f"was validated on, every slide has {limits.patches} or more.",
    )


def _unfamiliar(distance: float, limits: FamiliaritySpec) -> Verdict:
    return Verdict(
        UNFAMILIAR,
        distance,
        limits.distance,
        f"Unlike the training data: distance {distance:.2f}; of {100 * (1 - limits.rate):.0f} % of patients like those the "
        f"model was validated on, every slide stays within {limits.distance:.2f}. Do not rely on the answer.",
    )
