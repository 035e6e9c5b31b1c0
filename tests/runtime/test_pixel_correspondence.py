"""The pixel search by cell bounds against brute force over all pixels in float64."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.correspondence import nearest_positions, pixel
from g4seg_trt.correspondence.bounds import Bounds
from g4seg_trt.correspondence.cells import ZERO_NORM, Upsampling
from g4seg_trt.correspondence.grid import unit_rows
from g4seg_trt.correspondence.reference import nearest_positions_reference, positions_of

Floats = npt.NDArray[np.float32]
Size = tuple[int, int]

KINDS = ("random", "smooth", "clustered", "duplicated", "constant", "zeros", "opposite", "signs", "nearly constant")
kinds = st.sampled_from(KINDS)
sizes = st.tuples(st.integers(1, 26), st.integers(1, 26))


def features(kind: str, seed: int, width: int, grid: int) -> Floats:
    generator = np.random.default_rng(seed)
    drawn = generator.standard_normal((width, grid, grid))
    if kind == "smooth":
        drawn = 1.0 + np.sum([np.roll(drawn, (y, x), axis=(1, 2)) for y in range(3) for x in range(3)], axis=0)
    elif kind == "clustered":
        centres = generator.standard_normal((width, 3))
        drawn = centres[:, generator.integers(0, 3, (grid, grid))] + 0.01 * drawn
    elif kind == "duplicated":
        drawn = generator.standard_normal((width, 2))[:, generator.integers(0, 2, (grid, grid))]
    elif kind == "constant":
        drawn = np.broadcast_to(drawn[:, :1, :1], drawn.shape)
    elif kind == "zeros":
        drawn = drawn * (generator.random((grid, grid)) < 0.5)
    elif kind == "opposite":
        drawn = drawn[:, :1, :1] * np.sign(drawn[:1])
    elif kind == "signs":
        drawn = np.sign(drawn)
    elif kind == "nearly constant":
        drawn = drawn[:, :1, :1] + 1e-5 * drawn
    return np.ascontiguousarray(drawn, dtype=np.float32)


def upsampled(rows: Floats, upsampling: Upsampling) -> npt.NDArray[np.float64]:
    """Unit features [g*g,P] at all pixels, float64 [n,P], not normalised again."""
    corners = rows.astype(np.float64)[upsampling.corners[:, upsampling.cells]]
    rows_there: npt.NDArray[np.float64] = np.einsum("kn,knp->np", upsampling.weights, corners)
    return rows_there


def agree(generated: Floats, original: Floats, size: Size, radius: int | None = None) -> None:
    """What was found is as similar as brute force's best, and inside the window."""
    indices, similarities = nearest_positions(generated, original, size, radius=radius)
    _, best = nearest_positions_reference(generated, original, size, radius=radius)
    assert indices.dtype == np.int64
    assert similarities.dtype == np.float32
    assert indices.shape == similarities.shape == (size[0] * size[1],)
    of_found = np.einsum("ij,ij->i", positions_of(generated, size), positions_of(original, size)[indices])
    assert (of_found >= best - 1e-6).all()
    assert np.abs(similarities - best).max() < 1e-6
    if radius is not None:
        assert away(indices, size[1]).max() <= radius


def away(indices: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    """How far each position's match is from it along either axis, [2,n]."""
    apart: npt.NDArray[np.int64] = np.abs(
        np.stack(np.divmod(indices, width)) - np.divmod(np.arange(len(indices)), width)
    )
    return apart


@settings(deadline=None)
@given(kinds, kinds, st.integers(0, 9999), st.integers(1, 24), st.integers(1, 7), sizes)
def test_every_kind_of_features(one: str, other: str, seed: int, width: int, grid: int, size: Size) -> None:
    agree(features(one, seed, width, grid), features(other, seed + 1, width, grid), size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "size"), [(8, (64, 64)), (7, (40, 61)), (1, (5, 9)), (2, (33, 16)), (13, (48, 48))])
def test_an_image_and_its_slight_change(kind: str, grid: int, size: Size) -> None:
    original = features(kind, 0, 32, grid)
    agree(original + 0.1 * features("random", 1, 32, grid), original, size)


