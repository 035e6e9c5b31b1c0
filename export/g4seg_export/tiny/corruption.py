"""Coarse masks from exact ones, in the way class activation maps are wrong.

In this order: the mask is shifted; blurred and read as a field; a constant makes it too large or too small; a smooth
random field makes it wrong in parts; a random part is favoured, as a classifier favours the most telling part; other
objects and spots of ground light up; the result is pooled to a coarse grid, upsampled and scaled to a maximum near 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Severity:
    """Lengths in pixels of a 64-pixel scene; the rest in units of the blurred mask (0 outside, 1 inside)."""

    shift: float
    blur: float
    size: float
    field: float
    part: float
    spots: float
    cell: int


SEVERITIES: dict[str, Severity] = {
    "light": Severity(shift=1.2, blur=2.0, size=0.08, field=0.12, part=0.12, spots=0.15, cell=2),
    "medium": Severity(shift=2.0, blur=2.5, size=0.10, field=0.18, part=0.20, spots=0.30, cell=4),
    "heavy": Severity(shift=2.6, blur=3.0, size=0.13, field=0.22, part=0.26, spots=0.40, cell=4),
}


def coarse_mask(
    rng: np.random.Generator,
    mask: NDArray[np.bool_],
    distractors: list[NDArray[np.bool_]],
    severity: str,
) -> Array:
    """A coarse probability map float32 [H,W] in [0,1] for an exact mask bool [H,W] (H = W, a multiple of 4)."""
    level = SEVERITIES[severity]
    size = mask.shape[0]
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    moved = _shift(mask, rng.normal(0, level.shift, size=2))
    field = _blur(moved, level.blur)
    field = field + rng.normal(0, level.size) + level.field * _noise(rng, size, 7)
    inside = np.argwhere(mask)
    anchor = inside[rng.integers(len(inside))]
    reach = np.hypot(y - anchor[0], x - anchor[1]) / max(np.sqrt(len(inside)), 1.0)
    field = field - level.part * np.clip(reach - 0.35, 0, 1)
    for other in distractors:
        field = field + rng.uniform(0, level.spots) * _blur(other, level.blur)
    for _ in range(2):
        spot = rng.uniform(0, size, size=2)
        width = rng.uniform(3, 7)
        bump = np.exp(-((y - spot[0]) ** 2 + (x - spot[1]) ** 2) / (2 * width**2))
        field = field + rng.uniform(0, level.spots) * bump
    soft = 1 / (1 + np.exp(-(field - 0.5) * 5.0))
    pooled = soft.reshape(size // level.cell, level.cell, size // level.cell, level.cell).mean((1, 3))
    soft = _blur(np.kron(pooled, np.ones((level.cell, level.cell))), level.cell / 2)
    top = np.quantile(soft, 0.995)
    return np.asarray(np.clip(soft / max(float(top), 1e-6) * 0.98, 0, 1), dtype=np.float32)


def _shift(mask: NDArray[np.bool_], offset: NDArray[np.float64]) -> Array:
    rows, columns = (int(v) for v in np.round(offset))
    reach = max(abs(rows), abs(columns), 1)
    padded = np.pad(mask, reach)
    size = mask.shape[0]
    return padded[reach - rows :, reach - columns :][:size, :size].astype(np.float32)


def _blur(values: NDArray[np.generic], sigma: float) -> Array:
    """Gaussian blur with edges repeated."""
    reach = int(np.ceil(3 * sigma))
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    result = np.pad(values.astype(np.float64), reach, mode="edge")
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(result, len(taps), axis=axis)
        result = windows @ taps
    return result.astype(np.float32)


def _noise(rng: np.random.Generator, size: int, sigma: float) -> Array:
    """Smooth noise of zero mean and unit standard deviation."""
    noise = _blur(rng.normal(size=(size, size)), sigma)
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), 1e-6), dtype=np.float32)
