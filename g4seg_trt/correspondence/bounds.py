"""Which cells of the original can hold the best pixel of a query: upper bounds of whole cells.

With c the products of a query and the corners of a cell, a pixel of it reaches w c / |b|, w >= 0 its weights and b
its feature. The bounds of a cell are

- loose, one of two, whichever leaves fewer: max(c) / min|b| (or / max|b| where max(c) is negative), which is good
  for cells of similar corners, or |max(c, 0)| max(|w| / |b|), which is good for unrelated ones;
- tight: |L' max(c, 0)| with L L' = (Gamma + eps I)^-1 (1 + eps max(|w| / |b|)^2), Gamma the corners' Gram matrix:
  what the best combination of the corners reaches.

All products are raised by more than their rounding: since no weight is negative, whatever is computed from them is an
upper bound, and less twice the raise a lower one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from g4seg_trt.arrays import Array, Bools, Doubles, Ints
from g4seg_trt.correspondence.cells import Cells, Upsampling
from g4seg_trt.correspondence.grid import in_window

RAISE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-13}
"""Above the rounding of sums of a few products of weights and cosines."""

TIE = 1e-12
"""Similarities that differ by at most this are equal."""

_PROBES = 64


@dataclass(frozen=True)
class Problem:
    """What the search of one image is about.

    Attributes:
        products: of all grid positions of both images, float64 [g*g,g*g].
        here: of the generated image.
        there: of the original.
        cells: of the original.
        inverse: the inverse norms of the original's pixels, float64 [n]; 0 where the norm is 0.
        grid: of the original.
        width: of the pixels.
        radius: of the window, or None.
    """

    products: Doubles
    here: Upsampling
    there: Upsampling
    cells: Cells
    inverse: Doubles
    grid: tuple[int, int]
    width: int
    radius: int | None


@dataclass(frozen=True)
class Pairs:
    """Queries and cells that the bounds leave, by query.

    Attributes:
        query: place in the queries, int64 [m].
        cell: int64 [m].
        corners: raised products of the query and the corners, [m,4].
        bound: [m].
    """

    query: Ints
    cell: Ints
    corners: Array
    bound: Array

    def take(self, which: Ints) -> Pairs:
        """Some of them."""
        return Pairs(self.query[which], self.cell[which], self.corners[which], self.bound[which])


class Bounds:
    """The bounds for queries of one image, in one dtype.

    Args:
        problem: the image.
        dtype: float32 or float64.
        queries: pixels of the generated image, int64 [n], of which some are tried to choose the loose bound.
        held: numbers per query and grid position that may be held at once.
    """

    def __init__(self, problem: Problem, dtype: npt.DTypeLike, queries: Ints, held: int) -> None:
        cells, self._raise = problem.cells, RAISE[np.dtype(dtype)]
        above = 1.0 + self._raise
        self._problem, self._cells = problem, cells
        self._raised = (problem.products + self._raise).astype(dtype)
        self._samples = np.ascontiguousarray(cells.weights[:, cells.samples].transpose(1, 0, 2), dtype=dtype)
        self._inverse = (cells.inverse * above).astype(dtype)
        self._spread = (cells.spread * above).astype(dtype)
        self._centre = cells.centre.astype(dtype)
        self._ratio = (cells.ratio * (1.0 - 4.0 * self._raise)).astype(dtype)
        self._factors = cells.factors.astype(dtype)
        self._rounding = (2.0 * self._raise * np.linalg.norm(cells.factors, axis=(1, 2))).astype(dtype)
        self.below = (2.0 * self._raise * cells.inverse + TIE).astype(dtype)
        self.block = max(1, held // problem.products.shape[1])
        probes = queries[:: -(-len(queries) // min(_PROBES, self.block))]
        left = []
        for self._unrelated in (False, True):
            left.append(len(self._loose(probes)[2]))
        self._unrelated = left[1] < left[0]

    def open(self, queries: Ints) -> tuple[int, Pairs, Array]:
        """The pairs of some queries and all cells that the bounds leave.

        Args:
            queries: int64 [n], at most `block`.

        Returns:
            how many the loose bound leaves, those that the tight one leaves, and what every query has reached, [n].
        """
        maps, reached, flat, bound = self._loose(queries)
        query, cell = np.divmod(flat, len(self._cells.numbers))
        positions = self._cells.corners[cell] + (query * maps.shape[1])[:, None]
        corners = maps.reshape(-1)[positions]
        projected = np.einsum("pk,pkl->pl", np.maximum(corners, 0), self._factors[cell])
        tight = np.sqrt(np.einsum("pl,pl->p", projected, projected)) + self._rounding[cell]
        bound = np.minimum(bound, tight)
        highest = np.maximum.reduceat(bound, np.flatnonzero(np.diff(query, prepend=-1)))
        top = np.empty(len(queries), dtype=np.int64)
        hits = np.flatnonzero(bound == highest[query])
        top[query[hits]] = hits
        reached = np.maximum(reached, self._sample(corners[top], queries, cell[top]))
        pairs = Pairs(query, cell, corners, bound)
        return len(flat), pairs.take(np.flatnonzero(bound >= reached[query])), reached

    def _loose(self, queries: Ints) -> tuple[Array, Array, Ints, Array]:
        """Products with all grid positions, what each query has reached, flat pairs that are left, their bounds."""
        problem, cells = self._problem, self._cells
        rows = problem.here.corners[:, problem.here.cells[queries]]
        used, corner = np.unique(rows, return_inverse=True)
        mixing = np.zeros((len(queries), len(used)), dtype=self._raised.dtype)
        lines = np.arange(len(queries))
        for place, weight in zip(corner.reshape(rows.shape), problem.here.weights[:, queries], strict=True):
            mixing[lines, place] += weight.astype(mixing.dtype)
        maps = mixing @ self._raised[used]
        if self._unrelated:
            bounds = np.maximum(maps, 0)
            bounds *= bounds
            bounds = self._of_cells(bounds, np.add)
            np.sqrt(bounds, out=bounds)
            bounds *= self._spread
            likely = bounds
        else:
            bounds = self._of_cells(maps, np.maximum)
            bounds *= self._inverse
            likely = self._of_cells(maps, np.add)
            likely *= self._centre
        inside = self._inside(queries)
        pick = (likely if inside is None else np.where(inside, likely, -np.inf)).argmax(axis=1)
        reached = self._sample(maps[lines[:, None], cells.corners[pick]], queries, pick)
        reached = np.maximum(reached, self._own(maps, queries))
        if not self._unrelated:
            low = np.flatnonzero(reached <= 0)
            bounds[low] = np.where(bounds[low] < 0, bounds[low] * self._ratio, bounds[low])
        left = bounds >= reached[:, None]
        if inside is not None:
            left &= inside
        flat = np.flatnonzero(left)
        return maps, reached, flat, bounds.reshape(-1)[flat]

    def _of_cells(self, maps: Array, combine: np.ufunc) -> Array:
        """[n,positions] -> [n,cells]: the corners of each cell combined."""
        rows, columns = self._problem.grid
        corners = maps.reshape(-1, rows, columns)
        if rows > 1:
            corners = combine(corners[:, :-1], corners[:, 1:])
        if columns > 1:
            corners = combine(corners[:, :, :-1], corners[:, :, 1:])
        of_all: Array = corners.reshape(len(maps), -1)
        if of_all.shape[1] == len(self._cells.numbers):
            return of_all.copy() if np.shares_memory(of_all, maps) else of_all
        return of_all[:, self._cells.numbers]

    def _inside(self, queries: Ints) -> Bools | None:
        """Cells with pixels in the window of each query, bool [n,cells]; None without a window."""
        problem = self._problem
        if problem.radius is None:
            return None
        # With a window all cells are kept: lines of them by columns of them.
        across = len(np.unique(self._cells.columns[0]))
        extents = (self._cells.rows[:, ::across], self._cells.columns[:, :across])
        down, right = (
            (place[:, None] >= first - problem.radius) & (place[:, None] <= last + problem.radius)
            for place, (first, last) in zip(np.divmod(queries, problem.width), extents, strict=True)
        )
        inside: Bools = (down[:, :, None] & right[:, None]).reshape(len(queries), -1)
        return inside

    def _own(self, maps: Array, queries: Ints) -> Array:
        """What every query reaches at its own place."""
        problem = self._problem
        corners = problem.there.corners[:, problem.there.cells[queries]]
        values = (problem.there.weights[:, queries] * maps[np.arange(len(maps)), corners]).sum(axis=0)
        reached: Array = (values - 2.0 * self._raise) * problem.inverse[queries] - TIE
        return reached.astype(maps.dtype)

    def _sample(self, corners: Array, queries: Ints, cell: Ints) -> Array:
        """What every query reaches at the samples of a cell of its own."""
        scores = (corners[:, :, None] * self._samples[cell]).sum(axis=1)
        if self._problem.radius is not None:
            pixels = self._cells.pixels[self._cells.samples[cell]]
            scores[~in_window(queries, pixels, self._problem.width, self._problem.radius)] = -np.inf
        reached: Array = scores.max(axis=1) - self.below[cell]
        return reached