@given(st.sampled_from(KINDS), st.integers(0, 999), st.integers(1, 6))
@settings(deadline=None)
def test_negative_similarities(kind: str, seed: int, grid: int) -> None:
    generated = np.abs(features("random", seed, 9, grid)) + np.float32(0.1)
    original = -np.abs(features(kind, seed + 1, 9, grid)) - np.float32(0.1)
    agree(generated, original, (13, 17))
    assert (nearest_positions(generated, original, (13, 17))[1] < 0).all()


def test_a_pixel_of_norm_zero_beats_negative_similarities() -> None:
    generated = np.array([1, 1, 1, 1], dtype=np.float32).reshape(1, 2, 2)
    original = np.array([-1, 1, -1, 1], dtype=np.float32).reshape(1, 2, 2)
    indices, _ = nearest_positions(-generated, np.abs(original), (3, 3))
    assert not indices.any()
    original = np.stack([-np.ones((2, 2)), np.array([[-1, 1], [-1, 1]])]).astype(np.float32)
    original[0] = 0  # only the second feature is left: its middle column cancels
    wanted = np.stack([np.ones((2, 2)), np.zeros((2, 2))]).astype(np.float32)
    indices, similarities = nearest_positions(wanted, original, (3, 3))
    assert not similarities.any()
    assert not indices.any()
    agree(np.stack([np.zeros((2, 2)), -np.ones((2, 2))]).astype(np.float32), original, (3, 3))


@given(st.sampled_from(["duplicated", "constant"]), st.integers(0, 999), st.sampled_from([(32, 32), (16, 24)]))
@settings(deadline=None)
def test_of_identical_pixels_the_first_wins(kind: str, seed: int, size: Size) -> None:
    """At whole power-of-two ratios equal pixels are equal to the last bit."""
    generated, original = features("random", seed, 8, 4), features(kind, seed + 1, 8, 4)
    indices, _ = nearest_positions(generated, original, size)
    rows = positions_of(original, size)
    for index in np.unique(indices):
        assert index == np.flatnonzero((np.abs(rows - rows[index]) < 1e-12).all(axis=1))[0]


@pytest.mark.parametrize("grid", [5, 37])
def test_constant_features_cost_one_pixel(grid: int) -> None:
    constant = np.full((6, grid, grid), 0.3, dtype=np.float32)
    indices, similarities = nearest_positions(features("random", 0, 6, grid), constant, (64, 50))
    assert not indices.any()
    assert np.isfinite(similarities).all()


def test_features_without_anything() -> None:
    some, nothing = features("random", 0, 4, 3), np.zeros((4, 3, 3), dtype=np.float32)
    for generated, original in ((some, nothing), (nothing, some)):
        indices, similarities = nearest_positions(generated, original, (7, 8))
        assert not indices.any()
        assert not similarities.any()


@given(st.integers(0, 999), st.floats(1e-12, 1e12))
@settings(deadline=None)
def test_scale_does_not_matter(seed: int, scale: float) -> None:
    generated, original = features("random", seed, 12, 5), features("random", seed + 1, 12, 5)
    plain, _ = nearest_positions(generated, original, (18, 20))
    scaled, similarities = nearest_positions(generated * np.float32(scale), original / np.float32(scale), (18, 20))
    assert (plain == scaled).mean() > 0.99
    assert np.abs(similarities).max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", ["random", "smooth"])
def test_queries_are_rows_of_the_whole(kind: str) -> None:
    generated, original = features(kind, 0, 20, 6), features(kind, 1, 20, 6)
    size = (41, 43)
    indices, similarities = nearest_positions(generated, original, size)
    queries = np.array([41 * 43 - 1, 0, 7, 7, 1030])
    some, of_some = nearest_positions(generated, original, size, queries)
    assert np.array_equal(some, indices[queries])
    assert np.allclose(of_some, similarities[queries], rtol=0, atol=1e-6)
    none, _ = nearest_positions(generated, original, size, queries[:0])
    assert none.shape == (0,)


