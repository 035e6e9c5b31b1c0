"""The pixel search on CUDA: the cell bounds of `pixel`, for tiles of queries at once.

The products of all grid positions are computed once; a pixel's row of them is a bilinear combination of four. One
program takes a tile of the pixels of one cell of the generated image and walks over the cells of the original in
blocks: a block that cannot win for the tile's weakest query is skipped, then single cells by the loose and the tight
bound, and what is left is compared pixel by pixel. The search is in float32: similarities are right to about 2e-7 over
the norms of the two pixels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from g4seg_trt.correspondence.cells_kernel import HUGE, neighbours, norms_and_bounds, products_of, side_of, steps
from g4seg_trt.correspondence.grid_kernel import Blocks, active_positions, blocks_for, outputs, prepare, write_matches

_PRODUCT_BYTES = 256 << 20
TILE, CELLS, PIXELS, WARPS = 64, 32, 32, 4
_SLACK = tl.constexpr(1e-6)  # of sums of a few float32 products up to 1
_TIGHT_SLACK = tl.constexpr(1e-4)  # the same after the inverse of the Gram matrix, which magnifies by eps ** -0.5


@triton.jit
def _corner(
    products: tl.tensor,
    r0: tl.tensor,
    r1: tl.tensor,
    r2: tl.tensor,
    r3: tl.tensor,
    position: tl.tensor,
    mask: tl.tensor,
    w0: tl.tensor,
    w1: tl.tensor,
    w2: tl.tensor,
    w3: tl.tensor,
) -> tl.tensor:
    """Products of queries, combinations w of four rows, with their positions: all shapes broadcast."""
    mixed = w0 * tl.load(products + r0 + position, mask=mask, other=0.0)
    mixed += w1 * tl.load(products + r1 + position, mask=mask, other=0.0)
    mixed += w2 * tl.load(products + r2 + position, mask=mask, other=0.0)
    return mixed + w3 * tl.load(products + r3 + position, mask=mask, other=0.0)


@triton.jit
def _score(
    c0: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    c3: tl.tensor,
    down: tl.tensor,
    right: tl.tensor,
    inverse: tl.tensor,
) -> tl.tensor:
    """Similarity, times the query's norm, to the pixel at (down, right) of a cell with these corner products."""
    return (c0 + right * (c1 - c0) + down * (c2 - c0) + (down * right) * ((c3 - c2) - (c1 - c0))) * inverse


@triton.jit
def _at_pixel(
    products: tl.tensor,
    r0: tl.tensor,
    r1: tl.tensor,
    r2: tl.tensor,
    r3: tl.tensor,
    w0: tl.tensor,
    w1: tl.tensor,
    w2: tl.tensor,
    w3: tl.tensor,
    y: tl.tensor,
    x: tl.tensor,
    mask: tl.tensor,
    row_of: tl.tensor,
    column_of: tl.tensor,
    downs: tl.tensor,
    rights: tl.tensor,
    inverses: tl.tensor,
    there_width: tl.tensor,
    right: tl.tensor,
    down: tl.tensor,
    width: tl.tensor,
) -> tl.tensor:
    """What every query reaches at one pixel of its own: the score less its rounding."""
    position = tl.load(row_of + y, mask=mask, other=0) * there_width + tl.load(column_of + x, mask=mask, other=0)
    c0 = _corner(products, r0, r1, r2, r3, position, mask, w0, w1, w2, w3)
    c1 = _corner(products, r0, r1, r2, r3, position + right, mask, w0, w1, w2, w3)
    c2 = _corner(products, r0, r1, r2, r3, position + down, mask, w0, w1, w2, w3)
    c3 = _corner(products, r0, r1, r2, r3, position + right + down, mask, w0, w1, w2, w3)
    dy = tl.load(downs + y, mask=mask, other=0.0)
    dx = tl.load(rights + x, mask=mask, other=0.0)
    inverse = tl.load(inverses + y * width + x, mask=mask, other=0.0)
    return _score(c0, c1, c2, c3, dy, dx, inverse) - _SLACK * (1.0 + inverse)


