"""Softening of masks that have no uncertain pixels: the certainty filter would leave them as they are."""

from __future__ import annotations

import math

import numpy as np

from g4seg_trt.arrays import Floats
from g4seg_trt.config import HARD_MASK_SOFTEN

_TRUNCATE = 4.0
_BLOCK = 256
_SMALLEST = 0.1  # pixels: below it the neighbours' weights vanish in float32


def unscored(probability: Floats, soften: float | None) -> tuple[Floats, float]:
    """The shape of a hard mask, and the score that all of the object has: 1, or what a detector gave it.

    Args:
        probability: float32 [H,W] in [0,1].
        soften: RefineConfig.soften; with 0 the mask is taken as it is, and the filter alone decides what may change.

    Returns:
        For a mask of two values, 0 and one other, the same as 0 and 1, and that other value: their product is the mask,
        bit for bit. Any other mask as it is, and 1; so is every mask that is not to be softened.
    """
    if soften == 0:
        return probability, 1.0
    highest = probability.max()
    if highest == 1.0 or probability.min() != 0.0 or highest == 0.0:
        return probability, 1.0
    inside = probability == highest
    if not np.all(inside | (probability == 0.0)):
        return probability, 1.0
    return inside.astype(np.float32), float(highest)


def softening(probability: Floats, soften: float | None) -> float:
    """The share of the longer side that a mask is softened by.

    Args:
        probability: float32 [H,W] in [0,1], `unscored`.
        soften: RefineConfig.soften.

    Returns:
        `soften` where it is given; else 0.02 for a mask whose every value is 0 or 1 and 0 for any other.
        0 for constant masks, which no Gaussian changes.
    """
    if probability.min() == probability.max():
        return 0.0
    if soften is not None:
        return soften
    return HARD_MASK_SOFTEN if bool(np.all((probability == 0.0) | (probability == 1.0))) else 0.0


def soften(probability: Floats, share: float) -> Floats:
    """Gaussian of sigma = share * longer side, cut at 4 sigma, the borders mirrored.

    float32 [H,W] in [0,1] -> the same, within the input's own minimum and maximum.
    """
    sigma = share * max(probability.shape)
    if sigma < _SMALLEST:
        return probability.copy()
    kernel = _gaussian(sigma)
    rows = _blur_rows(probability, kernel)
    both = _blur_rows(np.ascontiguousarray(rows.T), kernel).T
    softened: Floats = np.clip(both, probability.min(), probability.max())
    return softened


def _gaussian(sigma: float) -> Floats:
    radius = math.ceil(_TRUNCATE * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel: Floats = (weights / weights.sum()).astype(np.float32)
    return kernel


def _blur_rows(values: Floats, kernel: Floats) -> Floats:
    """Convolve along axis 0. One banded matrix serves every block of rows, so the work is matrix products."""
    radius, height = len(kernel) // 2, values.shape[0]
    padded = np.pad(values, ((radius, radius), (0, 0)), mode="symmetric")
    block = min(_BLOCK, height)
    band = np.zeros((block, block + 2 * radius), dtype=np.float32)
    for row in range(block):
        band[row, row : row + len(kernel)] = kernel
    blurred = np.empty_like(values)
    for start in range(0, height, block):
        count = min(block, height - start)
        blurred[start : start + count] = band[:count, : count + 2 * radius] @ padded[start : start + count + 2 * radius]
    return blurred
