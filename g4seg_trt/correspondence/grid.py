"""Nearest neighbours on the feature grid: one blocked matrix product and a row argmax."""

from __future__ import annotations

import numpy as np

from g4seg_trt.arrays import Bools, Floats, Ints

_BLOCK = 1024


def nearest_on_grid(
    generated: Floats, original: Floats, queries: Ints | None = None, radius: int | None = None
) -> tuple[Ints, Floats]:
    """The most similar grid position of the original for each of the generated image; see `nearest_positions`."""
    units, width = unit_rows(generated), generated.shape[2]
    wanted = np.arange(len(units)) if queries is None else queries
    candidates, positions, numbers = distinct(unit_rows(original))
    indices = np.empty(len(wanted), dtype=np.int64)
    similarities = np.empty(len(wanted), dtype=np.float32)
    for start in range(0, len(wanted), _BLOCK):
        some = wanted[start : start + _BLOCK]
        block = units[some] @ candidates.T
        if radius is None:
            best = block.argmax(axis=1)
            indices[start : start + _BLOCK] = positions[best]
        else:
            block = np.where(in_window(some, np.arange(len(numbers)), width, radius), block[:, numbers], -np.inf)
            best = block.argmax(axis=1)
            indices[start : start + _BLOCK] = best
        similarities[start : start + _BLOCK] = block[np.arange(len(block)), best]
    return indices, similarities


def in_window(queries: Ints, positions: Ints, width: int, radius: int) -> Bools:
    """Whether positions lie in the window of each query, bool [n,m].

    Args:
        queries: int64 [n], row-major in lines of `width`.
        positions: int64 [m], of all queries, or [n,m].
        width: of the grid or the pixels.
        radius: the largest difference of rows and of columns.
    """
    (row, column), (rows, columns) = np.divmod(queries[:, None], width), np.divmod(positions, width)
    inside: Bools = (np.abs(rows - row) <= radius) & (np.abs(columns - column) <= radius)
    return inside


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