@triton.jit
def _search_kernel(
    products: tl.tensor,
    inverse_here: tl.tensor,
    inverse_there: tl.tensor,
    bounds: tl.tensor,
    probability: tl.tensor,
    where: tl.tensor,
    refined: tl.tensor,
    indices: tl.tensor,
    similarities: tl.tensor,
    here_row_starts: tl.tensor,
    here_column_starts: tl.tensor,
    here_downs: tl.tensor,
    here_rights: tl.tensor,
    row_starts: tl.tensor,
    column_starts: tl.tensor,
    row_of: tl.tensor,
    column_of: tl.tensor,
    downs: tl.tensor,
    rights: tl.tensor,
    near_rows: tl.tensor,
    near_columns: tl.tensor,
    tiles: tl.tensor,
    first_row: tl.tensor,
    here_width: tl.tensor,
    here_across: tl.tensor,
    here_right: tl.tensor,
    here_down: tl.tensor,
    there_height: tl.tensor,
    there_width: tl.tensor,
    there_right: tl.tensor,
    there_down: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    radius: tl.tensor,
    share: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    FILTERED: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    CELLS: tl.constexpr,
    PIXELS: tl.constexpr,
) -> None:
    """One tile of the pixels of one cell of the generated image against all cells of the original."""
    # One axis of programs: the others end at 65,535.
    here_cell = tl.program_id(0) // tiles
    local_row = here_cell // here_across
    here_column = here_cell % here_across
    top = tl.load(here_row_starts + first_row + local_row)
    left = tl.load(here_column_starts + here_column)
    columns = tl.load(here_column_starts + here_column + 1) - left
    count = (tl.load(here_row_starts + first_row + local_row + 1) - top) * columns
    first = tl.program_id(0) % tiles * TILE
    if first >= count:
        return
    offsets = first + tl.arange(0, TILE)
    inside = offsets < count
    y = top + offsets // columns
    x = left + offsets % columns
    pixel = y * width + x
    values = tl.load(probability + pixel, mask=inside, other=0.0)
    active = active_positions(pixel, inside, values, where, low, high, FILTERED)
    norm = tl.load(inverse_here + pixel, mask=inside, other=0.0)
    live = active & (norm > 0.0)
    nothing = height * width
    best = tl.full((TILE,), HUGE, dtype=tl.float32)
    index = tl.full((TILE,), nothing, dtype=tl.int32)
    cells = tl.maximum(there_height - 1, 1) * tl.maximum(there_width - 1, 1)
    if tl.max(live.to(tl.int32), axis=0) > 0:
        m = there_height * there_width
        dy = tl.load(here_downs + y, mask=inside, other=0.0)
        dx = tl.load(here_rights + x, mask=inside, other=0.0)
        w0 = (1.0 - dy) * (1.0 - dx)
        w1 = (1.0 - dy) * dx
        w2 = dy * (1.0 - dx)
        w3 = dy * dx
        r0 = (local_row * here_width + here_column).to(tl.int64) * m
        r1 = r0 + here_right * m
        r2 = r0 + tl.cast(here_down, tl.int64) * m
        r3 = r2 + here_right * m
        # The value to beat is below the score of a pixel of the search's own, whose cell is then not ruled out.
        best = _at_pixel(
            products,
            r0,
            r1,
            r2,
            r3,
            w0,
            w1,
            w2,
            w3,
            y,
            x,
            live,
            row_of,
            column_of,
            downs,
            rights,
            inverse_there,
            there_width,
            there_right,
            there_down,
            width,
        )
        if not WINDOW:
            highest = tl.full((TILE,), -HUGE, dtype=tl.float32)
            centre = tl.zeros((TILE,), dtype=tl.int32)
            for start in range(0, m, CELLS):
                positions = start + tl.arange(0, CELLS)
                within = (positions < m)[None, :]
                mixed = _corner(
                    products,
                    r0,
                    r1,
                    r2,
                    r3,
                    positions[None, :],
                    within,
                    w0[:, None],
                    w1[:, None],
                    w2[:, None],
                    w3[:, None],
                )
                mixed = tl.where(within, mixed, -HUGE)
                most = tl.max(mixed, axis=1)
                place = tl.min(tl.where(mixed == most[:, None], positions[None, :], m), axis=1)
                centre = tl.where(most > highest, place, centre)
                highest = tl.maximum(highest, most)
            near_y = tl.load(near_rows + centre // there_width)
            near_x = tl.load(near_columns + centre % there_width)
            best = tl.maximum(
                best,
                _at_pixel(
                    products,
                    r0,
                    r1,
                    r2,
                    r3,
                    w0,
                    w1,
                    w2,
                    w3,
                    near_y,
                    near_x,
                    live,
                    row_of,
                    column_of,
                    downs,
                    rights,
                    inverse_there,
                    there_width,
                    there_right,
                    there_down,
                    width,
                ),
            )
        best = tl.where(live, best, HUGE)
        row_begin = 0
        row_end = tl.maximum(there_height - 1, 1)
        column_begin = 0
        column_end = tl.maximum(there_width - 1, 1)
        across = column_end
        if WINDOW:
            last = tl.minimum(first + TILE, count) - 1
            row_begin = tl.load(row_of + tl.maximum(top + first // columns - radius, 0))
            row_end = tl.load(row_of + tl.minimum(top + last // columns + radius, height - 1)) + 1
            column_begin = tl.load(column_of + tl.maximum(left - radius, 0))
            column_end = tl.load(column_of + tl.minimum(left + columns - 1 + radius, width - 1)) + 1
        spread = column_end - column_begin
        total = (row_end - row_begin) * spread
        for start in range(0, total, CELLS):
            number = start + tl.arange(0, CELLS)
            exists = number < total
            row = row_begin + number // spread
            column = column_begin + number % spread
            cell = row * across + column
            corner = row * there_width + column
            at_least = tl.load(bounds + cell, mask=exists, other=0.0)
            at_most = tl.load(bounds + cells + cell, mask=exists, other=0.0)
            greatest = tl.full((CELLS,), -HUGE, dtype=tl.float32)
            for one in tl.static_range(4):
                position = corner + (one % 2) * there_right + (one // 2) * there_down
                greatest = tl.maximum(greatest, tl.load(products + r0 + position, mask=exists, other=-HUGE))
                greatest = tl.maximum(greatest, tl.load(products + r1 + position, mask=exists, other=-HUGE))
                greatest = tl.maximum(greatest, tl.load(products + r2 + position, mask=exists, other=-HUGE))
                greatest = tl.maximum(greatest, tl.load(products + r3 + position, mask=exists, other=-HUGE))
            weakest = tl.min(best, axis=0) - _SLACK
            least_reach = weakest * tl.where(weakest >= 0.0, at_least, at_most)
            if tl.max((exists & (greatest + _SLACK >= least_reach)).to(tl.int32), axis=0) > 0:
                v0 = w0[:, None]
                v1 = w1[:, None]
                v2 = w2[:, None]
                v3 = w3[:, None]
                known = exists[None, :]
                c0 = _corner(products, r0, r1, r2, r3, corner[None, :], known, v0, v1, v2, v3)
                c1 = _corner(products, r0, r1, r2, r3, (corner + there_right)[None, :], known, v0, v1, v2, v3)
                c2 = _corner(products, r0, r1, r2, r3, (corner + there_down)[None, :], known, v0, v1, v2, v3)
                c3 = _corner(
                    products, r0, r1, r2, r3, (corner + there_right + there_down)[None, :], known, v0, v1, v2, v3
                )
                limit = best[:, None] - _SLACK
                reach = limit * tl.where(limit >= 0.0, at_least[None, :], at_most[None, :])
                loose = tl.maximum(tl.maximum(c0, c1), tl.maximum(c2, c3)) + _SLACK >= reach
                t0 = tl.load(bounds + 2 * cells + cell, mask=exists, other=0.0)[None, :] * c0
                square = t0 * t0
                t1 = tl.load(bounds + 3 * cells + cell, mask=exists, other=0.0)[None, :] * c0
                t1 += tl.load(bounds + 4 * cells + cell, mask=exists, other=0.0)[None, :] * c1
                square += t1 * t1
                t2 = tl.load(bounds + 5 * cells + cell, mask=exists, other=0.0)[None, :] * c0
                t2 += tl.load(bounds + 6 * cells + cell, mask=exists, other=0.0)[None, :] * c1
                t2 += tl.load(bounds + 7 * cells + cell, mask=exists, other=0.0)[None, :] * c2
                square += t2 * t2
                t3 = tl.load(bounds + 8 * cells + cell, mask=exists, other=0.0)[None, :] * c0
                t3 += tl.load(bounds + 9 * cells + cell, mask=exists, other=0.0)[None, :] * c1
                t3 += tl.load(bounds + 10 * cells + cell, mask=exists, other=0.0)[None, :] * c2
                t3 += tl.load(bounds + 11 * cells + cell, mask=exists, other=0.0)[None, :] * c3
                square += t3 * t3
                never = (at_least < 0.0)[None, :]
                tight = (tl.sqrt(square) + _TIGHT_SLACK >= limit) | never
                left_over = tl.max((loose & tight & known).to(tl.int32), axis=0)
                while tl.max(left_over, axis=0) > 0:
                    lowest = tl.min(tl.where(left_over > 0, tl.arange(0, CELLS), CELLS), axis=0)
                    left_over = tl.where(tl.arange(0, CELLS) == lowest, 0, left_over)
                    one_row = row_begin + (start + lowest) // spread
                    one_column = column_begin + (start + lowest) % spread
                    at = one_row * there_width + one_column
                    k0 = _corner(products, r0, r1, r2, r3, at, True, w0, w1, w2, w3)[:, None]
                    k1 = _corner(products, r0, r1, r2, r3, at + there_right, True, w0, w1, w2, w3)[:, None]
                    k2 = _corner(products, r0, r1, r2, r3, at + there_down, True, w0, w1, w2, w3)[:, None]
                    k3 = _corner(products, r0, r1, r2, r3, at + there_right + there_down, True, w0, w1, w2, w3)[:, None]
                    cell_top = tl.load(row_starts + one_row)
                    cell_left = tl.load(column_starts + one_column)
                    cell_columns = tl.load(column_starts + one_column + 1) - cell_left
                    pixels = (tl.load(row_starts + one_row + 1) - cell_top) * cell_columns
                    for begin in range(0, pixels, PIXELS):
                        place = begin + tl.arange(0, PIXELS)
                        there = place < pixels
                        py = cell_top + place // cell_columns
                        px = cell_left + place % cell_columns
                        score = _score(
                            k0,
                            k1,
                            k2,
                            k3,
                            tl.load(downs + py, mask=there, other=0.0)[None, :],
                            tl.load(rights + px, mask=there, other=0.0)[None, :],
                            tl.load(inverse_there + py * width + px, mask=there, other=0.0)[None, :],
                        )
                        allowed = there[None, :]
                        if WINDOW:
                            allowed = allowed & (tl.abs(py[None, :] - y[:, None]) <= radius)
                            allowed = allowed & (tl.abs(px[None, :] - x[:, None]) <= radius)
                        score = tl.where(allowed, score, -HUGE)
                        most = tl.max(score, axis=1)
                        found = tl.min(tl.where(score == most[:, None], (py * width + px)[None, :], nothing), axis=1)
                        better = live & ((most > best) | ((most == best) & (found < index)))
                        index = tl.where(better, found, index)
                        best = tl.where(better, most, best)
    # A feature of norm 0 is as similar to the first position as to any; one that is not finite stays where it is.
    origin = tl.zeros((TILE,), dtype=tl.int32)
    if WINDOW:
        origin = tl.maximum(y - radius, 0) * width + tl.maximum(x - radius, 0)
    index = tl.where(live, tl.where(index < nothing, index, pixel), origin)
    similarity = tl.where(live, best * norm, 0.0)
    write_matches(pixel, inside, active, values, index, similarity, probability, share, refined, indices, similarities)


def tile_for(radius: int | None) -> int:
    """Queries of one program. A window takes registers of its own."""
    return TILE if radius is None else TILE // 2


def refine_on_pixels(
    generated: torch.Tensor,
    original: torch.Tensor,
    probability: torch.Tensor,
    share: float,
    certainty_filter: tuple[float, float] | None,
    where: torch.Tensor | None,
    radius: int | None,
    matches: bool,
    blocks: Blocks | None = None,
    product_bytes: int = _PRODUCT_BYTES,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Match all pixels that are updated and mix.

    Args:
        generated: [P,g,g], float16, bfloat16 or float32.
        original: [P,g,g], the same dtype; the grid may differ.
        probability: S, float32 [H,W].
        share: of the match in the result, 1 - beta.
        certainty_filter: closed interval of S that is updated, or None for all.
        where: bool [H,W], where else nothing is updated; None for everywhere.
        radius: of the window in pixels, or None.
        matches: whether to return indices and similarities.
        blocks: tile sizes of the products; None for the table's.
        product_bytes: of products held at once; more grids' rows than fit are taken in turns.

    Returns:
        S* float32 [H,W]; indices int64 [H*W] (-1 where nothing is updated) and similarities float32 [H*W] (0
        there), or None twice.
    """
    blocks = blocks or blocks_for(generated)
    here_grid = (generated.shape[1], generated.shape[2])
    there_grid = (original.shape[1], original.shape[2])
    size, device = (probability.shape[0], probability.shape[1]), probability.device
    here_down, here_right = (side_of(*pair, device) for pair in zip(here_grid, size, strict=True))
    there_down, there_right = here_down, here_right
    if there_grid != here_grid:
        there_down, there_right = (side_of(*pair, device) for pair in zip(there_grid, size, strict=True))
    left, right = prepare(generated), prepare(original)
    of_left, of_right = neighbours(*left, here_grid), neighbours(*right, there_grid)
    inverse_here, _ = norms_and_bounds(of_left, here_grid, here_down, here_right, bounded=False)
    inverse_there, bounds = norms_and_bounds(of_right, there_grid, there_down, there_right, bounded=True)
    refined, indices, similarities = outputs(probability, matches)
    low, high = certainty_filter or (0.0, 0.0)
    flags = where.contiguous().view(torch.uint8) if where is not None else None
    values = probability.contiguous()
    m = there_grid[0] * there_grid[1]
    rows, across = max(here_grid[0] - 1, 1), max(here_grid[1] - 1, 1)
    at_once = max(1, product_bytes // (4 * m * here_grid[1]) - 1)
    tile = tile_for(radius)
    tiles = triton.cdiv(here_down.longest * here_right.longest, tile)
    for first in range(0, rows, at_once):
        some = min(at_once, rows - first)
        last = min(first + some + 1, here_grid[0]) * here_grid[1]
        products = products_of(left, right, first * here_grid[1], last, m, blocks)
        _search_kernel[(some * across * tiles,)](
            products,
            inverse_here,
            inverse_there,
            bounds,
            values,
            flags,
            refined,
            indices,
            similarities,
            here_down.starts,
            here_right.starts,
            here_down.way,
            here_right.way,
            there_down.starts,
            there_right.starts,
            there_down.before,
            there_right.before,
            there_down.way,
            there_right.way,
            there_down.nearest,
            there_right.nearest,
            tiles,
            first,
            here_grid[1],
            across,
            *steps(here_grid),
            *there_grid,
            *steps(there_grid),
            *size,
            0 if radius is None else min(radius, max(size)),
            share,
            low,
            high,
            FILTERED=certainty_filter is not None,
            WINDOW=radius is not None,
            TILE=tile,
            CELLS=CELLS,
            PIXELS=PIXELS,
            num_warps=WARPS,
        )
    return refined, indices, similarities
