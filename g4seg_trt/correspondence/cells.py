"""Pixels of upsampled features, by the cells of four grid positions that they lie in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from g4seg_trt.arrays import Bools, Doubles, Floats, Ints
from g4seg_trt.correspondence.grid import distinct

ZERO_NORM = 1e-6
"""Corners that cancel to at most this norm make a feature of norm 0: similarity 0 to everything."""

EPSILON = 3e-4
"""Added to the diagonal of a Gram matrix, so that it has an inverse."""

_INVERTING = 1e-8  # above the rounding of an inverse whose condition is at most 4 / EPSILON
_SAMPLES = 4


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
        (row, down), (column, right) = (along(*pair) for pair in zip(grid, size, strict=True))
        across = max(grid[1] - 1, 1)
        weights = np.stack(
            [np.outer(y, x).reshape(-1) for y in (1.0 - down, down) for x in (1.0 - right, right)],
        )
        tops, lefts = (np.arange(max(cells - 1, 1)) for cells in grid)
        bottoms, rights = (np.minimum(np.arange(max(cells - 1, 1)) + 1, cells - 1) for cells in grid)
        corners = np.stack([(y[:, None] * grid[1] + x).reshape(-1) for y in (tops, bottoms) for x in (lefts, rights)])
        return cls((row[:, None] * across + column).reshape(-1), weights, corners)


@dataclass(frozen=True)
class Cells:
    """The cells of the original that are searched, and their pixels: rectangles of them.

    Attributes:
        numbers: their place among all, int64 [cells].
        corners: grid positions, int64 [cells,4].
        pixels: flat pixels, those of one cell together and ascending, int64 [n].
        starts: where each cell's pixels begin, int64 [cells + 1].
        weights: each pixel's weights over its norm, float64 [4,n]; 0 where the norm is 0.
        rows: the first and the last row of pixels, int64 [2,cells].
        columns: the same of columns.
        uniform: cells whose pixels are all alike, bool [cells].
        inverse: the largest inverse norm but for pixels of norm 0, float64 [cells]; 0 if there is no other.
        ratio: the smallest norm over the largest, float64 [cells]; 0 with a pixel of norm 0.
        spread: the largest norm of the weights over that of the feature, float64 [cells].
        centre: the inverse norm of the mean of the corners, float64 [cells].
        factors: L, L L' the inverse of the corners' Gram matrix plus EPSILON, float64 [cells,4,4]; scaled so that
            |L'c| is a bound.
        samples: some of each cell's pixels, as places in `pixels`, int64 [cells,samples].
    """

    numbers: Ints
    corners: Ints
    pixels: Ints
    starts: Ints
    weights: Doubles
    rows: Ints
    columns: Ints
    uniform: Bools
    inverse: Doubles
    ratio: Doubles
    spread: Doubles
    centre: Doubles
    factors: Doubles
    samples: Ints

    @classmethod
    def of(cls, rows: Floats, upsampling: Upsampling, size: tuple[int, int], repeated: bool) -> Cells:
        """Of features of unit norm [g*g,P].

        Args:
            rows: float32 [g*g,P].
            upsampling: of their grid to `size`.
            size: (height, width).
            repeated: whether of identical cells all are kept, with all their pixels, or the first only.
        """
        same = distinct(rows)[2][upsampling.corners]
        uniform = (same == same[0]).all(axis=0)
        kept = np.unique(upsampling.cells)
        order = np.argsort(upsampling.cells, kind="stable")
        if not repeated:
            kept = _distinct_cells(same, uniform, upsampling, size)
            own = upsampling.cells[order]
            known = np.isin(own, kept)
            order = order[known & ((np.diff(own, prepend=-1) != 0) | ~uniform[own])]
        starts = np.append(np.searchsorted(upsampling.cells[order], kept), len(order))
        norms = norms_of(rows, upsampling)[order]
        positive = norms > ZERO_NORM
        inverse = np.where(positive, 1.0 / np.where(positive, norms, 1.0), 0.0)
        weights = upsampling.weights[:, order] * inverse
        smallest, largest = (reduce.reduceat(norms, starts[:-1]) for reduce in (np.minimum, np.maximum))
        gram = _gram(rows, upsampling)[kept]
        spread: Doubles = np.maximum.reduceat(np.sqrt((weights**2).sum(axis=0)), starts[:-1])
        factor = (1.0 + EPSILON * spread**2) * (1.0 + _INVERTING)
        inner = np.linalg.inv(gram + EPSILON * np.eye(4)) * factor[:, None, None]
        inner = (inner + inner.transpose(0, 2, 1)) / 2  # the factorisation reads one half only
        last = order[starts[1:] - 1]
        first = order[starts[:-1]]
        extents = [np.stack([first // size[1], last // size[1]]), np.stack([first % size[1], last % size[1]])]
        return cls(
            kept,
            upsampling.corners[:, kept].T.copy(),
            order,
            starts,
            np.ascontiguousarray(weights),
            extents[0],
            extents[1],
            uniform[kept],
            np.maximum.reduceat(inverse, starts[:-1]),
            np.where(smallest > ZERO_NORM, smallest / np.maximum(largest, ZERO_NORM), 0.0),
            spread,
            1.0 / np.sqrt(np.maximum(gram.mean(axis=(1, 2)), ZERO_NORM)),
            np.linalg.cholesky(inner).astype(np.float64, copy=False),
            _samples(extents[0], extents[1], starts[:-1]),
        )


def along(cells: int, pixels: int) -> tuple[Ints, Doubles]:
    """Per pixel the grid position before it, that has one after it if there are two, and the way to the next."""
    place = np.clip((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0.0, cells - 1.0)
    before = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    return before, place - before


def norms_of(rows: Floats, upsampling: Upsampling) -> Doubles:
    """float64 [n]: the norm of every pixel's feature."""
    gram = _gram(rows, upsampling)
    squares = np.zeros(len(upsampling.cells))
    for one in range(4):
        for other in range(one, 4):
            twice = 1.0 if one == other else 2.0
            products = (twice * gram[:, one, other])[upsampling.cells]
            squares += upsampling.weights[one] * upsampling.weights[other] * products
    return np.sqrt(np.maximum(squares, 0.0))


