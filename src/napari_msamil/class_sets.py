"""Sets of classes that hold the true one with a promised probability (split conformal prediction).

`msamil-train publish --calibrate` learns the threshold from validation slides and stores it in the checkpoint. The promise
holds for slides of the same kind as those. Regularised adaptive scores without randomisation (Angelopoulos et al. 2021,
eq. 4): the penalty keeps classes out of the sets of a model that is nearly always certain and right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def conformal_set(
    probabilities: NDArray[np.floating], threshold: float, penalty: float = 0.0
) -> tuple[int, ...]:
    """Classes of one slide (C,), the likeliest first: those whose score stays within the threshold.

    The score of a class is the sum of the probabilities up to and including it, plus `penalty` for every likelier class.
    The likeliest class is always in the set.
    """
    order = np.argsort(-probabilities, kind="stable")
    scores = np.cumsum(probabilities[order]) + penalty * np.arange(len(order))
    count = int((scores <= threshold + 1e-6).sum())
    return tuple(int(c) for c in order[: max(count, 1)])
