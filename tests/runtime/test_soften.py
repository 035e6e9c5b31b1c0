"""Softening of two-valued masks."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from g4seg_trt.soften import soften, softening, unscored

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def blurred_by_definition(values: Array, sigma: float) -> Array:
    """Every pixel as the weighted mean of its mirrored neighbourhood, in float64."""
    reach = int(np.ceil(4 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        widths = [(reach, reach) if axis == one else (0, 0) for one in (0, 1)]
        padded = np.pad(values.astype(np.float64), widths, mode="symmetric")
        values = np.apply_along_axis(lambda line: np.convolve(line, weights, mode="valid"), axis, padded)
    return values


@pytest.mark.parametrize("size", [(40, 60), (61, 17), (1, 30), (300, 5), (2, 1), (513, 700)])
@pytest.mark.parametrize("share", [0.005, 0.02, 0.25])
def test_it_is_a_gaussian_with_mirrored_borders(size: tuple[int, int], share: float) -> None:
    mask = (np.random.default_rng(0).random(size) > 0.6).astype(np.float32)
    expected = blurred_by_definition(mask, share * max(size))
    assert np.abs(soften(mask, share) - expected).max() < 1e-5


@given(
    sizes.flatmap(lambda size: arrays(np.float32, size, elements=st.floats(0, 1, width=32))),
    st.floats(0, 0.25),
)
def test_bounds(mask: Floats, share: float) -> None:
    softened = soften(mask, share)
    assert softened.shape == mask.shape
    assert softened.dtype == np.float32
    assert mask.min() <= softened.min() <= softened.max() <= mask.max()


@given(sizes, st.integers(0, 99))
def test_the_mean_is_kept(size: tuple[int, int], seed: int) -> None:
    mask = (np.random.default_rng(seed).random(size) > 0.5).astype(np.float32)
    assert abs(float(soften(mask, 0.02).mean()) - float(mask.mean())) < 1e-5


def test_two_valued_masks_are_softened_and_others_are_not() -> None:
    hard = np.array([[0, 1, 1]], dtype=np.float32)
    soft = np.array([[0, 1, 0.999]], dtype=np.float32)
    assert softening(hard, None) == 0.02
    assert softening(soft, None) == 0.0
    assert softening(soft, 0.1) == 0.1
    assert softening(hard, 0.0) == 0.0


@pytest.mark.parametrize(
    ("values", "score"),
    [
        ([0, 0.9, 0.9], 0.9),
        ([0.9, 0], 0.9),
        ([0, 1e-30, 0], 1e-30),
        ([0, 1, 0], 1),
        ([0, 0.9, 0.8], None),
        ([0, 1, 0.9], None),
        ([0.1, 0.9, 0.9], None),
        ([0.9, 0.9], None),
        ([0, 0], None),
    ],
)
def test_a_mask_with_a_score_is_that_of_0_and_1_times_the_score(values: list[float], score: float | None) -> None:
    mask = np.array([values], dtype=np.float32)
    shape, found = unscored(mask, None)
    asked, same = unscored(mask, 0.1)
    assert np.array_equal(asked, shape)
    assert same == found
    untouched, one = unscored(mask, 0.0)
    assert untouched is mask, "no softening: the filter sees it as it is"
    assert one == 1
    assert np.array_equal(shape * np.float32(found), mask)
    if score is None:
        assert found == 1
        assert shape is mask
    else:
        assert found == np.float32(score)
        assert np.array_equal(shape, (mask > 0).astype(np.float32))
        assert softening(shape, None) == 0.02


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_constant_masks_are_not_softened(value: float) -> None:
    assert softening(np.full((3, 3), value, dtype=np.float32), 0.1) == 0.0
    assert softening(np.full((1, 1), value, dtype=np.float32), None) == 0.0


def test_it_crosses_the_filter_only_near_the_edge() -> None:
    mask = np.zeros((200, 200), dtype=np.float32)
    mask[:, 100:] = 1
    softened = soften(mask, 0.02)  # sigma of 4 pixels
    assert (softened[:, :84] == 0).all()
    assert (softened[:, 116:] >= 1 - 1e-6).all()  # weights that add up to 1 but for rounding
    assert np.abs(softened[:, 99:101].mean() - 0.5) < 1e-6


@pytest.mark.slow
def test_large_masks_take_seconds_not_minutes() -> None:
    mask = np.zeros((5000, 5000), dtype=np.float32)
    mask[1000:4000, 1000:4000] = 1
    start = time.perf_counter()
    soften(mask, 0.02)
    assert time.perf_counter() - start < 30
