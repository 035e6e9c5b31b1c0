"""The same search by brute force in float64, one query at a time: what the fast forms are tested against."""

from __future__ import annotations

import numpy as np

from g4seg_trt.arrays import Doubles, Floats, Ints


def nearest_positions_reference(generated: Floats, original: Floats) -> tuple[Ints, Doubles]:
    """As `nearest_positions` for all queries: indices int64 [g*g], similarities float64 [g*g].

    Args:
        generated: float [P,g,g].
        original: float [P,g,g].
    """
    wanted, candidates = _unit_rows(generated), _unit_rows(original)
    indices = np.zeros(len(wanted), dtype=np.int64)
    similarities = np.zeros(len(wanted), dtype=np.float64)
    for query, feature in enumerate(wanted):
        cosines = (candidates * feature).sum(axis=1)
        indices[query] = int(np.argmax(cosines))
        similarities[query] = cosines[indices[query]]
    return indices, similarities


def _unit_rows(features: Floats) -> Doubles:
    rows = features.reshape(features.shape[0], -1).T.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > 0, rows / np.where(norms > 0, norms, 1.0), 0.0)
