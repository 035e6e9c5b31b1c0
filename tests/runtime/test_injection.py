"""The injected mask, its strength, and the noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4seg_trt.config import RefineConfig
from g4seg_trt.injection import binary_masks, emi_inputs, emi_weight, seeded_noise
from g4seg_trt.update import label_map


def test_the_mask_is_binary_at_the_latent_s_size() -> None:
    soft = np.linspace(0, 1, 32, dtype=np.float32)[None].repeat(16, axis=0)
    mask, weight = emi_inputs(soft, 8, RefineConfig(emi_self=0.25, emi_cross=2.0))
    assert mask.shape == (1, 8, 8)
    assert mask.dtype == weight.dtype == np.float32
    assert mask[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert weight.tolist() == [0.25, 2.0]
    assert np.array_equal(emi_weight(RefineConfig()), np.array([0.3, 1.0], dtype=np.float32))


def test_the_threshold_itself_belongs_to_the_mask() -> None:
    mask, _ = emi_inputs(np.array([[0.5, 0.49999]], dtype=np.float32), 2, RefineConfig())
    assert mask[0].tolist() == [[1, 0], [1, 0]]
    mask, _ = emi_inputs(np.array([[0.7, 0.71]], dtype=np.float32), 2, RefineConfig(mask_threshold=0.7))
    assert mask[0].tolist() == [[1, 1], [1, 1]]


def test_bool_masks_are_taken_as_they_are() -> None:
    mask, _ = emi_inputs(np.array([[True, False]]), 2, RefineConfig(mask_threshold=1.0))
    assert mask[0].tolist() == [[1, 0], [1, 0]]


@pytest.mark.parametrize("size", [(1, 1), (5000, 30), (3, 7)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    mask, _ = emi_inputs(np.ones(size, dtype=np.float32), 64, RefineConfig())
    assert mask.all()


@given(st.integers(0, 999), st.integers(1, 4), st.floats(1 / 64, 1, width=32))
def test_no_pixel_belongs_to_two_classes(seed: int, classes: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    masks = {str(index): generator.random((5, 6), dtype=np.float32) for index in range(classes)}
    binary = binary_masks(masks, threshold)
    assert list(binary) == list(masks)
    assert np.sum([binary[name] for name in binary], axis=0).max() <= 1
    for name, mask in masks.items():
        assert (mask[binary[name]] >= np.float32(threshold)).all()
    # The same decision as the label map of a constant background.
    labels = label_map(list(masks.values()), f"constant:{threshold}")
    assert all(np.array_equal(labels == label, binary[name]) for label, name in enumerate(masks, start=1))


def test_one_class_is_its_threshold() -> None:
    mask = np.array([[0.2, 0.5, 0.9]], dtype=np.float32)
    assert binary_masks({"cat": mask}, 0.5)["cat"].tolist() == [[False, True, True]]


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
