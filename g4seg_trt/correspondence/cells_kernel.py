"""What the pixel search on CUDA prepares: products of all grid positions, norms of all pixels, bounds of all cells.

Norms and bounds are computed in float64 and stored in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from g4seg_trt.correspondence.cells import EPSILON, ZERO_NORM, along
from g4seg_trt.correspondence.grid_kernel import Blocks, block_products, precision_of

BOUNDS = 12
"""Numbers per cell: its smallest and largest norm, or -+1e30 if it is never ruled out; ten of a triangular matrix."""

_EPSILON = tl.constexpr(EPSILON)
_ZERO_NORM = tl.constexpr(ZERO_NORM)
HUGE = tl.constexpr(1e30)
"""More than any similarity."""


@dataclass(frozen=True)
class Side:
    """One axis of the upsampling, on the device.

    Attributes:
        starts: the first pixel of every cell and the number of pixels, int32 [cells + 1].
        before: the cell of every pixel, int32 [pixels].
        way: from the corner before towards the next, float32 [pixels] in [0,1].
        nearest: the pixel nearest to every grid position, int32 [positions].
        longest: the most pixels in a cell.
    """

    starts: torch.Tensor
    before: torch.Tensor
    way: torch.Tensor
    nearest: torch.Tensor
    longest: int


def side_of(positions: int, pixels: int, device: torch.device) -> Side:
    """From a grid's positions to pixels along one axis (align_corners False, edges clamped).

    Computed on the device at every call: tables that were kept could not be made, nor let go, during a capture.
    """
    pixel = torch.arange(pixels, dtype=torch.float64, device=device)
    place = ((pixel + 0.5) * (positions / pixels) - 0.5).clamp(0.0, positions - 1.0)
    before = place.long().clamp(max=max(positions - 2, 0))
    cells = torch.arange(max(positions - 1, 1) + 1, device=device)
    centre = torch.arange(positions, dtype=torch.float64, device=device)
    nearest = ((centre + 0.5) * (pixels / positions) - 0.5).round().clamp(0, pixels - 1)
    return Side(
        torch.searchsorted(before, cells, out_int32=True),
        before.int(),
        # Rounded, so that pixels at the same place of their cells have the same weights to the last bit.
        (place - before).round(decimals=9).float(),
        nearest.int(),
        int(np.bincount(along(positions, pixels)[0]).max()),
    )


@triton.jit
def _products_kernel(
    generated: tl.tensor,
    original: tl.tensor,
    inverse_generated: tl.tensor,
    inverse_original: tl.tensor,
    products: tl.tensor,
    first: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    depth: tl.tensor,
    stride_n: tl.tensor,
    stride_m: tl.tensor,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Cosines of grid positions `first` to n of the generated image with all of the original, float32 [n - first,m]."""
    rows = first + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    sums = block_products(
        generated, original, rows, columns, depth, stride_n, stride_m, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION
    )
    sums = sums * tl.load(inverse_generated + rows, mask=rows < n, other=0.0)[:, None]
    sums = sums * tl.load(inverse_original + columns, mask=columns < m, other=0.0)[None, :]
    places = (rows - first).to(tl.int64)[:, None] * m + columns[None, :]
    tl.store(products + places, sums, mask=(rows < n)[:, None] & (columns < m)[None, :])


