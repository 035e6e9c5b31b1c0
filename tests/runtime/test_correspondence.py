"""The grid search against brute force in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4seg_trt.correspondence import nearest_positions
from g4seg_trt.correspondence.pixel import cells_searched
from g4seg_trt.correspondence.reference import nearest_positions_reference, positions_of
from g4seg_trt.errors import CorrespondenceError, InputError

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


@given(st.integers(0, 9999), st.integers(1, 20), st.integers(1, 9), st.integers(0, 10))
def test_only_the_window_is_searched(seed: int, width: int, grid: int, radius: int) -> None:
    generated, original = features(seed, width, grid), features(seed + 1, width, grid)
    indices, similarities = nearest_positions(generated, original, radius=radius)
    expected, best = nearest_positions_reference(generated, original, radius=radius)
    assert np.abs(similarities - best).max() < 1e-5
    close = np.flatnonzero(indices != expected)
    cosines = positions_of(generated) @ positions_of(original).T
    assert np.abs(cosines[close, indices[close]] - best[close]).max(initial=0.0) < 1e-6
    apart = np.abs(np.stack(np.divmod(indices, grid)) - np.divmod(np.arange(grid**2), grid))
    assert apart.max() <= radius


@given(st.integers(0, 999), st.integers(1, 12), st.integers(0, 12))
def test_of_identical_features_the_first_in_the_window_wins(seed: int, grid: int, radius: int) -> None:
    generator = np.random.default_rng(seed)
    number = generator.integers(0, 3, grid * grid)
    original = generator.standard_normal((33, 3), dtype=np.float32)[:, number].reshape(33, grid, grid)
    indices, _ = nearest_positions(features(seed + 1, 33, grid), original, radius=radius)
    places = np.stack(np.divmod(np.arange(grid * grid), grid))
    for query, index in enumerate(indices):
        inside = (np.abs(places - places[:, [query]]) <= radius).all(axis=0)
        assert index == np.flatnonzero(inside & (number == number[index]))[0]


def test_windows_from_one_position_to_everything() -> None:
    generated, original = features(0, 20, 40), features(1, 20, 40)
    alone, _ = nearest_positions(generated, original, radius=0)
    assert np.array_equal(alone, np.arange(1600))
    wide, of_wide = nearest_positions(generated, original, radius=39)
    everything, best = nearest_positions(generated, original)
    assert np.array_equal(wide, everything)
    assert np.array_equal(of_wide, best)
    queries = np.array([1599, 0, 7, 7, 1030])
    some, _ = nearest_positions(generated, original, queries=queries, radius=5)
    assert np.array_equal(some, nearest_positions(generated, original, radius=5)[0][queries])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("size", [None, (9, 8)])
def test_other_floating_dtypes_are_taken_as_float32(dtype: type, size: tuple[int, int] | None) -> None:
    generated: Any = features(0, 12, 5).astype(dtype)
    original: Any = features(1, 12, 5).astype(dtype)
    found = nearest_positions(generated, original, size)
    expected = nearest_positions(generated.astype(np.float32), original.astype(np.float32), size)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


GOOD = features(0, 5, 4)


def broken(value: float) -> Floats:
    values = GOOD.copy()
    values[1, 2, :3] = value
    return values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generated": GOOD[0]}, r"generated has shape \[4, 4\], expected \[P,g,g\]"),
        ({"original": GOOD[None]}, r"original has shape \[1, 5, 4, 4\]"),
        ({"original": GOOD[:4]}, r"original has shape \[4, 4, 4\], generated \[5, 4, 4\].*same P"),
        ({"generated": GOOD[:, :0]}, r"generated has shape \[5, 0, 4\], .*not empty"),
        ({"generated": GOOD.tolist()}, "generated is a list"),
        ({"generated": GOOD.astype(np.int32)}, "int32, allowed: float16, float32, float64"),
        ({"original": GOOD.astype(np.complex64)}, "complex64, allowed"),
        ({"original": GOOD.astype(np.float64)}, "original .* is float64, generated .* is float32.*same dtype"),
        ({"generated": broken(np.nan)}, r"generated \[5, 4, 4\] has 3 values"),
        ({"original": broken(-np.inf)}, r"original \[5, 4, 4\] has 3 values"),
        ({"generated": GOOD.astype(np.float64) * 1e300, "original": GOOD.astype(np.float64)}, "generated .* 80 values"),
        ({"size": (8, 0)}, r"size is \(8, 0\), allowed"),
        ({"size": (8, 8, 8)}, r"size is \(8, 8, 8\)"),
        ({"size": (8.0, 8)}, r"size is \(8\.0, 8\)"),
        ({"size": (True, 8)}, r"size is \(True, 8\)"),
        ({"size": 8}, "size is 8, allowed"),
        ({"queries": [0, 1]}, "queries is a list"),
        ({"queries": np.zeros((2, 2), dtype=np.int64)}, r"queries is int64 of shape \[2, 2\]"),
        ({"queries": np.zeros(2)}, "queries is float64"),
        ({"queries": np.zeros(16, dtype=np.bool_)}, "queries is bool"),
        ({"queries": np.array([0, 16])}, r"queries \[2\] is from 0 to 16, allowed: 0 to 15"),
        ({"queries": np.array([0, -1]), "size": (8, 8)}, r"from -1 to 0, allowed: 0 to 63"),
        ({"radius": -1}, "radius is -1, allowed"),
        ({"radius": 1.0}, r"radius is 1\.0"),
        ({"radius": True}, "radius is True"),
        ({"original": features(0, 5, 3), "radius": 1}, r"original has shape \[5, 3, 3\], generated .*same size"),
    ],
)
def test_arguments_that_are_not_allowed_are_named(arguments: dict[str, Any], message: str) -> None:
    given_arguments = {"generated": GOOD, "original": GOOD, **arguments}
    with pytest.raises(CorrespondenceError, match=message) as caught:
        nearest_positions(**given_arguments)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)
    if "size" in arguments:
        with pytest.raises(CorrespondenceError, match=message):
            cells_searched(**given_arguments)


def test_integers_of_any_kind_are_integers() -> None:
    size: Any = [np.int64(6), 7]
    some, _ = nearest_positions(GOOD, features(1, 5, 4), size, np.array([3, 41], dtype=np.uint8), np.int32(2))  # type: ignore[arg-type]
    assert np.array_equal(some, nearest_positions(GOOD, features(1, 5, 4), (6, 7), radius=2)[0][[3, 41]])
