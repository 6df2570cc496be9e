"""Sets of classes that hold the true one with a promised probability (split conformal prediction).

`msamil-train publish --calibrate` learns the threshold from validation slides and stores it in the checkpoint. The promise
holds for slides of the same kind as those. Adaptive scores without randomisation (Romano, Sesia and Candès 2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


def conformal_set(
    probabilities: NDArray[np.floating], threshold: float
) -> tuple[int, ...]:
    """Classes of one slide (C,), the likeliest first: those whose sum up to themselves stays within the threshold.

    The likeliest class is always in the set.
    """
    order = np.argsort(-probabilities, kind="stable")
    sums = np.cumsum(probabilities[order])
    count = int((sums <= threshold + 1e-6).sum())
    return tuple(int(c) for c in order[: max(count, 1)])


def uncertainty_warnings(
    provenance: Mapping[str, Any],
    classes: Sequence[str],
    probabilities: NDArray[np.floating],
) -> tuple[str, ...]:
    """A sentence where the calibrated model cannot settle on one class; empty where it can, or was not calibrated.

    Args:
        provenance: Of the checkpoint.
        classes: Class names in the order of the probabilities.
        probabilities: (C,) after the temperature.
    """
    found = provenance.get("calibration") or {}
    if "set_threshold" not in found:
        return ()
    names = [
        classes[c] for c in conformal_set(probabilities, float(found["set_threshold"]))
    ]
    if len(names) < 2:
        return ()
    share = round(100 * float(found.get("coverage", 0.9)))
    return (
        f"The model is not sure: with {share} % coverage the class is one of {', '.join(names)}.",
    )
