"""Nearest neighbours on the feature grid: one blocked matrix product and a row argmax."""

from __future__ import annotations

import numpy as np

from g4seg_trt.arrays import Floats, Ints

_BLOCK = 1024


def nearest_on_grid(generated: Floats, original: Floats, queries: Ints | None = None) -> tuple[Ints, Floats]:
    """The most similar grid position of the original for each of the generated image; see `nearest_positions`."""
    wanted = unit_rows(generated)
    if queries is not None:
        wanted = wanted[queries]
    candidates, positions, _ = distinct(unit_rows(original))
    indices = np.empty(len(wanted), dtype=np.int64)
    similarities = np.empty(len(wanted), dtype=np.float32)
    for start in range(0, len(wanted), _BLOCK):
        block = wanted[start : start + _BLOCK] @ candidates.T
        best = block.argmax(axis=1)
        indices[start : start + _BLOCK] = positions[best]
        similarities[start : start + _BLOCK] = block[np.arange(len(block)), best]
    return indices, similarities


def unit_rows(features: Floats) -> Floats:
    """[P,g,g] -> [g*g,P] of norm 1, or 0 where the norm is 0."""
    rows = np.ascontiguousarray(features.reshape(features.shape[0], -1).T, dtype=np.float32)
    # Squares of float32 leave its range long before the values do.
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))[:, None]
    units: Floats = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0, casting="same_kind")
    return units


def distinct(rows: Floats) -> tuple[Floats, Ints, Ints]:
    """Rows without repetition, the lowest position of each, and the number of every position's row among them.

    A matrix product may round equal columns differently; with one column for all of them, ties stay ties.
    """
    number: dict[bytes, int] = {}
    keys = [row.tobytes() for row in rows + np.float32(0.0)]  # -0.0 becomes 0.0: equal numbers, equal bytes
    numbers = np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
    positions = np.unique(numbers, return_index=True)[1]
    return rows[positions], positions, numbers
