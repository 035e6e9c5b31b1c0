"""Nearest neighbours on the feature grid: one blocked matrix product and a row argmax."""

from __future__ import annotations

import numpy as np

from g4seg_trt.arrays import Floats, Ints

_BLOCK = 1024


def nearest_positions(
    generated: Floats,
    original: Floats,
    size: tuple[int, int] | None = None,
    queries: Ints | None = None,
) -> tuple[Ints, Floats]:
    """The most similar position of the original by cosine (eq. 8), for each position of the generated image.

    A feature of norm 0 has similarity 0 to everything. Of equally similar positions the lowest index wins;
    identical features are equally similar whatever the order of summation.

    Args:
        generated: float32 [P,g,g]; any scale.
        original: float32 [P,g,g]; any scale.
        size: None, the grid itself.
        queries: positions of the generated image to look up, int64 [n] row-major; None for all g*g in order.

    Returns:
        indices int64 [n] into the original's positions (row-major), and their similarities float32 [n].

    Raises:
        ValueError: if the shapes do not fit together or `size` is given.
    """
    if size is not None:
        raise ValueError(f"size is {size}, but only the grid itself (None) can be searched")
    if generated.ndim != 3 or original.ndim != 3 or generated.shape[0] != original.shape[0]:
        raise ValueError(f"features of shapes {generated.shape} and {original.shape}, expected [P,g,g] twice")
    wanted = _unit_rows(generated)
    if queries is not None:
        wanted = wanted[queries]
    candidates, positions = _distinct(_unit_rows(original))
    indices = np.empty(len(wanted), dtype=np.int64)
    similarities = np.empty(len(wanted), dtype=np.float32)
    for start in range(0, len(wanted), _BLOCK):
        block = wanted[start : start + _BLOCK] @ candidates.T
        best = block.argmax(axis=1)
        indices[start : start + _BLOCK] = positions[best]
        similarities[start : start + _BLOCK] = block[np.arange(len(block)), best]
    return indices, similarities


def _unit_rows(features: Floats) -> Floats:
    """[P,g,g] -> [g*g,P] of norm 1, or 0 where the norm is 0."""
    rows = np.ascontiguousarray(features.reshape(features.shape[0], -1).T, dtype=np.float32)
    # Squares of float32 leave its range long before the values do.
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))[:, None]
    units: Floats = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0, casting="same_kind")
    return units


def _distinct(rows: Floats) -> tuple[Floats, Ints]:
    """Rows without repetition and the lowest position of each.

    A matrix product may round equal columns differently; with one column for all of them, ties stay ties.
    """
    first: dict[bytes, int] = {}
    for position, row in enumerate(rows + np.float32(0.0)):  # -0.0 becomes 0.0: equal numbers, equal bytes
        first.setdefault(row.tobytes(), position)
    positions = np.fromiter(first.values(), dtype=np.int64, count=len(first))
    return rows[positions], positions
