"""The appearance-only baseline."""

from __future__ import annotations

import numpy as np
import pytest

from g4seg_bench.appearance import refine_by_colour


def test_a_two_coloured_picture_is_solved() -> None:
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    image[:, :30] = (200, 40, 30)
    image[:, 30:] = (30, 60, 190)
    coarse = np.full((40, 60), 0.05, dtype=np.float32)
    coarse[:, :20] = 0.9
    coarse[:, 20:42] = 0.4  # too small on the object, too large on the ground
    refined = refine_by_colour(image, coarse)
    assert refined.dtype == np.float32
    assert np.array_equal(refined >= 0.5, np.broadcast_to(np.arange(60) < 30, (40, 60)))
    assert not np.array_equal(coarse >= 0.5, refined >= 0.5)


def test_colours_that_say_nothing_change_nothing() -> None:
    image = np.full((200, 200, 3), 90, dtype=np.uint8)
    coarse = np.linspace(0.05, 0.95, 40_000, dtype=np.float32).reshape(200, 200)
    np.testing.assert_allclose(refine_by_colour(image, coarse), coarse, atol=0.01)


def test_the_result_is_a_probability() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (30, 25, 3), dtype=np.uint8)
    for coarse in (generator.random((30, 25), dtype=np.float32), np.eye(30, 25, dtype=np.float32)):
        refined = refine_by_colour(image, coarse)
        assert refined.shape == coarse.shape
        assert 0 <= refined.min() <= refined.max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 1.0])
def test_a_constant_mask_stays_a_probability(value: float) -> None:
    generator = np.random.default_rng(1)
    image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    refined = refine_by_colour(image, np.full((16, 16), value, dtype=np.float32))
    assert np.isfinite(refined).all()
    assert 0 <= refined.min() <= refined.max() <= 1