@pytest.mark.parametrize(("name", "value"), [("_HELD", 3), ("_HELD", 2000), ("_CROWDED", 0), ("_CROWDED", 3)])
@pytest.mark.parametrize("radius", [None, 4])
def test_what_is_held_and_the_dtype_make_no_difference(
    name: str, value: int, radius: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated, original = features("smooth", 0, 10, 5), features("smooth", 1, 10, 5)
    indices, similarities = nearest_positions(generated, original, (20, 21), radius=radius)
    monkeypatch.setattr(pixel, name, value)
    again, of_again = nearest_positions(generated, original, (20, 21), radius=radius)
    assert np.array_equal(again, indices)
    assert np.array_equal(of_again, similarities)


@settings(deadline=None, max_examples=50)
@given(
    kinds,
    kinds,
    st.integers(0, 999),
    st.sampled_from([4, 40]),
    sizes | st.sampled_from([(5, 5), (3, 3), (10, 10), (15, 5)]),
    st.sampled_from([0, 64]),
)
def test_bounds_are_above_and_what_is_reached_below(
    one: str, other: str, seed: int, width: int, size: Size, crowded: int
) -> None:
    generated, original = features(one, seed, width, 5), features(other, seed + 1, width, 5)
    upsampling = Upsampling.of((5, 5), size)
    wanted, candidates = (upsampled(unit_rows(side), upsampling) for side in (generated, original))
    norms, lengths = (np.linalg.norm(rows, axis=1) for rows in (wanted, candidates))
    similar_to_all = (wanted @ candidates.T) * np.where(lengths > ZERO_NORM, 1 / np.maximum(lengths, ZERO_NORM), 0.0)
    checked = 0

    def checking(self: Bounds, queries: npt.NDArray[np.int64]) -> Any:
        nonlocal checked
        left, pairs, reached = whole(self, queries)
        cells = self._cells
        similar = similar_to_all[queries]
        rounding = 1e-13 / np.maximum(lengths[lengths > ZERO_NORM].min(initial=1.0), ZERO_NORM) ** 2
        assert (reached <= similar.max(axis=1) + rounding).all()
        best = np.maximum.reduceat(similar[:, cells.pixels], cells.starts[:-1], axis=1)
        assert (pairs.bound >= best[pairs.query, pairs.cell] - rounding).all()
        # What is ruled out could not have won: a bound that is too low would take its own evidence away.
        ruled_out = np.ones(best.shape, dtype=np.bool_)
        ruled_out[pairs.query, pairs.cell] = False
        assert (best <= reached[:, None] + rounding)[ruled_out].all()
        checked += len(pairs.query)
        return left, pairs, reached

    with pytest.MonkeyPatch.context() as patch:
        whole = Bounds.open
        patch.setattr(Bounds, "open", checking)
        patch.setattr(pixel, "_CROWDED", crowded)
        nearest_positions(generated, original, size)
    assert checked or not (norms > ZERO_NORM).any()


def test_bounds_leave_few_cells() -> None:
    """The search is no brute force in disguise: of 225 cells a pixel compares only a few."""
    original, other = features("random", 0, 256, 16), features("random", 1, 256, 16)
    left, compared = pixel.cells_searched(original + 0.7 * other, original, (64, 64))
    assert 1 <= compared <= 1.5
    assert compared <= left < 4
    left, compared = pixel.cells_searched(other, original, (64, 64))
    assert 1 <= compared < 6
    assert compared <= left < 20
    constant = features("constant", 0, 256, 16)
    assert pixel.cells_searched(original, constant, (64, 64), np.arange(10)) == (1.0, 1.0)
    assert pixel.cells_searched(original, constant, (64, 64), np.arange(0)) == (0.0, 0.0)
    assert pixel.cells_searched(np.zeros_like(original), original, (64, 64)) == (0.0, 0.0)


@pytest.mark.parametrize("kind", ["nearly constant", "opposite"])
def test_where_nothing_is_ruled_out_not_all_is_held_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel, "_HELD", 1 << 12)
    original = features(kind, 0, 16, 6)
    generated = original + np.float32(1e-5) * features("random", 1, 16, 6)
    assert pixel.cells_searched(generated, original, (40, 40))[1] > 8, "the features are easier than meant"
    tracemalloc.start()
    nearest_positions(generated, original, (40, 40))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6  # all scores at once would be 20 MB


