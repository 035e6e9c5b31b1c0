"""The grid search against brute force in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4seg_trt.correspondence import nearest_positions
from g4seg_trt.correspondence.reference import nearest_positions_reference

Floats = npt.NDArray[np.float32]


def features(seed: int, width: int, grid: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((width, grid, grid), dtype=np.float32)


def agree(generated: Floats, original: Floats) -> None:
    """The indices of brute force wherever the best is better by more than rounding, and its similarities."""
    indices, similarities = nearest_positions(generated, original)
    expected, best = nearest_positions_reference(generated, original)
    assert indices.dtype == np.int64
    assert similarities.dtype == np.float32
    assert np.abs(similarities - best).max() < 1e-5
    rows = original.reshape(original.shape[0], -1).T.astype(np.float64)
    wanted = generated.reshape(generated.shape[0], -1).T.astype(np.float64)
    for query in np.flatnonzero(indices != expected):
        lengths = np.linalg.norm(rows[[indices[query], expected[query]]], axis=1) * np.linalg.norm(wanted[query])
        chosen, rival = rows[[indices[query], expected[query]]] @ wanted[query] / lengths
        assert abs(chosen - rival) < 1e-6


@given(st.integers(0, 9999), st.integers(1, 40), st.integers(1, 9))
def test_random_features(seed: int, width: int, grid: int) -> None:
    agree(features(seed, width, grid), features(seed + 1, width, grid))


@pytest.mark.parametrize(("width", "grid"), [(512, 16), (7, 33), (1, 5), (64, 40)])
def test_larger_features(width: int, grid: int) -> None:
    agree(features(0, width, grid), features(1, width, grid))


@given(st.integers(0, 999), st.integers(2, 6))
def test_an_image_finds_itself(seed: int, grid: int) -> None:
    own = features(seed, 16, grid)
    indices, similarities = nearest_positions(own, own)
    assert np.array_equal(indices, np.arange(grid * grid))
    assert np.abs(similarities - 1).max() < 1e-6


@given(st.integers(0, 9999), st.integers(1, 33), st.integers(1, 12))
def test_of_identical_features_the_first_wins(seed: int, width: int, grid: int) -> None:
    generator = np.random.default_rng(seed)
    few = generator.standard_normal((width, 3), dtype=np.float32)
    original = few[:, generator.integers(0, 3, grid * grid)].reshape(width, grid, grid)
    indices, _ = nearest_positions(features(seed + 1, width, grid), original)
    flat = original.reshape(width, -1)
    for index in indices:
        same = (flat == flat[:, [index]]).all(axis=0)
        assert index == same.argmax()


@given(st.integers(0, 9999), st.integers(1, 8))
def test_exact_ties_between_different_features(seed: int, grid: int) -> None:
    # Entries of -1, 0, 1 with norm 2 or 1: every product and sum is exact, so ties are real ties.
    generator = np.random.default_rng(seed)
    units = np.eye(8, dtype=np.float32)[generator.integers(0, 8, grid * grid)]
    quads = np.kron(np.eye(2), np.ones(4))[generator.integers(0, 2, grid * grid)].astype(np.float32)
    original = np.where(generator.random(grid * grid)[:, None] < 0.5, units, quads)
    generated = np.where(generator.random(grid * grid)[:, None] < 0.5, units, quads)[::-1]
    shape = (8, grid, grid)
    pair = generated.T.reshape(shape), original.T.reshape(shape)
    indices, similarities = nearest_positions(*pair)
    expected, best = nearest_positions_reference(*pair)
    assert np.array_equal(indices, expected)
    assert np.array_equal(similarities, best.astype(np.float32))


@pytest.mark.parametrize("grid", [1, 5, 32])
def test_constant_features_point_to_the_first_position(grid: int) -> None:
    constant = np.full((6, grid, grid), 0.3, dtype=np.float32)
    indices, similarities = nearest_positions(features(0, 6, grid), constant)
    assert not indices.any()
    assert np.isfinite(similarities).all()


def test_features_of_norm_zero() -> None:
    generated, original = features(0, 4, 3), features(1, 4, 3)
    generated[:, 1, 1] = 0
    original[:, 0, 0] = 0
    indices, similarities = nearest_positions(generated, original)
    assert (indices[4], similarities[4]) == (0, 0.0)
    agree(generated, original)
    zeros = np.zeros_like(original)
    indices, similarities = nearest_positions(generated, zeros)
    assert not indices.any()
    assert not similarities.any()


def test_a_zero_feature_beats_negative_similarities() -> None:
    generated = np.array([1, 0], dtype=np.float32).reshape(2, 1, 1)
    original = np.array([[-1, 0], [0, 0]], dtype=np.float32).T.reshape(2, 1, 2)
    indices, similarities = nearest_positions(generated, original)
    assert indices.tolist() == [1]
    assert similarities.tolist() == [0.0]


@given(st.integers(0, 999), st.floats(1e-12, 1e12))
def test_scale_does_not_matter(seed: int, scale: float) -> None:
    generated, original = features(seed, 12, 5), features(seed + 1, 12, 5)
    plain, _ = nearest_positions(generated, original)
    scaled, similarities = nearest_positions(generated * np.float32(scale), original / np.float32(scale))
    assert np.array_equal(plain, scaled)
    assert np.abs(similarities).max() <= 1 + 1e-6


def test_queries_are_rows_of_the_whole() -> None:
    generated, original = features(0, 20, 40), features(1, 20, 40)
    indices, similarities = nearest_positions(generated, original)
    queries = np.array([1599, 0, 7, 7, 1030])
    some, of_some = nearest_positions(generated, original, queries=queries)
    assert np.array_equal(some, indices[queries])
    assert np.allclose(of_some, similarities[queries])
    none, _ = nearest_positions(generated, original, queries=queries[:0])
    assert none.shape == (0,)


def test_inputs_are_not_changed() -> None:
    generated, original = features(0, 5, 4), features(1, 5, 4)
    before = generated.copy(), original.copy()
    nearest_positions(generated, original)
    assert np.array_equal(generated, before[0])
    assert np.array_equal(original, before[1])


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="expected"):
        nearest_positions(features(0, 5, 4), features(0, 6, 4))
    with pytest.raises(ValueError, match="size"):
        nearest_positions(features(0, 5, 4), features(0, 5, 4), size=(8, 0))
    with pytest.raises(ValueError, match="empty"):
        nearest_positions(features(0, 5, 0), features(0, 5, 4))
    for wrong in (-1, 64):
        with pytest.raises(ValueError, match="queries from"):
            nearest_positions(features(0, 5, 4), features(0, 5, 4), size=(8, 8), queries=np.array([0, wrong]))
