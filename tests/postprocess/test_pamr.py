"""Pixel-adaptive refinement against loops over every pixel and neighbour."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.postprocess import Pamr
from g4seg_trt.postprocess.pamr import adapt
from g4seg_trt.update import BackgroundRule, label_map

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

HALF = BackgroundRule("constant", 0.5)
sides = st.tuples(st.integers(1, 30), st.integers(1, 30))


def some(seed: int, size: tuple[int, int], classes: int = 1) -> tuple[Bytes, Floats]:
    noise = np.random.default_rng(seed)
    image = noise.integers(0, 256, (*size, 3)).astype(np.uint8)
    return image, noise.random((classes, *size), dtype=np.float32)


def by_loops(image: Bytes, maps: Floats) -> Array:
    """Every pixel of every iteration by itself, in float64."""
    height, width = image.shape[:2]
    pixels = image.astype(np.float64) / 255

    def around(row: int, column: int, centre: bool) -> list[tuple[int, int]]:
        return [
            (min(max(row + d * i, 0), height - 1), min(max(column + d * j, 0), width - 1))
            for d in (1, 2, 4, 8, 12, 24)
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if centre or (i, j) != (0, 0)
        ]

    weights: dict[tuple[int, int], list[float]] = {}
    for row in range(height):
        for column in range(width):
            spread = np.std([pixels[place] for place in around(row, column, True)], axis=0, ddof=1)
            scores = [
                float(np.mean(-np.abs(pixels[row, column] - pixels[place]) / (1e-8 + 0.1 * spread)))
                for place in around(row, column, False)
            ]
            powers = [math.exp(score - max(scores)) for score in scores]
            weights[row, column] = [power / sum(powers) for power in powers]
    current = maps.astype(np.float64)
    for _ in range(10):
        following = np.empty_like(current)
        for (row, column), shares in weights.items():
            places = around(row, column, False)
            following[:, row, column] = sum(
                share * current[:, r, c] for share, (r, c) in zip(shares, places, strict=True)
            )
        current = following
    return current


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 11), (30, 5)])
def test_it_is_the_mean_of_the_neighbours_by_colour(size: tuple[int, int]) -> None:
    image, maps = some(1, size, 2)
    image[: size[0] // 2] //= 8  # two parts that differ, so that the weights do
    np.testing.assert_allclose(adapt(image, maps), by_loops(image, maps), atol=2e-5)


@settings(deadline=None, max_examples=40)
@given(sides, st.integers(1, 3), st.integers(0, 999))
def test_invariants(size: tuple[int, int], classes: int, seed: int) -> None:
    image, probabilities = some(seed, size, classes)
    result = Pamr().apply(image, probabilities, HALF)
    assert result.dtype == np.float32
    assert result.shape == probabilities.shape
    assert (result.min(axis=(1, 2)) >= probabilities.min(axis=(1, 2))).all()
    assert (result.max(axis=(1, 2)) <= probabilities.max(axis=(1, 2))).all()
    order = np.random.default_rng(seed).permutation(classes)
    assert (Pamr().apply(image, probabilities[order], HALF) == result[order]).all()


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1, width=32), sides)
def test_constant_masks_stay(value: float, size: tuple[int, int]) -> None:
    image, _ = some(0, size)
    probabilities = np.full((1, *size), value, dtype=np.float32)
    assert (adapt(image, probabilities) == probabilities).all()


def test_it_is_linear_and_turns_with_the_image() -> None:
    image, maps = some(4, (19, 23), 2)
    whole = adapt(image, maps)
    half = adapt(image, maps * np.float32(0.5))
    np.testing.assert_allclose(half, whole / 2, atol=1e-6)
    turned = adapt(np.rot90(image).copy(), np.rot90(maps, axes=(1, 2)).copy())
    np.testing.assert_allclose(turned, np.rot90(whole, axes=(1, 2)), atol=1e-5)


def test_it_follows_the_edges_of_the_image() -> None:
    image = np.full((40, 60, 3), 40, dtype=np.uint8)
    image[:, 30:] = 200
    truth = np.zeros((40, 60), dtype=np.uint8)
    truth[:, 30:] = 1
    probability = np.clip(np.random.default_rng(0).normal(0.35 + 0.3 * truth, 0.2), 0, 1).astype(np.float32)[None]
    assert np.count_nonzero(label_map(probability, HALF) != truth) > 300
    assert (label_map(Pamr().apply(image, probability, HALF), HALF) == truth).all()


@pytest.mark.parametrize("size", [(497, 3), (3, 500), (30, 481)])
def test_tiles_do_not_show(size: tuple[int, int]) -> None:
    image, maps = some(7, size, 2)
    whole = adapt(image, maps)
    assert max(size) <= 2 * 240 + 512, "one tile"
    assert max(size) > 2 * 240, "more than one tile"
    assert (adapt(image, maps, tile=1 + max(size) // 7 if max(size) > 485 else 1) == whole).all()


def test_a_channel_is_averaged_with_the_classes() -> None:
    image, stack = some(9, (21, 34), 3)
    rule = BackgroundRule("channel", 0.0)
    result = Pamr().apply(image, stack[1:], rule, stack[0])
    assert (label_map(result, rule, stack[0]) == adapt(image, stack).argmax(axis=0)).all()
