"""How well the boundary of one mask follows that of the ground truth: boundary accuracy and boundary F."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from g4seg_trt.arrays import Bools

TOLERANCE = 0.0075
"""How far apart matching boundary pixels may be, as a share of the image's diagonal (Csurka et al., BMVC 2013)."""

_STEPS = 5


def boundary_accuracy(region: Bools, truth: Bools, valid: Bools) -> float | None:
    """The mean boundary accuracy (mBA) of CascadePSP: accuracy near the true boundary, over five widths.

    A pixel is near if a disc around it holds pixels inside and outside the true region; the image's edge is no
    boundary. Radii go up to (width + height) / 300 in five steps, 1 at least; the discs are those of OpenCV.

    Args:
        region: the predicted region, bool [H,W].
        truth: the true region, bool [H,W].
        valid: bool [H,W], pixels that count. Others lie outside the true region, as in a ground truth whose objects
            have an ignored rim, and are left out of the accuracy.

    Returns:
        From 0 to 1; None if there is no true boundary among the pixels that count.
    """
    radii = boundary_radii(truth.shape)
    window = _window(truth & valid, max(radii))
    if window is None:
        return None
    counts = valid[window]
    inside = truth[window] & counts
    right = region[window] == inside
    accuracies = 0.0
    for radius, steps in Counter(radii).items():
        disc = opencv_disc(radius)
        near = dilate(inside, disc)
        near &= dilate(~inside, disc)
        near &= counts
        pixels = np.count_nonzero(near)
        if pixels == 0:
            return None
        accuracies += steps * (np.count_nonzero(near & right) / pixels)
    return accuracies / _STEPS


def boundary_radii(size: tuple[int, ...]) -> tuple[int, ...]:
    """The five radii in pixels for an image of (height, width)."""
    largest = (size[0] + size[1]) / 300
    # Truncated towards 0, as int() does for images below 300 pixels too.
    return tuple(1 + int((largest - 1) / _STEPS * step) for step in range(_STEPS))


def boundary_f(region: Bools, truth: Bools, valid: Bools, tolerance: float = TOLERANCE) -> float | None:
    """The boundary F-measure of one mask (Perazzi et al., CVPR 2016), with the tolerance of Csurka et al.

    Boundary pixels differ from their right, lower or lower right neighbour. Precision is the share of the predicted
    ones with a true one in a disc around them, recall the share of the true ones with a predicted one; the discs have
    a radius of the tolerance, rounded up to whole pixels.

    Args:
        region: the predicted region, bool [H,W].
        truth: the true region, bool [H,W].
        valid: bool [H,W], pixels that count; others lie outside both regions.
        tolerance: share of the image's diagonal.

    Returns:
        From 0 to 1; None if the ground truth has no boundary, 0 if only the prediction has none.
    """
    region, truth = region & valid, truth & valid
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    window = _window(region | truth, radius + 1)
    if window is None:
        return None
    predicted, true = boundary_pixels(region[window]), boundary_pixels(truth[window])
    in_prediction, in_truth = np.count_nonzero(predicted), np.count_nonzero(true)
    if in_truth == 0:
        return None
    if in_prediction == 0:
        return 0.0
    disc = euclidean_disc(radius)
    precision = np.count_nonzero(predicted & dilate(true, disc)) / in_prediction
    recall = np.count_nonzero(true & dilate(predicted, disc)) / in_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_pixels(region: Bools) -> Bools:
    """bool [H,W]: pixels that differ from their right, lower or lower right neighbour."""
    edges: Bools = np.zeros(region.shape, dtype=np.bool_)
    edges[:, :-1] = region[:, :-1] ^ region[:, 1:]
    edges[:-1] |= region[:-1] ^ region[1:]
    edges[:-1, :-1] |= region[:-1, :-1] ^ region[1:, 1:]
    return edges


def euclidean_disc(radius: int) -> tuple[int, ...]:
    """How far a disc reaches to either side, in pixels, in its middle row and in each row away from it."""
    return tuple(math.isqrt(radius * radius - away * away) for away in range(radius + 1))


def opencv_disc(radius: int) -> tuple[int, ...]:
    """The same for OpenCV's elliptic structuring element: rounded, not truncated."""
    return tuple(round(math.sqrt(radius * radius - away * away)) for away in range(radius + 1))


def dilate(region: Bools, disc: Sequence[int]) -> Bools:
    """Every pixel with one of the region in a disc around it; nothing lies beyond the array's edge.

    Args:
        region: bool [H,W].
        disc: as from `euclidean_disc`.
    """
    wide = region.copy()
    grown: Bools = np.zeros(region.shape, dtype=np.bool_)
    for reach in range(disc[0] + 1):
        if 0 < reach < region.shape[1]:
            wide[:, reach:] |= region[:, :-reach]
            wide[:, :-reach] |= region[:, reach:]
        for away in [away for away, width in enumerate(disc) if width == reach]:
            if away == 0:
                grown |= wide
            elif away < len(region):
                grown[away:] |= wide[:-away]
                grown[:-away] |= wide[away:]
    return grown


def _window(region: Bools, margin: int) -> tuple[slice, slice] | None:
    """The part of the array that holds the region and a margin; None if there is no region."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    if rows.size == 0:
        return None
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )
