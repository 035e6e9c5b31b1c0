"""Nearest neighbours between all pixels of upsampled features, exactly, without comparing all of them.

Features of unit norm per grid position are upsampled bilinearly (align_corners False, edges clamped). A pixel of
the original is a combination w of the four corners of its cell, so with c the products of a query and the corners
its similarity is w c / |b| over the query's norm, which changes no comparison and is left out until the end. A
whole cell is ruled out if no pixel of it can reach what the query has already found:

- loose: max(c) / min|b|, or max(c) / max|b| where max(c) is negative;
- tight: sqrt(c' (Gamma + eps I)^-1 c (1 + eps / min|b|^2)), Gamma the corners' Gram matrix: what the best
  combination of the corners reaches, since |w| <= 1. It is never negative.

Bounds are computed in float32, with a slack above their rounding; what they leave is compared in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g4seg_trt.arrays import Array, Bools, Doubles, Floats, Ints
from g4seg_trt.correspondence.grid import distinct, unit_rows

ZERO_NORM = 1e-6
"""Corners that cancel to at most this norm make a feature of norm 0: similarity 0 to everything."""

_QUERIES = 1024
_PAIRS = 1 << 18
_ROWS = 2048
_EPSILON = 1e-4
_SLACK = 1e-6  # of numbers that are sums of a few float32 products up to 1
_TIGHT_SLACK = 3e-5  # the same after the inverse of the Gram matrix, which magnifies by eps ** -0.5
_TIE = 1e-9
_HUGE = 1e30


@dataclass(frozen=True)
class Upsampling:
    """Every pixel as a combination of four grid positions.

    Attributes:
        cells: the cell of each pixel, int64 [n], row-major over max(g-1, 1) of them along either side.
        weights: float64 [4,n] that sum to 1.
        corners: the grid positions of each cell, int64 [4,cells].
    """

    cells: Ints
    weights: Doubles
    corners: Ints

    @classmethod
    def of(cls, grid: tuple[int, int], size: tuple[int, int]) -> Upsampling:
        """From a grid (rows, columns) to `size` (height, width)."""
        (row, down), (column, right) = (_along(*pair) for pair in zip(grid, size, strict=True))
        across = max(grid[1] - 1, 1)
        weights = np.stack(
            [np.outer(y, x).reshape(-1) for y in (1.0 - down, down) for x in (1.0 - right, right)],
        )
        tops, lefts = (np.arange(max(cells - 1, 1)) for cells in grid)
        bottoms, rights = (np.minimum(np.arange(max(cells - 1, 1)) + 1, cells - 1) for cells in grid)
        corners = np.stack([(y[:, None] * grid[1] + x).reshape(-1) for y in (tops, bottoms) for x in (lefts, rights)])
        return cls((row[:, None] * across + column).reshape(-1), weights, corners)


@dataclass(frozen=True)
class _Cells:
    """The distinct cells of the original that have pixels.

    Attributes:
        numbers: their place among all, int64 [cells].
        corners: grid positions, int64 [4,cells].
        pixels: flat pixels, those of one cell together and ascending, int64 [n].
        starts: where each cell's pixels begin, int64 [cells + 1].
        weights: each pixel's weights over its norm, float64 [n,4]; 0 where the norm is 0.
        smallest: the smallest norm, float32 [cells].
        largest: the largest norm, float32 [cells].
        never: cells with a pixel of norm 0, which no bound rules out, bool [cells].
        factors: L with L L' the inverse in the tight bound, its factor included, float32 [cells,4,4].
    """

    numbers: Ints
    corners: Ints
    pixels: Ints
    starts: Ints
    weights: Doubles
    smallest: Floats
    largest: Floats
    never: Bools
    factors: Floats


def nearest_pixels(
    generated: Floats, original: Floats, size: tuple[int, int], queries: Ints | None = None
) -> tuple[Ints, Floats]:
    """The most similar pixel of the original for each pixel of the generated image; see `nearest_positions`."""
    grid = (generated.shape[1], generated.shape[2])
    source, target = unit_rows(generated), unit_rows(original)
    upsampling = Upsampling.of(grid, size)
    target_grid = (original.shape[1], original.shape[2])
    there = upsampling if target_grid == grid else Upsampling.of(target_grid, size)
    wanted = np.arange(size[0] * size[1]) if queries is None else queries
    norms = _norms(source, upsampling)[wanted]
    indices = np.zeros(len(wanted), dtype=np.int64)
    similarities = np.zeros(len(wanted), dtype=np.float32)
    searched = np.flatnonzero(norms > ZERO_NORM)
    if searched.size == 0:
        return indices, similarities
    # Queries of one cell share their four rows of products.
    searched = searched[np.argsort(upsampling.cells[wanted[searched]], kind="stable")]
    products = source.astype(np.float64) @ target.astype(np.float64).T
    search = _Search(products, upsampling, there, _cells(target, there, size), _norms(target, there), target_grid)
    for start in range(0, len(searched), _QUERIES):
        block = searched[start : start + _QUERIES]
        found, best = search.block(wanted[block])
        indices[block] = found
        similarities[block] = best / norms[block]
    return indices, similarities


class _Search:
    """The search of blocks of queries in one image."""

    def __init__(
        self,
        products: Doubles,
        here: Upsampling,
        there: Upsampling,
        cells: _Cells,
        norms: Doubles,
        grid: tuple[int, int],
    ) -> None:
        self._products = products
        self._single = products.astype(np.float32)
        self._here = here
        self._there = there
        self._cells = cells
        with np.errstate(divide="ignore"):
            self._inverse = np.where(norms > ZERO_NORM, 1.0 / norms, 0.0)
        self._grid = grid
        # Times a limit these are what a corner must reach: nothing, in cells that are never ruled out.
        self._at_least = np.where(cells.never, -_HUGE, cells.smallest).astype(np.float32)
        self._at_most = np.where(cells.never, _HUGE, cells.largest).astype(np.float32)
        allowed = np.append(cells.smallest[~cells.never], 1.0).min()
        self._slack = np.float32(_SLACK + _SLACK / allowed)
        self._nearest = _nearest_pixel(there, products.shape[1])

    def block(self, queries: Ints) -> tuple[Ints, Doubles]:
        """Pixels and similarities (times the queries' norms) of the best."""
        rows = self._here.corners[:, self._here.cells[queries]]
        weights = self._here.weights[:, queries]
        used, place = np.unique(rows, return_inverse=True)
        mixing = np.zeros((len(queries), len(used)), dtype=np.float32)
        for corner, weight in zip(place.reshape(rows.shape), weights, strict=True):
            mixing[np.arange(len(queries)), corner] += weight.astype(np.float32)
        maps = mixing @ self._single[used]
        reached = np.maximum(self._at(maps, queries), self._at(maps, self._nearest[maps.argmax(axis=1)]))
        open_query, open_cell = self._open(maps, reached)
        return self._compare(rows, weights, open_query, open_cell)

    def _at(self, maps: Floats, pixels: Ints) -> Floats:
        """The similarity of every query to one pixel of its own."""
        corners = self._there.corners[:, self._there.cells[pixels]]
        values = (self._there.weights[:, pixels] * maps[np.arange(len(maps)), corners]).sum(axis=0)
        similarities: Floats = (values * self._inverse[pixels]).astype(np.float32)
        return similarities

    def _open(self, maps: Floats, reached: Floats) -> tuple[Ints, Ints]:
        """Pairs of query and cell that the bounds leave, queries ascending."""
        cells = self._cells
        limit = reached - self._slack
        least = limit[:, None] * self._at_least
        negative = np.flatnonzero(limit <= _SLACK)
        least[negative] = np.minimum(limit[negative], -_SLACK)[:, None] * self._at_most
        flat = np.flatnonzero(self._largest_corner(maps) >= least)
        kept = [
            pairs[self._tight(maps, reached, pairs)]
            for pairs in (flat[start : start + _PAIRS] for start in range(0, len(flat), _PAIRS))
        ]
        query, cell = np.divmod(np.concatenate(kept), cells.corners.shape[1])
        return query, cell

    def _largest_corner(self, maps: Floats) -> Floats:
        """float32 [n,cells]."""
        rows, columns = self._grid
        corners = maps.reshape(-1, rows, columns)
        if rows > 1:
            corners = np.maximum(corners[:, :-1], corners[:, 1:])
        if columns > 1:
            corners = np.maximum(corners[:, :, :-1], corners[:, :, 1:])
        largest: Floats = corners.reshape(len(maps), -1)
        return largest if largest.shape[1] == len(self._cells.numbers) else largest[:, self._cells.numbers]

    def _tight(self, maps: Floats, reached: Floats, pairs: Ints) -> Bools:
        cells = self._cells
        query, cell = np.divmod(pairs, cells.corners.shape[1])
        values = maps.reshape(-1)[cells.corners[:, cell] + query * maps.shape[1]]
        projected = np.einsum("kp,pkl->pl", values, cells.factors[cell])
        bound = np.sqrt(np.einsum("pl,pl->p", projected, projected))
        return np.asarray((bound + np.float32(_TIGHT_SLACK) >= reached[query]) | cells.never[cell])

    def _compare(self, rows: Ints, weights: Doubles, query: Ints, cell: Ints) -> tuple[Ints, Doubles]:
        """The best pixel of the pairs, which hold every query."""
        pixel = np.empty(len(query), dtype=np.int64)
        similarity = np.empty(len(query), dtype=np.float64)
        order = np.argsort(cell, kind="stable")
        here, starts = np.unique(cell[order], return_index=True)
        for one, pairs in zip(here, np.split(order, starts[1:]), strict=True):
            begin, end = self._cells.starts[one], self._cells.starts[one + 1]
            columns = self._products[:, self._cells.corners[:, one]]
            for start in range(0, len(pairs), _ROWS):
                some = pairs[start : start + _ROWS]
                own = query[some]
                corners = (columns[rows[:, own]] * weights[:, own, None]).sum(axis=0)
                scores = corners @ self._cells.weights[begin:end].T
                best = scores.max(axis=1)
                pixel[some] = self._cells.pixels[begin + (scores >= best[:, None] - _TIE).argmax(axis=1)]
                similarity[some] = best
        firsts = np.flatnonzero(np.diff(query, prepend=-1))
        highest = np.maximum.reduceat(similarity, firsts)
        pixel[similarity < highest[query] - _TIE] = np.iinfo(np.int64).max
        return np.minimum.reduceat(pixel, firsts), highest


def _along(cells: int, pixels: int) -> tuple[Ints, Doubles]:
    """Per pixel the grid position before it, that has one after it if there are two, and the way to the next."""
    place = np.clip((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0.0, cells - 1.0)
    before = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    return before, place - before


def _gram(rows: Floats, upsampling: Upsampling) -> Doubles:
    """float64 [cells,4,4]: products of the corners of each cell."""
    corners = [rows[corner].astype(np.float64) for corner in upsampling.corners]
    gram = np.empty((upsampling.corners.shape[1], 4, 4))
    for one in range(4):
        for other in range(one, 4):
            gram[:, one, other] = gram[:, other, one] = np.einsum("ij,ij->i", corners[one], corners[other])
    return gram


def _norms(rows: Floats, upsampling: Upsampling) -> Doubles:
    """float64 [n]: the norm of every pixel's feature."""
    gram = _gram(rows, upsampling)
    squares = np.zeros(len(upsampling.cells))
    for one in range(4):
        for other in range(4):
            squares += upsampling.weights[one] * upsampling.weights[other] * gram[upsampling.cells, one, other]
    return np.sqrt(np.maximum(squares, 0.0))


def _cells(rows: Floats, upsampling: Upsampling, size: tuple[int, int]) -> _Cells:
    kept, first_only = _distinct_cells(rows, upsampling, size)
    number = np.full(upsampling.corners.shape[1], -1)
    number[kept] = np.arange(len(kept))
    order = np.argsort(upsampling.cells, kind="stable")
    own = number[upsampling.cells[order]]
    new = np.diff(own, prepend=-2) != 0
    chosen = (own >= 0) & (new | ~first_only[upsampling.cells[order]])
    pixels, own = order[chosen], own[chosen]
    starts = np.searchsorted(own, np.arange(len(kept) + 1))
    norms = _norms(rows, upsampling)[pixels]
    positive = norms > ZERO_NORM
    weights = np.where(positive, upsampling.weights[:, pixels] / np.where(positive, norms, 1.0), 0.0).T
    smallest = np.minimum.reduceat(norms, starts[:-1])
    factor = 1.0 + _EPSILON / np.maximum(smallest, ZERO_NORM) ** 2
    inverse = np.linalg.inv(_gram(rows, upsampling)[kept] + _EPSILON * np.eye(4)) * factor[:, None, None]
    return _Cells(
        kept,
        upsampling.corners[:, kept],
        pixels,
        starts,
        np.ascontiguousarray(weights),
        smallest.astype(np.float32),
        np.maximum.reduceat(norms, starts[:-1]).astype(np.float32),
        smallest <= ZERO_NORM,
        np.linalg.cholesky(inverse).astype(np.float32),
    )


def _distinct_cells(rows: Floats, upsampling: Upsampling, size: tuple[int, int]) -> tuple[Ints, Bools]:
    """The first of each set of identical cells, and for every cell whether its corners are all one feature.

    Cells are identical if their corners are and their pixels lie at the same places of them; where the corners are
    one feature, so are the pixels wherever they lie.
    """
    same = distinct(rows)[2][upsampling.corners]
    constant: Bools = (same == same[0]).all(axis=0)
    present, first, count = np.unique(upsampling.cells, return_index=True, return_counts=True)
    keys: dict[tuple[object, ...], int] = {}
    height = np.zeros(len(constant), dtype=np.int64)
    left = upsampling.cells.reshape(size)[first // size[1]]
    height[present] = count // (left == present[:, None]).sum(axis=1)
    places = _Places(upsampling, size)
    for cell, start, pixels in zip(present.tolist(), first.tolist(), count.tolist(), strict=True):
        ids = tuple(same[:, cell].tolist())
        key = (ids[0],) if constant[cell] else (*ids, *places.of(start, int(height[cell]), pixels))
        keys.setdefault(key, cell)
    return np.fromiter(keys.values(), dtype=np.int64, count=len(keys)), constant


class _Places:
    """Where the pixels of a cell lie in it, as something to compare."""

    def __init__(self, upsampling: Upsampling, size: tuple[int, int]) -> None:
        down = (upsampling.weights[2] + upsampling.weights[3]).reshape(size)[:, 0]
        right = (upsampling.weights[1] + upsampling.weights[3]).reshape(size)[0]
        self._down, self._right, self._width = down.round(9), right.round(9), size[1]

    def of(self, start: int, height: int, pixels: int) -> tuple[bytes, bytes]:
        """Of the cell whose first pixel is `start`."""
        row, column = divmod(start, self._width)
        return (
            self._down[row : row + height].tobytes(),
            self._right[column : column + pixels // height].tobytes(),
        )


def _nearest_pixel(upsampling: Upsampling, positions: int) -> Ints:
    """For each grid position a pixel close to it (any pixel, where none lies beside it)."""
    nearest = np.zeros(positions, dtype=np.int64)
    corner: Array = upsampling.weights.argmax(axis=0)
    order = np.argsort(upsampling.weights.max(axis=0), kind="stable")
    nearest[upsampling.corners[corner, upsampling.cells][order]] = order
    return nearest