@settings(deadline=None, max_examples=60)
@given(kinds, kinds, st.integers(0, 999), st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), sizes)
def test_grids_of_different_sizes(
    one: str, other: str, seed: int, width: int, grid: int, theirs: int, size: Size
) -> None:
    agree(features(one, seed, width, grid), features(other, seed + 1, width, theirs), size)
    agree(features(one, seed, width, grid), features(other, seed + 1, width, theirs), size, radius=3)


@settings(deadline=None)
@given(kinds, kinds, st.integers(0, 999), st.integers(1, 24), st.integers(1, 7), sizes, st.integers(0, 27))
def test_only_the_window_is_searched(
    one: str, other: str, seed: int, width: int, grid: int, size: Size, radius: int
) -> None:
    agree(features(one, seed, width, grid), features(other, seed + 1, width, grid), size, radius)


@given(st.sampled_from(["duplicated", "constant"]), st.integers(0, 999), st.integers(0, 33))
@settings(deadline=None, max_examples=40)
def test_of_identical_pixels_the_first_in_the_window_wins(kind: str, seed: int, radius: int) -> None:
    generated, original = features("random", seed, 8, 4), features(kind, seed + 1, 8, 4)
    indices, _ = nearest_positions(generated, original, (32, 32), radius=radius)
    rows = positions_of(original, (32, 32))
    lines = np.stack(np.divmod(np.arange(32 * 32), 32))
    for query, index in enumerate(indices):
        inside = np.flatnonzero((np.abs(lines - lines[:, [query]]) <= radius).all(axis=0))
        assert index == inside[(np.abs(rows[inside] - rows[index]) < 1e-12).all(axis=1)][0]


@pytest.mark.parametrize("kind", KINDS)
def test_windows_from_one_pixel_to_everything(kind: str) -> None:
    generated, original = features("random", 0, 12, 5), features(kind, 1, 12, 5)
    size = (22, 31)
    alone, _ = nearest_positions(generated, original, size, radius=0)
    assert np.array_equal(alone, np.arange(22 * 31))
    queries = np.array([681, 0, 7, 7, 300])
    for radius in (1, 6, 31):
        indices, similarities = nearest_positions(generated, original, size, radius=radius)
        some, of_some = nearest_positions(generated, original, size, queries, radius)
        assert np.array_equal(some, indices[queries])
        assert np.allclose(of_some, similarities[queries], rtol=0, atol=1e-6)
    everything, best = nearest_positions(generated, original, size)
    assert np.array_equal(indices, everything)
    assert np.abs(similarities - best).max() < 1e-6


def test_without_a_norm_the_first_in_the_window_is_found() -> None:
    indices, similarities = nearest_positions(
        np.zeros((4, 3, 3), dtype=np.float32), features("random", 0, 4, 3), (9, 8), radius=2
    )
    expected = np.maximum(np.indices((9, 8)) - 2, 0)
    assert np.array_equal(indices, (expected[0] * 8 + expected[1]).reshape(-1))
    assert not similarities.any()


@pytest.mark.parametrize("noise", [1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (24, 24), (16, 16)])
def test_nearly_one_feature_everywhere(noise: float, size: Size) -> None:
    """Gram matrices next to singular, and cells whose only pixel is their centre: the bound has no room there."""
    generator = np.random.default_rng(0)
    base = generator.normal(size=(16, 1, 1))
    generated, original = ((base + noise * generator.normal(size=(16, 16, 16))).astype(np.float32) for _ in range(2))
    agree(generated, original, size)


def test_a_radius_of_any_size_is_everything() -> None:
    generated, original = features("random", 0, 6, 4), features("random", 1, 6, 4)
    for size in (None, (9, 7)):
        expected = nearest_positions(generated, original, size)[0]
        for radius in (16, 2**31 - 1, 2**63 - 1, 10**30):
            assert np.array_equal(nearest_positions(generated, original, size, radius=radius)[0], expected)
