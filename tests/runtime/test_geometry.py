"""Resizing: exact on the identity, unbiased, and sound at every odd size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4seg_trt.geometry import (
    pool_to_grid,
    resize_nearest,
    resize_probability,
    to_square,
    upsample_residual,
)

sides = st.integers(1, 70)
sizes = st.tuples(sides, sides)
grids = st.integers(1, 12)
EXTREME = [(1, 1), (1, 7), (30, 5000), (5000, 30), (3, 2), (33, 65)]


def random_map(seed: int, size: tuple[int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).random(size, dtype=np.float32)


def bilinear_weights(old: int, new: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The definition: half-pixel centres, edges clamped. Only for new >= old."""
    weights = np.zeros((new, old))
    for index in range(new):
        position = min(max((index + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        low = int(position)
        high = min(low + 1, old - 1)
        weights[index, low] += 1 - (position - low)
        weights[index, high] += position - low
    return weights


@given(st.integers(0, 99), grids, sizes)
def test_upsampling_is_bilinear_with_half_pixel_centres(seed: int, grid: int, size: tuple[int, int]) -> None:
    height, width = max(size[0], grid), max(size[1], grid)
    residual = random_map(seed, (grid, grid)) * 2 - 1
    expected = bilinear_weights(grid, height) @ residual @ bilinear_weights(grid, width).T
    assert np.abs(upsample_residual(residual, (height, width)) - expected).max() < 1e-6


@given(grids, sizes)
def test_weights_of_every_pixel_sum_to_one(grid: int, size: tuple[int, int]) -> None:
    lifted = upsample_residual(np.full((grid, grid), 0.7, dtype=np.float32), size)
    assert lifted.shape == size
    assert np.abs(lifted - 0.7).max() < 1e-6


@given(st.integers(0, 99), grids, sizes)
def test_upsampling_stays_within_the_residual_s_range(seed: int, grid: int, size: tuple[int, int]) -> None:
    residual = random_map(seed, (grid, grid))
    lifted = upsample_residual(residual, size)
    assert residual.min() - 1e-6 <= lifted.min() <= lifted.max() <= residual.max() + 1e-6


@given(st.integers(0, 99), sizes, grids)
def test_pooling_is_the_mean_over_each_cell(seed: int, size: tuple[int, int], grid: int) -> None:
    values = random_map(seed, size)
    # Every pixel repeated grid times along both axes makes all cells whole.
    fine = values.astype(np.float64).repeat(grid, axis=0).repeat(grid, axis=1)
    expected = fine.reshape(grid, size[0], grid, size[1]).mean(axis=(1, 3))
    assert np.abs(pool_to_grid(values, grid) - expected).max() < 1e-6


@given(sizes, grids)
def test_pooling_keeps_the_mean(size: tuple[int, int], grid: int) -> None:
    values = random_map(1, size)
    assert abs(float(pool_to_grid(values, grid).mean()) - float(values.mean())) < 1e-5


@given(st.integers(0, 99), sizes, sizes)
def test_probabilities_stay_probabilities(seed: int, old: tuple[int, int], new: tuple[int, int]) -> None:
    values = random_map(seed, old)
    resized = resize_probability(values, new)
    assert resized.shape == new
    assert resized.dtype == np.float32
    assert values.min() - 1e-6 <= resized.min() <= resized.max() <= values.max() + 1e-6


def test_resizing_to_the_same_size_changes_nothing_and_copies() -> None:
    values = random_map(0, (9, 14))
    resized = resize_probability(values, (9, 14))
    assert np.array_equal(resized, values)
    resized[0, 0] = 2
    assert values[0, 0] != 2


def test_shrinking_does_not_skip_pixels() -> None:
    stripes = np.zeros((64, 64), dtype=np.float32)
    stripes[:, ::8] = 1  # a filter that samples points would find all or nothing
    assert np.abs(resize_probability(stripes, (8, 8)) - 1 / 8)[:, 1:-1].max() < 1e-6


def test_growing_and_pooling_again_finds_the_same_positions() -> None:
    ramp = np.linspace(0, 1, 16, dtype=np.float32)[None].repeat(16, axis=0)
    large = resize_probability(ramp, (80, 160))
    assert np.abs(pool_to_grid(large, 16) - ramp)[:, 1:-1].max() < 1e-6


@given(sizes, st.integers(1, 20))
def test_nearest_takes_the_pixel_under_the_centre(size: tuple[int, int], side: int) -> None:
    mask = random_map(2, size) > 0.5
    resized = resize_nearest(mask, (side, side))
    for row in range(side):
        for column in range(side):
            expected = mask[int((row + 0.5) * size[0] / side), int((column + 0.5) * size[1] / side)]
            assert resized[row, column] == expected


def test_an_image_of_the_square_s_size_keeps_its_values() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    square = to_square(image, 32)
    assert square.dtype == np.float32
    assert np.array_equal(np.rint(square * 255).astype(np.uint8).transpose(1, 2, 0), image)


@pytest.mark.parametrize("size", EXTREME)
def test_any_image_becomes_a_square(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), (255, 128, 0), dtype=np.uint8)
    square = to_square(image, 16)
    assert square.shape == (3, 16, 16)
    assert square.flags.c_contiguous
    expected = np.array([1.0, 128 / 255, 0.0], dtype=np.float32)[:, None, None]
    assert np.abs(square - expected).max() < 1e-6


def test_shrinking_an_image_is_antialiased() -> None:
    board = np.indices((96, 96)).sum(axis=0) % 2 * 255
    square = to_square(board[..., None].repeat(3, axis=2).astype(np.uint8), 16)
    assert np.abs(square - 0.5).max() < 0.05


@pytest.mark.parametrize("size", EXTREME)
def test_extreme_sizes_there_and_back(size: tuple[int, int]) -> None:
    values = random_map(3, size)
    square = resize_probability(values, (32, 32))
    pooled = pool_to_grid(square, 8)
    lifted = upsample_residual(pooled, size)
    assert (square.shape, pooled.shape, lifted.shape) == ((32, 32), (8, 8), size)
    for result in (square, pooled, lifted):
        assert np.isfinite(result).all()
        assert 0 <= result.min() <= result.max() <= 1 + 1e-6
