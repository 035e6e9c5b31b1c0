"""What callers hand in: accepted kinds, and one typed line for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from g4seg_trt.errors import ImageError, MaskError
from g4seg_trt.inputs import check_image, check_masks


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5, 3), dtype=np.float32),
        np.zeros((4, 5), dtype=np.uint8),
        np.zeros((4, 5, 4), dtype=np.uint8),
        np.zeros((0, 5, 3), dtype=np.uint8),
        np.zeros((3, 4, 5), dtype=np.uint8),
        np.zeros((1, 4, 5, 3), dtype=np.uint8),
    ],
)
def test_images_of_another_kind(image: Any) -> None:
    with pytest.raises(ImageError, match=rf"{image.dtype} of shape \[.*expected uint8 \[height, width, 3\]"):
        check_image(image)


@pytest.mark.parametrize("image", [None, "cat.jpg", [[1, 2, 3]]])
def test_images_that_are_no_arrays(image: Any) -> None:
    with pytest.raises(ImageError, match=type(image).__name__):
        check_image(image)


def test_strided_images_are_fine() -> None:
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)[:, ::-1]
    checked = check_image(image)
    assert checked.flags.c_contiguous
    assert np.array_equal(checked, image)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.bool_, np.uint8, np.int64])
def test_masks_of_many_types(dtype: Any) -> None:
    checked = check_masks({"cat": np.array([[0, 1]], dtype=dtype)}, (1, 2))["cat"]
    assert checked.dtype == np.float32
    assert checked.tolist() == [[0.0, 1.0]]


def test_float32_masks_keep_their_bits_and_are_copied() -> None:
    mask = np.random.default_rng(0).random((7, 9), dtype=np.float32)
    checked = check_masks({"cat": mask}, (7, 9))["cat"]
    assert np.array_equal(checked.view(np.uint32), mask.view(np.uint32))
    assert not np.shares_memory(checked, mask)


def test_the_order_of_classes_is_kept() -> None:
    masks = {name: np.zeros((2, 2), dtype=np.float32) for name in ("zebra", "ant", "cat")}
    assert list(check_masks(masks, (2, 2))) == ["zebra", "ant", "cat"]


def test_rounding_just_outside_is_clipped() -> None:
    mask = np.array([[1 + 1e-7, -1e-7]])
    assert check_masks({"cat": mask}, (1, 2))["cat"].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[0.5, np.nan]]), "1 values that are NaN or infinite"),
        (np.array([[np.inf, -np.inf]]), "2 values that are NaN or infinite"),
        (np.array([[0.0, 1.01]]), "values from 0 to 1.01"),
        (np.array([[-0.1, 1.0]]), "values from -0.1 to 1"),
        (np.array([[0, 255]], dtype=np.uint8), "values from 0 to 255, not 0 to 1; divide 8-bit masks by 255"),
        (np.array([[0.5, 0.5, 0.5]]), "3x1 pixels, its image is 2x1"),
        (np.array([[0.5], [0.5]]), "1x2 pixels, its image is 2x1"),
        (np.array([[[0.5, 0.5]]]), r"shape \[1, 1, 2\]"),
        (np.array([[0.5 + 0j, 0.5]]), "complex128"),
        (np.array([["0", "1"]]), "dtype <U1"),
        ([[0.0, 1.0]], "a list, expected an array"),
    ],
)
def test_masks_that_are_no_probabilities(mask: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message) as caught:
        check_masks({"fine": np.zeros((1, 2)), "the cat": mask}, (1, 2))
    assert "'the cat'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_mask() -> None:
    with pytest.raises(MaskError, match="no mask given"):
        check_masks({}, (1, 2))
