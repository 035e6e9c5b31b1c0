"""Eq. 9, the certainty filter, and label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from g4seg_trt.errors import ConfigError, MaskError
from g4seg_trt.masks.labels import NO_BACKGROUND
from g4seg_trt.update import BackgroundRule, apply_residual, in_filter, label_map, mix

Floats = npt.NDArray[np.float32]

shares = st.floats(0, 1, width=32)
sides = st.integers(1, 24)
filters = st.none() | st.tuples(shares, shares).map(lambda pair: (min(pair), max(pair)))


def maps(height: Any = sides, width: Any = sides) -> st.SearchStrategy[Floats]:
    return st.tuples(height, width).flatmap(lambda size: arrays(np.float32, size, elements=shares))


@given(st.integers(1, 9), shares, st.integers(0, 999))
def test_mixing_is_eq_9(grid: int, beta: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    probability = generator.random((grid, grid), dtype=np.float32)
    indices = generator.integers(0, grid * grid, grid * grid)
    expected = beta * probability.reshape(-1) + (1 - beta) * probability.reshape(-1)[indices]
    assert np.abs((probability + mix(probability, indices, beta)).reshape(-1) - expected).max() < 1e-6


@given(maps(), maps(), st.integers(0, 999), shares, filters)
def test_refined_probabilities_are_probabilities(
    given_map: Floats, grid_map: Floats, seed: int, beta: float, certainty_filter: tuple[float, float] | None
) -> None:
    grid = min(grid_map.shape)
    square = grid_map[:grid, :grid]
    indices = np.random.default_rng(seed).integers(0, grid * grid, grid * grid)
    refined = apply_residual(given_map, given_map, mix(square, indices, beta), certainty_filter)
    assert refined.shape == given_map.shape
    assert refined.dtype == np.float32
    assert 0 <= refined.min() <= refined.max() <= 1


@given(maps(), st.integers(0, 999), filters)
def test_pixels_outside_the_filter_keep_the_given_value(
    given_map: Floats, seed: int, certainty_filter: tuple[float, float] | None
) -> None:
    generator = np.random.default_rng(seed)
    probability = generator.random(given_map.shape, dtype=np.float32)  # a softened map that has gone elsewhere
    residual = generator.random((4, 4), dtype=np.float32) * 2 - 1
    refined = apply_residual(given_map, probability, residual, certainty_filter)
    outside = ~in_filter(probability, certainty_filter)
    assert np.array_equal(refined[outside].view(np.uint32), given_map[outside].view(np.uint32))


@given(maps(), st.integers(1, 6), filters)
def test_beta_of_one_changes_nothing(
    given_map: Floats, grid: int, certainty_filter: tuple[float, float] | None
) -> None:
    generator = np.random.default_rng(grid)
    square = generator.random((grid, grid), dtype=np.float32)
    residual = mix(square, generator.integers(0, grid * grid, grid * grid), 1.0)
    assert not residual.any()
    assert np.array_equal(apply_residual(given_map, given_map, residual, certainty_filter), given_map)


def test_the_filter_is_closed() -> None:
    edges = np.array([[0.2, 0.6], [0.19999, 0.60001]], dtype=np.float32)
    assert in_filter(edges, (0.2, 0.6)).tolist() == [[True, True], [False, False]]
    assert in_filter(edges, (0.2, 0.2)).tolist() == [[True, False], [False, False]]
    assert in_filter(edges, None).all()


def test_the_residual_is_added_where_the_filter_lets_it() -> None:
    given_map = np.full((8, 8), 0.4, dtype=np.float32)
    given_map[0] = 0.1
    refined = apply_residual(given_map, given_map, np.full((2, 2), 0.25, dtype=np.float32), (0.2, 0.6))
    assert np.allclose(refined[1:], 0.65)
    assert np.array_equal(refined[0], given_map[0])


def test_inputs_are_not_changed() -> None:
    given_map, residual = np.full((5, 5), 0.5, dtype=np.float32), np.full((5, 5), 0.9, dtype=np.float32)
    apply_residual(given_map, given_map, residual, None)
    assert (given_map == 0.5).all()
    assert (residual == np.float32(0.9)).all()


# --- label maps


def test_one_class_is_zero_and_one() -> None:
    labels = label_map([np.array([[0.49, 0.5, 0.51, 0.0, 1.0]], dtype=np.float32)])
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 1, 1, 0, 1]]


def test_classes_are_numbered_in_the_order_given() -> None:
    stack = np.array([[[0.9, 0.2, 0.6, 0.1]], [[0.1, 0.8, 0.6, 0.2]], [[0.0, 0.7, 0.7, 0.3]]], dtype=np.float32)
    assert label_map(stack).tolist() == [[1, 2, 3, 0]]
    assert label_map(stack, "constant:0.25").tolist() == [[1, 2, 3, 3]]
    assert label_map(list(stack[::-1]), "constant:0.25").tolist() == [[3, 2, 1, 1]]


def test_of_equal_classes_the_first_wins() -> None:
    assert label_map(np.full((3, 1, 1), 0.7, dtype=np.float32)).tolist() == [[1]]


@given(st.floats(0.1, 10), arrays(np.float32, (2, 3, 5), elements=shares))
def test_power_rule(power: float, stack: Floats) -> None:
    best = stack.max(axis=0)
    labels = label_map(stack, f"power:{power}")
    background = (1 - best.astype(np.float64)) ** power
    clear = np.abs(background - best) > 1e-5
    assert np.array_equal((labels == 0)[clear], (background > best)[clear])


def test_power_of_two_has_its_boundary_at_0_382() -> None:
    assert label_map([np.array([[0.381, 0.383]], dtype=np.float32)], "power:2").tolist() == [[0, 1]]


def test_channel_rule() -> None:
    stack = np.array([[[0.3, 0.3, 0.0]], [[0.2, 0.1, 0.0]]], dtype=np.float32)
    background = np.array([[0.25, 0.35, 0.0]], dtype=np.float32)
    assert label_map(stack, "channel", background).tolist() == [[1, 0, 0]]
    with pytest.raises(ConfigError, match='"background"'):
        label_map(stack, "channel")


def with_ties(count: Any) -> st.SearchStrategy[Floats]:
    """[count,H,W] of so few values that ties, between classes and with the background, are the rule."""
    values = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    return st.tuples(count, sides, sides).flatmap(lambda shape: arrays(np.float32, shape, elements=values))


@settings(deadline=None)
@given(with_ties(st.integers(2, 5)))
def test_a_channel_is_the_first_of_an_argmax(stack: Floats) -> None:
    assert np.array_equal(label_map(stack[1:], "channel", stack[0]), stack.argmax(axis=0))


@settings(deadline=None)
@given(with_ties(st.integers(1, 4)), st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_a_power_is_the_first_of_an_argmax(stack: Floats, power: float) -> None:
    # Exact in float32 but for 3 ** 0.5 / 2, which is no tie.
    background = np.power(1 - stack.max(axis=0, keepdims=True).astype(np.float64), power)
    expected = np.concatenate((background, stack)).argmax(axis=0)
    assert np.array_equal(label_map(stack, f"power:{power}"), expected)


@settings(deadline=None)
@given(with_ties(st.integers(1, 4)), st.sampled_from([0.25, 0.5, 1.0]))
def test_a_constant_is_reached(stack: Floats, threshold: float) -> None:
    # As mmsegmentation: the argmax over the classes, 0 where the largest is below the threshold.
    expected = np.where(stack.max(axis=0) < threshold, 0, stack.argmax(axis=0) + 1)
    assert np.array_equal(label_map(stack, f"constant:{threshold}"), expected)


def test_ties_with_the_background_by_hand() -> None:
    half = np.full((1, 1), 0.5, dtype=np.float32)
    assert label_map([half], "constant:0.5").tolist() == [[1]]
    assert label_map([half], "power:1").tolist() == [[0]]
    assert label_map([half], "channel", half).tolist() == [[0]]
    assert label_map([half], "channel", np.nextafter(half, np.float32(0))).tolist() == [[1]]
    assert label_map([half * 2], "channel", half * 2).tolist() == [[0]]


@pytest.mark.parametrize("rule", ["constant:1e-30", "power:1", "channel"])
def test_an_empty_mask_is_background_under_every_rule(rule: str) -> None:
    empty = np.zeros((2, 2), dtype=np.float32)
    assert not label_map([empty, empty], rule, background=empty).any()


def test_more_classes_than_a_byte_counts() -> None:
    stack = np.zeros((300, 1, 2), dtype=np.float32)
    stack[299, 0, 0] = stack[255, 0, 1] = 1
    labels = label_map(stack)
    assert labels.dtype == np.uint16
    assert labels.tolist() == [[300, 256]]
    assert label_map(stack[:255]).dtype == np.uint8


@pytest.mark.parametrize(
    "text",
    [
        *("", "constant", "constant:", "constant:0", "constant:1.1", "constant:nan", "constant:x", "power:0"),
        *("power:-1", "power:inf", "channel:1", "Channel", "sweep", "constant:0.5:1"),
    ],
)
def test_rules_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="allowed: constant:T"):
        BackgroundRule.parse(text)


def test_rules_that_can_be_read() -> None:
    assert BackgroundRule.parse("constant:0.5") == BackgroundRule()
    assert BackgroundRule.parse("power:2") == BackgroundRule("power", 2.0)
    assert BackgroundRule.parse("channel").kind == "channel"
    for text in ("constant:0.5", "power:2", "channel"):
        assert str(BackgroundRule.parse(text)) == text
    with pytest.raises(ConfigError, match="constant:2"):
        BackgroundRule("constant", 2.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("constant:0.5", "constant:0.5"),
        ("constant:1", "constant:1"),
        ("constant:.15", "constant:0.15"),
        ("power:1", "power:1"),
        ("power:10", "power:10"),
        ("power:2.50", "power:2.5"),
        ("channel", "channel"),
        ("constant:0.1234567", "constant:0.1234567"),
        ("power:1e30", "power:1e+30"),
    ],
)
def test_rules_are_told_in_full(text: str, told: str) -> None:
    assert str(BackgroundRule.parse(text)) == told
    assert str(BackgroundRule("power", 1)) == "power:1", "a whole number too"


@given(st.floats(1e-300, 1) | st.floats(2.0**-100, 1, width=32))
def test_what_a_rule_is_told_as_is_the_rule(value: float) -> None:
    for rule in (BackgroundRule("constant", value), BackgroundRule("power", value)):
        if rule != NO_BACKGROUND:
            assert BackgroundRule.parse(str(rule)) == rule


def test_no_background_has_a_name() -> None:
    assert str(NO_BACKGROUND) == "none"
    assert str(BackgroundRule("power", NO_BACKGROUND.value)).startswith("power:1.17549435")


def test_maps_of_different_sizes_and_no_map() -> None:
    with pytest.raises(MaskError, match="differ in size"):
        label_map([np.zeros((2, 3), dtype=np.float32), np.zeros((3, 2), dtype=np.float32)])
    with pytest.raises(MaskError, match="differ in size"):
        label_map([np.zeros((2, 3), dtype=np.float32)], "channel", np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(MaskError, match="no class"):
        label_map([])
