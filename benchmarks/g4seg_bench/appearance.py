"""The appearance-only baseline: a two-class colour model, fitted on the mask's own confident pixels.

What can be had from colours alone, with no network. Beside it stands every table of refinement gains, because on scenes
whose colours give the object away it is hard to beat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BINS = 12
CERTAIN_OBJECT, CERTAIN_GROUND = 0.7, 0.15
MAX_EVIDENCE = 4.0


def refine_by_colour(image: NDArray[np.uint8], probability: Floats) -> Floats:
    """The mask's probability updated by Bayes' rule with the colour likelihoods of object and ground.

    Args:
        image: uint8 [H,W,3] RGB.
        probability: float32 [H,W] in [0,1].

    Returns:
        float32 [H,W] in [0,1].
    """
    cells = image.astype(np.int64) * BINS // 256
    flat = (cells[..., 0] * BINS + cells[..., 1]) * BINS + cells[..., 2]
    certain = min(CERTAIN_OBJECT, float(np.quantile(probability, 0.97)))
    evidence = np.log(_density(flat[probability >= certain])) - np.log(_density(flat[probability <= CERTAIN_GROUND]))
    prior = np.clip(probability, 0.02, 0.98)
    logit = np.log(prior / (1 - prior)) + np.clip(evidence, -MAX_EVIDENCE, MAX_EVIDENCE)[flat]
    return np.asarray(1 / (1 + np.exp(-logit)), dtype=np.float32)


def _density(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """A colour histogram smoothed over neighbouring bins, never zero: float64 [BINS**3]."""
    counts = np.bincount(values, minlength=BINS**3).astype(np.float64).reshape(BINS, BINS, BINS)
    for axis in range(3):
        padded = np.pad(counts, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        length = counts.shape[axis]
        left, right = (np.take(padded, range(start, start + length), axis) for start in (0, 2))
        counts = 0.25 * left + 0.5 * counts + 0.25 * right
    density = counts.reshape(-1) + 1e-2
    return np.asarray(density / density.sum(), dtype=np.float64)
