"""The same search by brute force in float64: what the fast forms are tested against."""

from __future__ import annotations

import numpy as np

from g4seg_trt.arrays import Doubles, Floats, Ints

_BLOCK = 256
_ZERO_NORM = 1e-6


def nearest_positions_reference(
    generated: Floats,
    original: Floats,
    size: tuple[int, int] | None = None,
    queries: Ints | None = None,
    radius: int | None = None,
) -> tuple[Ints, Doubles]:
    """As `nearest_positions`: indices int64 [n], similarities float64 [n].

    Args:
        generated: float [P,g,g].
        original: float [P,g,g].
        size: (height, width) of the pixels, or None for the grid.
        queries: positions to look up, int64 [n], or None for all.
        radius: how far a match may be away along either axis, or None.
    """
    wanted, candidates = positions_of(generated, size), positions_of(original, size)
    height, width = original.shape[1:] if size is None else size
    rows, columns = np.mgrid[:height, :width].reshape(2, -1)
    places = np.arange(len(wanted)) if queries is None else queries
    wanted = wanted[places]
    indices = np.zeros(len(wanted), dtype=np.int64)
    similarities = np.zeros(len(wanted), dtype=np.float64)
    for start in range(0, len(wanted), _BLOCK):
        # einsum without optimisation sums every cosine in the same order, so that equal features tie exactly.
        cosines = np.einsum("ik,jk->ij", wanted[start : start + _BLOCK], candidates)
        if radius is not None:
            for line in (rows, columns):
                away = np.abs(line[places[start : start + _BLOCK], None] - line)
                cosines[away > radius] = -np.inf
        best = cosines.argmax(axis=1)
        indices[start : start + _BLOCK] = best
        similarities[start : start + _BLOCK] = cosines[np.arange(len(best)), best]
    return indices, similarities


def positions_of(features: Floats, size: tuple[int, int] | None = None) -> Doubles:
    """[P,g,g] -> [n,P] in float64: normalised, at pixels upsampled and normalised again; 0 where the norm is 0."""
    width, *grid = features.shape
    units = _normalised(features.reshape(width, -1).T.astype(np.float64), 0.0)
    if size is None:
        return units
    down, right = (_weights(cells, pixels) for cells, pixels in zip(grid, size, strict=True))
    upsampled = np.einsum("hy,yxk,wx->hwk", down, units.reshape(*grid, width), right, optimize=True)
    return _normalised(upsampled.reshape(-1, width), _ZERO_NORM)


def _normalised(rows: Doubles, zero: float) -> Doubles:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > zero, rows / np.where(norms > zero, norms, 1.0), 0.0)


def _weights(cells: int, pixels: int) -> Doubles:
    """float64 [pixels,cells]: bilinear interpolation between centres, edges clamped."""
    place = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    weights: Doubles = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(cells)))
    return weights