@triton.jit
def _neighbours_kernel(
    features: tl.tensor,
    inverses: tl.tensor,
    dots: tl.tensor,
    n: tl.tensor,
    depth: tl.tensor,
    stride: tl.tensor,
    right: tl.tensor,
    down: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Cosines of every position with itself, right, below, below right; and of right with below: float64 [5,n]."""
    positions = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    itself = tl.zeros((BLOCK_N,), dtype=tl.float64)
    across = tl.zeros((BLOCK_N,), dtype=tl.float64)
    below = tl.zeros((BLOCK_N,), dtype=tl.float64)
    slant = tl.zeros((BLOCK_N,), dtype=tl.float64)
    counter = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for start in range(0, depth, BLOCK_D):
        steps = (start + tl.arange(0, BLOCK_D)).to(tl.int64)[:, None]
        places = features + steps * stride + positions[None, :]
        within = steps < depth
        a = tl.load(places, mask=within & (positions < n)[None, :], other=0.0).to(tl.float64)
        b = tl.load(places + right, mask=within & (positions + right < n)[None, :], other=0.0).to(tl.float64)
        c = tl.load(places + down, mask=within & (positions + down < n)[None, :], other=0.0).to(tl.float64)
        d = tl.load(places + (right + down), mask=within & (positions + right + down < n)[None, :], other=0.0)
        itself += tl.sum(a * a, axis=0)
        across += tl.sum(a * b, axis=0)
        below += tl.sum(a * c, axis=0)
        slant += tl.sum(a * d.to(tl.float64), axis=0)
        counter += tl.sum(b * c, axis=0)
    inside = positions < n
    own = tl.load(inverses + positions, mask=inside, other=0.0)
    of_right = tl.load(inverses + positions + right, mask=positions + right < n, other=0.0)
    of_below = tl.load(inverses + positions + down, mask=positions + down < n, other=0.0)
    of_slant = tl.load(inverses + positions + right + down, mask=positions + right + down < n, other=0.0)
    tl.store(dots + positions, itself * (own * own), mask=inside)
    tl.store(dots + n + positions, across * (own * of_right), mask=inside)
    tl.store(dots + 2 * n + positions, below * (own * of_below), mask=inside)
    tl.store(dots + 3 * n + positions, slant * (own * of_slant), mask=inside)
    tl.store(dots + 4 * n + positions, counter * (of_right * of_below), mask=inside)


@triton.jit
def _cells_kernel(
    dots: tl.tensor,
    row_starts: tl.tensor,
    column_starts: tl.tensor,
    downs: tl.tensor,
    rights: tl.tensor,
    inverse: tl.tensor,
    bounds: tl.tensor,
    n: tl.tensor,
    grid_width: tl.tensor,
    cells_across: tl.tensor,
    right: tl.tensor,
    down: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One cell: the inverse norm of each of its pixels, float32 [H,W], and the numbers of its bounds if wanted."""
    cell = tl.program_id(0)
    cell_row = cell // cells_across
    cell_column = cell % cells_across
    p = cell_row * grid_width + cell_column
    s0 = tl.load(dots + p)
    s1 = tl.load(dots + p + right)
    s2 = tl.load(dots + p + down)
    s3 = tl.load(dots + p + right + down)
    d01 = tl.load(dots + n + p)
    d23 = tl.load(dots + n + p + down)
    d02 = tl.load(dots + 2 * n + p)
    d13 = tl.load(dots + 2 * n + p + right)
    d03 = tl.load(dots + 3 * n + p)
    d12 = tl.load(dots + 4 * n + p)
    # A pixel is b0 + x e1 + y e2 + xy e3; equal corners make every e, and their products, exactly 0.
    e01 = d01 - s0
    e02 = d02 - s0
    e03 = d03 - d02 - d01 + s0
    e11 = s1 - 2.0 * d01 + s0
    e22 = s2 - 2.0 * d02 + s0
    e12 = d12 - d01 - d02 + s0
    e13 = (d13 - d12 - s1 + d01) - e03
    e23 = (d23 - s2 - d12 + d02) - e03
    e33 = (s3 - d23 - d13 + d03) + (s2 - d23 - d02 + d12) + (s1 - d13 - d01 + d12) + e03
    top = tl.load(row_starts + cell_row)
    left = tl.load(column_starts + cell_column)
    columns = tl.load(column_starts + cell_column + 1) - left
    count = (tl.load(row_starts + cell_row + 1) - top) * columns
    smallest = tl.full((BLOCK,), float("inf"), dtype=tl.float64)
    largest = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, count, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < count
        y = top + offsets // columns
        x = left + offsets % columns
        dy = tl.load(downs + y, mask=inside, other=0.0).to(tl.float64)
        dx = tl.load(rights + x, mask=inside, other=0.0).to(tl.float64)
        square = s0 + 2.0 * (dx * e01 + dy * e02 + dx * dy * (e03 + e12 + dx * e13 + dy * e23))
        square += dx * dx * e11 + dy * dy * e22 + dx * dx * dy * dy * e33
        norm = tl.sqrt(tl.maximum(square, 0.0))
        positive = norm > _ZERO_NORM
        tl.store(inverse + y * width + x, tl.where(positive, 1.0 / tl.where(positive, norm, 1.0), 0.0), mask=inside)
        smallest = tl.where(inside, tl.minimum(smallest, norm), smallest)
        largest = tl.where(inside, tl.maximum(largest, norm), largest)
    if bounds is not None:
        least = tl.min(smallest, axis=0)
        most = tl.max(largest, axis=0)
        never = least <= _ZERO_NORM
        divisor = tl.maximum(least, _ZERO_NORM)
        factor = tl.sqrt(1.0 / (divisor * divisor) * _EPSILON + 1.0)
        # Cholesky of the Gram matrix + eps, then the inverse of the triangle.
        l00 = tl.sqrt(s0 + _EPSILON)
        l10 = d01 / l00
        l20 = d02 / l00
        l30 = d03 / l00
        l11 = tl.sqrt(s1 + _EPSILON - l10 * l10)
        l21 = (d12 - l20 * l10) / l11
        l31 = (d13 - l30 * l10) / l11
        l22 = tl.sqrt(s2 + _EPSILON - l20 * l20 - l21 * l21)
        l32 = (d23 - l30 * l20 - l31 * l21) / l22
        l33 = tl.sqrt(s3 + _EPSILON - l30 * l30 - l31 * l31 - l32 * l32)
        m00 = 1.0 / l00
        m11 = 1.0 / l11
        m22 = 1.0 / l22
        m33 = 1.0 / l33
        m10 = -m11 * l10 * m00
        m21 = -m22 * l21 * m11
        m32 = -m33 * l32 * m22
        m20 = -m22 * (l20 * m00 + l21 * m10)
        m31 = -m33 * (l31 * m11 + l32 * m21)
        m30 = -m33 * (l30 * m00 + l31 * m10 + l32 * m20)
        to = bounds + cell
        cells = tl.num_programs(0)
        # Times a limit these are what a corner must reach: nothing, in cells that are never ruled out.
        tl.store(to, tl.where(never, -HUGE, least))
        tl.store(to + cells, tl.where(never, HUGE, most))
        tl.store(to + 2 * cells, m00 * factor)
        tl.store(to + 3 * cells, m10 * factor)
        tl.store(to + 4 * cells, m11 * factor)
        tl.store(to + 5 * cells, m20 * factor)
        tl.store(to + 6 * cells, m21 * factor)
        tl.store(to + 7 * cells, m22 * factor)
        tl.store(to + 8 * cells, m30 * factor)
        tl.store(to + 9 * cells, m31 * factor)
        tl.store(to + 10 * cells, m32 * factor)
        tl.store(to + 11 * cells, m33 * factor)


def neighbours(features: torch.Tensor, inverses: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Cosines between the corners of every cell, float64 [5,n], from what `grid_kernel.prepare` returns."""
    n = grid[0] * grid[1]
    dots = torch.empty((5, n), dtype=torch.float64, device=features.device)
    _neighbours_kernel[(triton.cdiv(n, 16),)](
        features, inverses, dots, n, features.shape[0], features.stride(0), *steps(grid), BLOCK_N=16, BLOCK_D=64
    )
    return dots


def norms_and_bounds(
    dots: torch.Tensor, grid: tuple[int, int], down: Side, right: Side, bounded: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The inverse norm of every pixel, float32 [H,W] (0 for none), and bounds of every cell, float32 [BOUNDS,cells]."""
    size = (len(down.before), len(right.before))
    inverse = torch.empty(size, dtype=torch.float32, device=dots.device)
    cells = max(grid[0] - 1, 1) * max(grid[1] - 1, 1)
    bounds = torch.empty((BOUNDS, cells), dtype=torch.float32, device=dots.device) if bounded else None
    _cells_kernel[(cells,)](
        dots,
        down.starts,
        right.starts,
        down.way,
        right.way,
        inverse,
        bounds,
        dots.shape[1],
        grid[1],
        max(grid[1] - 1, 1),
        *steps(grid),
        size[1],
        BLOCK=256,
    )
    return inverse, bounds


def products_of(
    generated: tuple[torch.Tensor, torch.Tensor],
    original: tuple[torch.Tensor, torch.Tensor],
    first: int,
    last: int,
    m: int,
    blocks: Blocks,
) -> torch.Tensor:
    """Cosines of the generated grid positions from first to last with the m of the original, float32."""
    products = torch.empty((last - first, m), dtype=torch.float32, device=generated[0].device)
    _products_kernel[(triton.cdiv(last - first, blocks.queries), triton.cdiv(m, blocks.candidates))](
        generated[0],
        original[0],
        generated[1],
        original[1],
        products,
        first,
        last,
        m,
        generated[0].shape[0],
        generated[0].stride(0),
        original[0].stride(0),
        PRECISION=precision_of(generated[0]),
        BLOCK_N=blocks.queries,
        BLOCK_M=blocks.candidates,
        BLOCK_D=blocks.depth,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    return products


def steps(grid: tuple[int, int]) -> tuple[int, int]:
    """From a position to the next to the right and below; 0 where there is only one."""
    return int(grid[1] > 1), grid[1] if grid[0] > 1 else 0
