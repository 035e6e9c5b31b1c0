"""Nearest neighbours between all pixels of upsampled features, exactly, without comparing all of them.

Features of unit norm per grid position are upsampled bilinearly (align_corners False, edges clamped). A pixel of
the original is a combination w >= 0 of the four corners of its cell, so with c the products of a query and the
corners its similarity is w c / |b| over the query's norm, which changes no comparison and is left out until the end.
A whole cell is ruled out if no pixel of it can reach what the query has already found (bounds.py).

Bounds and similarities are computed in float32, and compared with a margin above their rounding; the few pixels that
may be the best are compared in float64, and so are queries of which float32 leaves too many cells.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from g4seg_trt.arrays import Array, Bools, Doubles, Floats, Ints
from g4seg_trt.correspondence.bounds import TIE, Bounds, Pairs, Problem
from g4seg_trt.correspondence.cells import ZERO_NORM, Cells, Upsampling, norms_of
from g4seg_trt.correspondence.checks import check_arguments
from g4seg_trt.correspondence.grid import unit_rows
from g4seg_trt.errors import CorrespondenceError

__all__ = ["cells_searched", "nearest_pixels"]


_HELD = 1 << 18  # numbers per query and cell, pairs, or scores that are held at once
_CROWDED = 64  # cells of one query that are too many, as are a quarter of all and one


def nearest_pixels(
    generated: Floats,
    original: Floats,
    size: tuple[int, int],
    queries: Ints | None = None,
    radius: int | None = None,
) -> tuple[Ints, Floats]:
    """The most similar pixel of the original for each pixel of the generated image; see `nearest_positions`."""
    return _search(generated, original, size, queries, radius)[:2]


def cells_searched(
    generated: Floats, original: Floats, size: tuple[int, int], queries: Ints | None = None, radius: int | None = None
) -> tuple[float, float]:
    """Cells of the original per query: what the loose bound leaves, and what is compared pixel by pixel.

    Args:
        generated: float32 [P,g,g]; any scale.
        original: float32 [P,g,g]; any scale.
        size: (height, width) of the pixels.
        queries: pixels of the generated image, int64 [n]; None for all.
        radius: pixels that a match may be away along either axis; None for any distance.

    Returns:
        The two means over the queries; 0 for queries of norm 0, which are not searched.

    Raises:
        CorrespondenceError: as `nearest_positions`.
    """
    ours, theirs, pixels, wanted, reach = check_arguments(generated, original, size, queries, radius)
    if pixels is None:
        raise CorrespondenceError("size is None, allowed: a height and a width, integers from 1 on")
    indices, _, counts = _search(ours, theirs, pixels, wanted, reach)
    return counts.left / max(len(indices), 1), counts.compared / max(len(indices), 1)


@dataclass
class _Counts:
    """Pairs of queries and cells that the loose bound left, and that were compared pixel by pixel."""

    left: int = 0
    compared: int = 0


def _search(
    generated: Floats, original: Floats, size: tuple[int, int], queries: Ints | None, radius: int | None
) -> tuple[Ints, Floats, _Counts]:
    grid, target_grid = ((features.shape[1], features.shape[2]) for features in (generated, original))
    source, target = unit_rows(generated), unit_rows(original)
    here = Upsampling.of(grid, size)
    there = here if target_grid == grid else Upsampling.of(target_grid, size)
    wanted = np.arange(size[0] * size[1]) if queries is None else queries
    norms = norms_of(source, here)[wanted]
    # A feature of norm 0 is as similar to one as to the other: the first in the window.
    indices = np.zeros(len(wanted), dtype=np.int64)
    if radius is not None:
        top, left = (np.maximum(place - radius, 0) for place in np.divmod(wanted, size[1]))
        indices = top * size[1] + left
    similarities = np.zeros(len(wanted), dtype=np.float32)
    searched = np.flatnonzero(norms > ZERO_NORM)
    if searched.size == 0:
        return indices, similarities, _Counts()
    # Queries of one cell share their four rows of products.
    searched = searched[np.argsort(here.cells[wanted[searched]], kind="stable")]
    products = source.astype(np.float64) @ target.astype(np.float64).T
    target_norms = norms_of(target, there)
    inverse = np.where(target_norms > ZERO_NORM, 1.0 / np.maximum(target_norms, ZERO_NORM), 0.0)
    cells = Cells.of(target, there, size, repeated=radius is not None)
    problem = Problem(products, here, there, cells, inverse, target_grid, size[1], radius)
    counts = _Counts()
    for dtype in (np.float32, np.float64):
        if searched.size:
            found, best = _Search(problem, dtype, wanted[searched], counts).run()
            done = found >= 0
            indices[searched[done]] = found[done]
            similarities[searched[done]] = best[done] / norms[searched[done]]
            searched = searched[~done]
    if searched.size:
        raise RuntimeError(f"no match was found for {len(searched)} pixels: a bound is too low")
    return indices, similarities, counts


class _Search:
    """The search for some queries in one dtype."""

    def __init__(self, problem: Problem, dtype: npt.DTypeLike, queries: Ints, counts: _Counts) -> None:
        self._problem, self._cells, self._queries, self._counts = problem, problem.cells, queries, counts
        self._bounds = Bounds(problem, dtype, queries, _HELD)
        self._weights = problem.cells.weights.astype(dtype)
        self._reached = np.full(len(queries), -np.inf, dtype=dtype)

    def run(self) -> tuple[Ints, Doubles]:
        """Pixels and similarities (times the queries' norms) of the best; -1 for queries left to float64."""
        pixel, similarity = np.full(len(self._queries), -1, dtype=np.int64), np.zeros(len(self._queries))
        held: list[Pairs] = []
        step, many = self._bounds.block, min(_CROWDED, 1 + len(self._cells.numbers) / 4)
        for start in range(0, len(self._queries), step):
            queries = self._queries[start : start + step]
            left, pairs, reached = self._bounds.open(queries)
            if self._reached.dtype == np.float32 and len(pairs.query) > many * len(queries):
                continue
            self._counts.left += left
            self._reached[start : start + step] = reached
            held.append(replace(pairs, query=pairs.query + start))
            if sum(len(some.query) for some in held) > _HELD:
                self._settle(held, pixel, similarity)
                held = []
        if held:
            self._settle(held, pixel, similarity)
        return pixel, similarity

    def _settle(self, held: list[Pairs], pixel: Ints, similarity: Doubles) -> None:
        """Compare pairs, which hold all of their queries, pixel by pixel."""
        pairs = Pairs(*(np.concatenate([getattr(some, one.name) for some in held]) for one in fields(Pairs)))
        pairs = pairs.take(np.argsort(pairs.cell, kind="stable"))
        sizes = np.diff(self._cells.starts)
        near: list[tuple[Ints, Ints, Ints, Array]] = []
        best: list[tuple[Ints, Ints, Doubles]] = []
        waiting = 0
        ends = np.searchsorted(pairs.cell, np.arange(len(sizes) + 1))
        for cell in np.flatnonzero(np.diff(ends)).tolist():
            step = max(1, _HELD // int(sizes[cell]))
            for begin in range(ends[cell], ends[cell + 1], step):
                near.append(self._near(pairs, cell, begin, min(begin + step, ends[cell + 1])))
                waiting += len(near[-1][0])
                if waiting > _HELD:
                    best.append(self._exact(near))
                    near, waiting = [], 0
        if near:
            best.append(self._exact(near))
        query, found, value = _first_best(*(np.concatenate(part) for part in zip(*best, strict=True)))
        pixel[query], similarity[query] = found, value

    def _near(self, pairs: Pairs, cell: int, begin: int, end: int) -> tuple[Ints, Ints, Ints, Array]:
        """Pixels of one cell that may be the best: queries, cells, places of the pixels, scores."""
        cells, problem = self._cells, self._problem
        some = np.flatnonzero(pairs.bound[begin:end] >= self._reached[pairs.query[begin:end]]) + begin
        query = pairs.query[some]
        self._counts.compared += len(query)
        first, last = cells.starts[cell], cells.starts[cell + 1]
        scores = pairs.corners[some] @ self._weights[:, first:last]
        if problem.radius is not None:
            scores[~self._window(self._queries[query], cell, problem.radius)] = -np.inf
        limit = np.maximum(self._reached[query], scores.max(axis=1) - self._bounds.below[cell])
        self._reached[query] = limit
        flat = np.flatnonzero(scores >= limit[:, None])
        row, place = np.divmod(flat, last - first)
        return query[row], np.full(len(row), cell), place + first, scores.reshape(-1)[flat]

    def _window(self, queries: Ints, cell: int, radius: int) -> Bools:
        """The pixels of a cell in the window of each query, bool [n,pixels]; of pixels all alike the first."""
        down, right = (
            np.abs(place[:, None] - np.arange(first[cell], last[cell] + 1)) <= radius
            for place, (first, last) in zip(
                np.divmod(queries, self._problem.width), (self._cells.rows, self._cells.columns), strict=True
            )
        )
        inside: Bools = (down[:, :, None] & right[:, None]).reshape(len(queries), down.shape[1] * right.shape[1])
        if self._cells.uniform[cell]:
            inside = np.arange(inside.shape[1]) == inside.argmax(axis=1)[:, None]
        return inside

    def _exact(self, near: list[tuple[Ints, Ints, Ints, Array]]) -> tuple[Ints, Ints, Doubles]:
        """The best of pixels that may be, for each query among them."""
        query, cell, place, score = (np.concatenate(part) for part in zip(*near, strict=True))
        some = np.flatnonzero(score >= self._reached[query])
        query, cell, place = query[some], cell[some], place[some]
        own = self._queries[query]
        problem = self._problem
        rows = problem.here.corners[:, problem.here.cells[own]]
        products = problem.products[rows[:, None], self._cells.corners[cell].T]
        mixed = (problem.here.weights[:, None, own] * products).sum(axis=0)
        values = (self._cells.weights[:, place] * mixed).sum(axis=0)
        return _first_best(query, self._cells.pixels[place], values)


def _first_best(query: Ints, pixel: Ints, similarity: Doubles) -> tuple[Ints, Ints, Doubles]:
    """For each query its highest similarity and the first pixel of it."""
    order = np.argsort(query, kind="stable")
    query, pixel, similarity = query[order], pixel[order], similarity[order]
    firsts = np.flatnonzero(np.diff(query, prepend=-1))
    highest = np.maximum.reduceat(similarity, firsts)
    reaches = similarity >= np.repeat(highest, np.diff(np.append(firsts, len(query)))) - TIE
    pixel = np.where(reaches, pixel, np.iinfo(np.int64).max)
    return query[firsts], np.minimum.reduceat(pixel, firsts), highest
