"""The grid search on CUDA: product, running maximum, gather of S, mixing and certainty filter in one Triton kernel.

Features stay as they are, [P,n] with the position running fastest; half ones are never normalised in half: products
accumulate in float32 and the norms are divided out there. Where the queries alone cannot fill the GPU, the candidates
are split among programs and a second kernel combines their bests. No atomics: the same input gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_BLOCK = 128
_PROGRAMS_PER_PROCESSOR = 2


@dataclass(frozen=True)
class Blocks:
    """Sizes of one program's tile: queries, candidates and depth of a step; warps and pipeline stages."""

    queries: int
    candidates: int
    depth: int
    warps: int
    stages: int


# By compute capability, then by bytes of an element: the largest tiles whose stages fit into shared memory.
TABLE: dict[int, dict[int, Blocks]] = {
    90: {2: Blocks(128, 128, 64, 8, 4), 4: Blocks(64, 64, 32, 4, 3)},
    80: {2: Blocks(128, 128, 32, 8, 4), 4: Blocks(64, 64, 32, 4, 3)},
    0: {2: Blocks(64, 64, 32, 4, 2), 4: Blocks(64, 32, 32, 4, 2)},
}
_INTERPRETED = Blocks(16, 32, 16, 1, 1)


@triton.jit
def block_products(
    generated: tl.tensor,
    original: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    depth: tl.tensor,
    stride_n: tl.tensor,
    stride_m: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """float32 [BLOCK_N,BLOCK_M]: products of columns of generated and of original, padded to their strides."""
    sums = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for start in range(0, depth, BLOCK_D):
        steps = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        left = tl.load(
            generated + steps[None, :] * stride_n + rows[:, None],
            mask=(steps[None, :] < depth) & (rows[:, None] < stride_n),
            other=0.0,
        )
        right = tl.load(
            original + steps[:, None] * stride_m + columns[None, :],
            mask=(steps[:, None] < depth) & (columns[None, :] < stride_m),
            other=0.0,
        )
        sums = tl.dot(left, right, sums, input_precision=PRECISION)
    return sums


@triton.jit
def active_positions(
    positions: tl.tensor,
    inside: tl.tensor,
    values: tl.tensor,
    where: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    FILTERED: tl.constexpr,
) -> tl.tensor:
    """Which positions are updated: those of the certainty filter that `where`, if given, allows."""
    active = inside
    if FILTERED:
        active = active & (values >= low) & (values <= high)
    if where is not None:
        active = active & (tl.load(where + positions, mask=inside, other=0) != 0)
    return active


@triton.jit
def write_matches(
    positions: tl.tensor,
    inside: tl.tensor,
    active: tl.tensor,
    values: tl.tensor,
    found: tl.tensor,
    similarity: tl.tensor,
    source: tl.tensor,
    share: tl.tensor,
    refined: tl.tensor,
    indices: tl.tensor,
    similarities: tl.tensor,
) -> None:
    """Gather S at the matches, mix (eq. 9) and store; matches only where there is room for them."""
    there = tl.load(source + found, mask=active, other=0.0)
    tl.store(refined + positions, tl.where(active, values + share * (there - values), values), mask=inside)
    if indices is not None:
        tl.store(indices + positions, tl.where(active, found, -1).to(tl.int64), mask=inside)
        tl.store(similarities + positions, tl.where(active, similarity, 0.0), mask=inside)


@triton.jit
def _inverse_norms_kernel(
    features: tl.tensor,
    inverses: tl.tensor,
    n: tl.tensor,
    depth: tl.tensor,
    stride_n: tl.tensor,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    squares = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for start in range(0, depth, BLOCK_D):
        steps = (start + tl.arange(0, BLOCK_D)).to(tl.int64)
        values = tl.load(
            features + steps[:, None] * stride_n + columns[None, :],
            mask=(steps[:, None] < depth) & (columns[None, :] < n),
            other=0.0,
        ).to(tl.float64)
        squares += tl.sum(values * values, axis=0)
    positive = squares > 0.0
    inverse = tl.where(positive, 1.0 / tl.sqrt(tl.where(positive, squares, 1.0)), 0.0)
    tl.store(inverses + columns, inverse, mask=columns < n)


@triton.jit
def _search_kernel(
    generated: tl.tensor,
    original: tl.tensor,
    inverse_generated: tl.tensor,
    inverse_original: tl.tensor,
    probability: tl.tensor,
    source: tl.tensor,
    where: tl.tensor,
    refined: tl.tensor,
    indices: tl.tensor,
    similarities: tl.tensor,
    partial_best: tl.tensor,
    partial_index: tl.tensor,
    n: tl.tensor,
    m: tl.tensor,
    depth: tl.tensor,
    stride_n: tl.tensor,
    stride_m: tl.tensor,
    width: tl.tensor,
    radius: tl.tensor,
    per_split: tl.tensor,
    share: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    FILTERED: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One tile of queries against one split of the candidates."""
    first = tl.program_id(0) * BLOCK_N
    rows = first + tl.arange(0, BLOCK_N)
    begin = tl.program_id(1) * per_split
    end = tl.minimum(begin + per_split, m)
    if WINDOW:
        last = tl.minimum(first + BLOCK_N, n) - 1
        lowest = tl.maximum(first // width - radius, 0) * width
        begin = tl.maximum(begin, lowest // BLOCK_M * BLOCK_M)
        end = tl.minimum(end, (last // width + radius + 1) * width)
    best = tl.full((BLOCK_N,), float("-inf"), dtype=tl.float32)
    index = tl.zeros((BLOCK_N,), dtype=tl.int32)
    for start in range(begin, end, BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        sums = block_products(
            generated, original, rows, columns, depth, stride_n, stride_m, BLOCK_N, BLOCK_M, BLOCK_D, PRECISION
        )
        sums = sums * tl.load(inverse_original + columns, mask=columns < m, other=0.0)[None, :]
        allowed = (columns < end)[None, :]
        if WINDOW:
            down = rows[:, None] // width - columns[None, :] // width
            right = rows[:, None] % width - columns[None, :] % width
            allowed = allowed & (tl.abs(down) <= radius) & (tl.abs(right) <= radius)
        sums = tl.where(allowed, sums, float("-inf"))
        top = tl.max(sums, axis=1)
        place = tl.min(tl.where(sums == top[:, None], columns[None, :], m), axis=1)
        # Strictly larger: of equal ones the first stays.
        better = top > best
        index = tl.where(better, place, index)
        best = tl.where(better, top, best)
    inside = rows < n
    if SPLIT:
        tl.store(partial_best + tl.program_id(1) * n + rows, best, mask=inside)
        tl.store(partial_index + tl.program_id(1) * n + rows, index, mask=inside)
    else:
        values = tl.load(probability + rows, mask=inside, other=0.0)
        active = active_positions(rows, inside, values, where, low, high, FILTERED)
        similarity = best * tl.load(inverse_generated + rows, mask=inside, other=0.0)
        write_matches(rows, inside, active, values, index, similarity, source, share, refined, indices, similarities)


@triton.jit
def _combine_kernel(
    partial_best: tl.tensor,
    partial_index: tl.tensor,
    inverse_generated: tl.tensor,
    probability: tl.tensor,
    source: tl.tensor,
    where: tl.tensor,
    refined: tl.tensor,
    indices: tl.tensor,
    similarities: tl.tensor,
    n: tl.tensor,
    splits: tl.tensor,
    share: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    FILTERED: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """The best of all splits; splits ascend, so strictly larger keeps the lowest index."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < n
    best = tl.full((BLOCK_N,), float("-inf"), dtype=tl.float32)
    index = tl.zeros((BLOCK_N,), dtype=tl.int32)
    for split in range(splits):
        other = tl.load(partial_best + split * n + rows, mask=inside, other=0.0)
        better = other > best
        index = tl.where(better, tl.load(partial_index + split * n + rows, mask=inside, other=0), index)
        best = tl.where(better, other, best)
    values = tl.load(probability + rows, mask=inside, other=0.0)
    active = active_positions(rows, inside, values, where, low, high, FILTERED)
    similarity = best * tl.load(inverse_generated + rows, mask=inside, other=0.0)
    write_matches(rows, inside, active, values, index, similarity, source, share, refined, indices, similarities)


def blocks_for(features: torch.Tensor) -> Blocks:
    """The table's entry for the device and the element size of `features`."""
    if not features.is_cuda:
        return _INTERPRETED
    major, minor = torch.cuda.get_device_capability(features.device)
    capability = 90 if major == 9 else 80 if (major, minor) == (8, 0) or major >= 10 else 0
    return TABLE[capability][features.element_size()]


def prepare(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[P,...] -> features as the kernels read them and the inverse norm of every position, padded to whole 16s.

    float16 features stay as they are, and bfloat16 ones up to a power of two, which is exact: their range is that of
    float32, and products would leave it. float32 ones are normalised.
    """
    flat = features.reshape(features.shape[0], -1)
    depth, n = flat.shape
    # Rows that start at multiples of 16 elements load in wide pieces, and only those are pipelined.
    flat = torch.nn.functional.pad(flat, (0, -n % 16)).contiguous()
    inverses = torch.zeros(flat.shape[1], dtype=torch.float64, device=flat.device)
    _inverse_norms_kernel[(triton.cdiv(n, 32),)](flat, inverses, n, depth, flat.stride(0), BLOCK_N=32, BLOCK_D=64)
    if flat.dtype == torch.float32:
        return (flat * inverses).float(), (inverses > 0).float()
    if flat.dtype == torch.bfloat16:
        scale = torch.where(inverses > 0, torch.exp2(torch.floor(torch.log2(inverses))), 0.0)
        return (flat * scale).bfloat16(), torch.where(inverses > 0, inverses / scale, 0.0).float()
    return flat, inverses.float()


def precision_of(features: torch.Tensor) -> str:
    """Half products are exact in float32; float32 ones take three TF32 products, which keeps float32's precision."""
    return "ieee" if features.element_size() == 2 else "tf32x3"


def outputs(probability: torch.Tensor, matches: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Room for what `write_matches` writes: S* in the shape of S, and flat matches if wanted."""
    n, device = probability.numel(), probability.device
    refined = torch.empty(tuple(probability.shape), dtype=torch.float32, device=device)
    if not matches:
        return refined, None, None
    indices = torch.empty(n, dtype=torch.int64, device=device)
    return refined, indices, torch.empty(n, dtype=torch.float32, device=device)


def refine_on_grid(
    generated: torch.Tensor,
    original: torch.Tensor,
    probability: torch.Tensor,
    source: torch.Tensor,
    share: float,
    certainty_filter: tuple[float, float] | None,
    where: torch.Tensor | None,
    window: tuple[int, int] | None,
    matches: bool,
    blocks: Blocks | None = None,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Match n queries with m candidates and mix.

    Args:
        generated: [P,n], float16, bfloat16 or float32.
        original: [P,m], the same dtype.
        probability: S at the queries, float32 [n].
        source: S at the candidates, float32 [m].
        share: of the match in the result, 1 - beta.
        certainty_filter: closed interval of S that is updated, or None for all.
        where: bool [n], where else nothing is updated; None for everywhere.
        window: (width of the grid, radius) where matches may only lie in a window.
        matches: whether to return indices and similarities.
        blocks: tile sizes; None for the table's.
        splits: of the candidates; None for as many as fill the GPU.

    Returns:
        S* float32 [n]; indices int64 [n] (-1 where nothing is updated) and similarities float32 [n] (0 there),
        or None twice.
    """
    blocks = blocks or blocks_for(generated)
    left, inverse_left = prepare(generated)
    right, inverse_right = prepare(original)
    depth, n, m = left.shape[0], len(probability), len(source)
    tiles = triton.cdiv(n, blocks.queries)
    if splits is None:
        splits = _splits(tiles, m, blocks, generated)
    # Whole tiles, so that a split never begins inside one.
    per_split = triton.cdiv(triton.cdiv(m, splits), blocks.candidates) * blocks.candidates
    splits = triton.cdiv(m, per_split)
    refined, indices, similarities = outputs(probability, matches)
    partial = splits > 1
    best = torch.empty((splits, n), dtype=torch.float32, device=left.device) if partial else None
    index = torch.empty((splits, n), dtype=torch.int32, device=left.device) if partial else None
    low, high = certainty_filter or (0.0, 0.0)
    width, radius = window or (1, 0)
    radius = min(radius, n)  # everything, and far from the end of 32 bits
    flags = where.contiguous().view(torch.uint8) if where is not None else None
    values = probability.contiguous()
    source = source.contiguous()
    _search_kernel[(tiles, splits)](
        left,
        right,
        inverse_left,
        inverse_right,
        values,
        source,
        flags,
        refined,
        indices,
        similarities,
        best,
        index,
        n,
        m,
        depth,
        left.stride(0),
        right.stride(0),
        width,
        radius,
        per_split,
        share,
        low,
        high,
        FILTERED=certainty_filter is not None,
        WINDOW=window is not None,
        SPLIT=partial,
        PRECISION=precision_of(left),
        BLOCK_N=blocks.queries,
        BLOCK_M=blocks.candidates,
        BLOCK_D=blocks.depth,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    if partial:
        _combine_kernel[(triton.cdiv(n, _BLOCK),)](
            best,
            index,
            inverse_left,
            values,
            source,
            flags,
            refined,
            indices,
            similarities,
            n,
            splits,
            share,
            low,
            high,
            FILTERED=certainty_filter is not None,
            BLOCK_N=_BLOCK,
        )
    return refined, indices, similarities


def _splits(tiles: int, m: int, blocks: Blocks, features: torch.Tensor) -> int:
    if not features.is_cuda:
        return 1
    processors = torch.cuda.get_device_properties(features.device).multi_processor_count
    fill = _PROGRAMS_PER_PROCESSOR * processors // tiles
    return max(1, min(-(-m // blocks.candidates), fill))
