"""The injected mask, its strength, and the noise."""

from __future__ import annotations

import numpy as np
import pytest

from g4seg_trt.config import RefineConfig
from g4seg_trt.injection import emi_weight, injected_mask, seeded_noise


def test_the_mask_is_brought_to_the_latent_s_size() -> None:
    binary = np.linspace(0, 1, 32, dtype=np.float32)[None].repeat(16, axis=0) >= 0.5
    mask = injected_mask(binary, 8)
    assert mask.shape == (1, 8, 8)
    assert mask.dtype == np.float32
    assert (mask == [0, 0, 0, 0, 1, 1, 1, 1]).all()


@pytest.mark.parametrize("size", [(1, 1), (5000, 30), (3, 7)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    assert injected_mask(np.ones(size, dtype=np.bool_), 64).all()


def test_the_strength_is_self_then_cross() -> None:
    assert emi_weight(RefineConfig(emi_self=0.25, emi_cross=2.0)).tolist() == [0.25, 2.0]
    assert np.array_equal(emi_weight(RefineConfig()), np.array([0.3, 1.0], dtype=np.float32))


def test_noise_is_seeded_and_normal() -> None:
    noise = seeded_noise(3, (4, 64, 64))
    assert noise.dtype == np.float32
    assert noise.shape == (4, 64, 64)
    assert np.array_equal(noise, seeded_noise(3, (4, 64, 64)))
    assert not np.array_equal(noise, seeded_noise(4, (4, 64, 64)))
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.03


def test_noise_is_the_same_in_every_release() -> None:
    first = seeded_noise(0, (2, 2, 2)).reshape(-1)[:3]
    pinned = np.array([1.117622, -1.387125, -0.426572], dtype=np.float32)
    assert np.abs(first - pinned).max() < 1e-5
