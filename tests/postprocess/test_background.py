"""The way from a rule to a background channel, and back to probabilities under that rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.masks.labels import NO_BACKGROUND
from g4seg_trt.postprocess.background import background_channel, under_rule
from g4seg_trt.update import BackgroundRule, label_map

Floats = npt.NDArray[np.float32]

CLOSE = np.array([0, 1e-30, 0.25, np.nextafter(np.float32(0.25), np.float32(1)), 0.5, 1], dtype=np.float32)
"""Few values, so that ties and neighbouring numbers meet."""

rules = st.one_of(
    st.floats(0.001, 1.0).map(lambda value: BackgroundRule("constant", value)),
    st.floats(0.001, 1000.0).map(lambda value: BackgroundRule("power", value)),
    st.just(BackgroundRule("channel", 0.0)),
)
unhurried = settings(deadline=None)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Floats, BackgroundRule, Floats | None]:
    """A stack [K+1,H,W] in [0,1], a rule, and a background for the rule "channel"."""
    shape = draw(st.tuples(st.integers(2, 5), st.integers(1, 6), st.integers(1, 37)))
    noise = np.random.default_rng(draw(st.integers(0, 9999)))
    close, rule = draw(st.booleans()), draw(rules)
    stack = noise.choice(CLOSE, shape) if close else noise.random(shape, dtype=np.float32)
    return stack, rule, noise.choice(stack, axis=0) if rule.kind == "channel" else None


@unhurried
@given(cases())
def test_the_label_map_is_the_argmax(case: tuple[Floats, BackgroundRule, Floats | None]) -> None:
    stack, rule, background = case
    result = under_rule(stack[1:], stack[0], rule, background)
    assert result.dtype == np.float32
    assert result.shape == stack[1:].shape
    assert result.min() >= 0
    assert result.max() <= 1
    expected = stack.argmax(axis=0)
    if background is not None:
        certain = background == 1  # nothing is above it
        expected[certain] = 0
        assert (result[:, certain] < 1).all()
    assert (label_map(result, rule, background) == expected).all()


@unhurried
@given(cases())
def test_where_a_data_set_has_no_background_the_likeliest_class_has_every_pixel(case: tuple[Floats, Any, Any]) -> None:
    stack, _, _ = case
    classes = stack[1:]
    result = under_rule(classes, stack[0], NO_BACKGROUND, None)
    assert np.array_equal(result, classes)
    assert result is not classes
    assert (label_map(result, NO_BACKGROUND) == np.where(classes.any(axis=0), classes.argmax(axis=0) + 1, 0)).all()


@pytest.mark.parametrize(
    "text", ["constant:1", "constant:1e-30", "power:1e-30", "power:1e30", "power:0.001", "power:4", "power:32"]
)
def test_extreme_rules(text: str) -> None:
    stack = np.random.default_rng(0).random((3, 40, 50), dtype=np.float32)
    rule = BackgroundRule.parse(text)
    assert (label_map(under_rule(stack[1:], stack[0], rule, None), rule) == stack.argmax(axis=0)).all()


def test_a_narrow_victory_where_no_background_was_expected() -> None:
    """The winner gets the least number above 0 there is, and a class behind it must not be rounded up to it."""
    step = 2.0**-25  # neighbouring numbers, of which the sum rounds up: the share is a half
    stack = np.array([0.25 + step, 0.2, 0.25 + 2 * step], dtype=np.float32).reshape(3, 1, 1)
    rule, nothing = BackgroundRule("channel", 0.0), np.zeros((1, 1), dtype=np.float32)
    result = under_rule(stack[1:], stack[0], rule, nothing)
    assert 0 < result[1, 0, 0] < 1e-6
    assert label_map(result, rule, nothing) == 2


@pytest.mark.parametrize("text", ["constant:0.5", "power:1"])
def test_with_the_boundary_at_a_half_one_class_keeps_its_posterior(text: str) -> None:
    posterior = np.random.default_rng(1).random((1, 31, 17), dtype=np.float32)
    result = under_rule(posterior, 1 - posterior[0], BackgroundRule.parse(text), None)
    np.testing.assert_allclose(result, posterior, atol=2e-6)


def test_the_share_is_stretched_to_the_boundary_and_the_others_keep_their_ratio() -> None:
    classes = np.array([0.0, 0.1, 0.3, 0.6, 0.0], dtype=np.float32).reshape(1, 1, 5)
    both: Floats = np.concatenate((classes, classes / np.float32(4)))
    rest = np.array([[1.0, 0.3, 0.1, 0.0, 0.0]], dtype=np.float32)
    # Shares 0, 1/4, 3/4, 1; and nothing at all is background.
    result = under_rule(both, rest, BackgroundRule("constant", 0.2), None)
    np.testing.assert_allclose(result[0, 0], [0, 0.1, 0.6, 1, 0], atol=1e-6)
    np.testing.assert_allclose(result[1], result[0] / 4, atol=1e-6)


@unhurried
@given(cases())
def test_order_is_kept(case: tuple[Floats, BackgroundRule, Floats | None]) -> None:
    stack, rule, background = case
    result = under_rule(stack[1:], stack[0], rule, background)
    sorted_by_input = np.take_along_axis(result, stack[1:].argsort(axis=0, kind="stable"), axis=0)
    assert (np.diff(sorted_by_input, axis=0) >= -1e-7).all()


@unhurried
@given(cases())
def test_the_background_channel_meets_the_classes_where_the_rule_does(case: tuple[Floats, Any, Any]) -> None:
    stack, rule, background = case
    probabilities = stack[1:]
    channel = background_channel(probabilities, rule, background)
    assert channel.dtype == np.float32
    assert channel.min() >= 0
    assert channel.max() <= 1
    largest = probabilities.max(axis=0)
    clear = np.abs(largest - channel) > 1e-5
    foreground = label_map(probabilities, rule, background) > 0
    assert (foreground == (largest > channel))[clear & (largest > 0)].all()


def test_the_background_channel_by_hand() -> None:
    maps = np.array([[[0.0, 0.2, 0.6, 1.0]], [[0.0, 0.1, 0.2, 0.3]]], dtype=np.float32)
    given_map = np.array([[0.1, 0.2, 0.3, 0.4]], dtype=np.float32)
    half = background_channel(maps, BackgroundRule("constant", 0.5), None)
    np.testing.assert_allclose(half, [[1, 0.8, 0.4, 0]], atol=1e-7)
    fifth = background_channel(maps, BackgroundRule("constant", 0.2), None)
    np.testing.assert_allclose(fifth, [[0.25, 0.2, 0.1, 0]], atol=1e-7)
    whole = background_channel(maps, BackgroundRule("constant", 1.0), None)
    assert whole.tolist() == [[1, 1, 1, 0]]
    squared = background_channel(maps, BackgroundRule("power", 2.0), None)
    np.testing.assert_allclose(squared, [[1, 0.64, 0.16, 0]], atol=1e-7)
    assert background_channel(maps, BackgroundRule("channel", 0.0), given_map) is given_map