def _gram(rows: Floats, upsampling: Upsampling) -> Doubles:
    """float64 [cells,4,4]: products of the corners of each cell."""
    corners = [rows[corner].astype(np.float64) for corner in upsampling.corners]
    gram = np.empty((upsampling.corners.shape[1], 4, 4))
    for one in range(4):
        for other in range(one, 4):
            gram[:, one, other] = gram[:, other, one] = np.einsum("ij,ij->i", corners[one], corners[other])
    return gram


def _samples(rows: Ints, columns: Ints, starts: Ints) -> Ints:
    """Pixels spread evenly over each cell, the outermost among them."""
    share = np.linspace(0.0, 1.0, _SAMPLES)[:, None]
    down, right = (np.rint(share * (last - first)).astype(np.int64) for first, last in (rows, columns))
    width = columns[1] - columns[0] + 1
    places: Ints = (starts + down[:, None] * width + right).reshape(_SAMPLES**2, -1).T.copy()
    return places


def _distinct_cells(same: Ints, uniform: Bools, upsampling: Upsampling, size: tuple[int, int]) -> Ints:
    """The first of each set of identical cells.

    Cells are identical if their corners are and their pixels lie at the same places of them; where the corners are
    one feature, so are the pixels wherever they lie.

    Args:
        same: numbers of the features at the corners of each cell, equal for equal ones, int64 [4,cells].
        uniform: cells whose corners are all one feature, bool [cells].
        upsampling: of the grid to `size`.
        size: (height, width).
    """
    present, first, count = np.unique(upsampling.cells, return_index=True, return_counts=True)
    keys: dict[tuple[object, ...], int] = {}
    height = np.zeros(len(uniform), dtype=np.int64)
    left = upsampling.cells.reshape(size)[first // size[1]]
    height[present] = count // (left == present[:, None]).sum(axis=1)
    places = _Places(upsampling, size)
    for cell, start, pixels in zip(present.tolist(), first.tolist(), count.tolist(), strict=True):
        ids = tuple(same[:, cell].tolist())
        key = (ids[0],) if uniform[cell] else (*ids, *places.of(start, int(height[cell]), pixels))
        keys.setdefault(key, cell)
    return np.fromiter(keys.values(), dtype=np.int64, count=len(keys))


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
