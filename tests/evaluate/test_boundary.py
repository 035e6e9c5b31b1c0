"""Boundary accuracy and boundary F against definitions worked out pixel by pixel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.evaluate.boundary import (
    boundary_accuracy,
    boundary_f,
    boundary_pixels,
    boundary_radii,
    dilate,
    euclidean_disc,
    opencv_disc,
)

Bools = npt.NDArray[np.bool_]


def random_mask(size: tuple[int, int], seed: int, share: float) -> Bools:
    return np.random.default_rng(seed).random(size) < share


SIZES = st.tuples(st.integers(1, 11), st.integers(1, 11))
SEEDS = st.integers(0, 2**32)
SHARES = st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
MASKS = st.tuples(SIZES, SEEDS, SHARES, SHARES).map(
    lambda given: (
        random_mask(given[0], given[1], given[2]),
        random_mask(given[0], given[1] + 1, given[3]),
        random_mask(given[0], given[1] + 2, 0.8),
    )
)


def offsets_in(kernel: list[str]) -> list[tuple[int, int]]:
    """The offsets of a kernel drawn as rows of # and dots."""
    middle = len(kernel) // 2
    return [(y - middle, x - middle) for y, row in enumerate(kernel) for x, mark in enumerate(row) if mark == "#"]


# What cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 r + 1, 2 r + 1)) gives for r of 1, 2 and 3.
OPENCV = {
    1: offsets_in([".#.", "###", ".#."]),
    2: offsets_in(["..#..", "#####", "#####", "#####", "..#.."]),
    3: offsets_in(["...#...", ".#####.", "#######", "#######", "#######", ".#####.", "...#..."]),
}


def any_at(region: Bools, offsets: list[tuple[int, int]], y: int, x: int) -> bool:
    height, width = region.shape
    return any(region[y + dy, x + dx] for dy, dx in offsets if 0 <= y + dy < height and 0 <= x + dx < width)


def slow_accuracy(region: Bools, truth: Bools, valid: Bools) -> float | None:
    height, width = truth.shape
    largest = (width + height) / 300
    shares = []
    for step in range(5):
        radius = 1 + int((largest - 1) / 5 * step)
        near = [
            (y, x)
            for y in range(height)
            for x in range(width)
            if valid[y, x]
            and any_at(truth & valid, OPENCV[radius], y, x)
            and any_at(~(truth & valid), OPENCV[radius], y, x)
        ]
        if not near:
            return None
        shares.append(sum(bool(region[place] == truth[place]) for place in near) / len(near))
    return sum(shares) / 5


def slow_edges(region: Bools) -> set[tuple[int, int]]:
    height, width = region.shape
    return {
        (y, x)
        for y in range(height)
        for x in range(width)
        for dy, dx in ((0, 1), (1, 0), (1, 1))
        if y + dy < height and x + dx < width and region[y, x] != region[y + dy, x + dx]
    }


def slow_f(region: Bools, truth: Bools, valid: Bools, tolerance: float) -> float | None:
    radius = math.ceil(tolerance * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    predicted, true = slow_edges(region & valid), slow_edges(truth & valid)
    if not true:
        return None
    if not predicted:
        return 0.0

    def matched(ones: set[tuple[int, int]], others: set[tuple[int, int]]) -> float:
        found = sum(any((a - c) ** 2 + (b - d) ** 2 <= radius**2 for c, d in others) for a, b in ones)
        return found / len(ones)

    precision, recall = matched(predicted, true), matched(true, predicted)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(deadline=None, max_examples=80)
@given(MASKS, st.booleans())
def test_boundary_accuracy_pixel_by_pixel(masks: tuple[Bools, Bools, Bools], ignore: bool) -> None:
    region, truth, valid = masks
    valid = valid if ignore else np.ones_like(valid)
    assert boundary_accuracy(region, truth, valid) == pytest.approx(slow_accuracy(region, truth, valid))


@settings(deadline=None, max_examples=80)
@given(MASKS, st.sampled_from([0.0075, 0.1, 0.35]), st.booleans())
def test_boundary_f_pixel_by_pixel(masks: tuple[Bools, Bools, Bools], tolerance: float, ignore: bool) -> None:
    region, truth, valid = masks
    valid = valid if ignore else np.ones_like(valid)
    assert boundary_f(region, truth, valid, tolerance) == pytest.approx(slow_f(region, truth, valid, tolerance))


@pytest.mark.parametrize(("height", "width"), [(700, 5), (3, 720), (2, 420)])
def test_wider_images_take_wider_discs(height: int, width: int) -> None:
    generator = np.random.default_rng(height)
    truth = np.zeros((height, width), dtype=np.bool_)
    truth[height // 3 : -(-height // 2), width // 4 : width - 1] = True
    region = truth ^ (generator.random(truth.shape) < 0.2)
    valid = generator.random(truth.shape) < 0.9
    assert max(boundary_radii(truth.shape)) == (1 if width == 420 else 2)
    assert boundary_accuracy(region, truth, valid) == pytest.approx(slow_accuracy(region, truth, valid))


@pytest.mark.parametrize(
    ("size", "radii"),
    [
        ((375, 500), (1, 1, 1, 2, 2)),
        ((20, 30), (1, 1, 1, 1, 1)),
        ((1, 1), (1, 1, 1, 1, 1)),
        ((1440, 2560), (1, 3, 5, 8, 10)),
    ],
)
def test_the_five_radii(size: tuple[int, int], radii: tuple[int, ...]) -> None:
    assert boundary_radii(size) == radii


def test_discs() -> None:
    for radius, offsets in OPENCV.items():
        single = np.zeros((9, 9), dtype=np.bool_)
        single[4, 4] = True
        grown = {(int(y) - 4, int(x) - 4) for y, x in np.argwhere(dilate(single, opencv_disc(radius)))}
        assert grown == set(offsets)
    for radius in range(9):
        single = np.zeros((21, 21), dtype=np.bool_)
        single[10, 10] = True
        rows, columns = np.mgrid[:21, :21] - 10
        assert (dilate(single, euclidean_disc(radius)) == (rows**2 + columns**2 <= radius**2)).all()


@settings(deadline=None, max_examples=50)
@given(SIZES, SEEDS, SHARES, st.integers(0, 12))
def test_dilation_pixel_by_pixel(size: tuple[int, int], seed: int, share: float, radius: int) -> None:
    region = random_mask(size, seed, share)
    disc = [(dy, dx) for dy in range(-12, 13) for dx in range(-12, 13) if dy**2 + dx**2 <= radius**2]
    expected = [[any_at(region, disc, y, x) for x in range(region.shape[1])] for y in range(region.shape[0])]
    assert dilate(region, euclidean_disc(radius)).tolist() == expected


def test_a_square_moved_by_one_pixel() -> None:
    valid = np.ones((40, 50), dtype=np.bool_)
    truth = np.zeros_like(valid)
    truth[10:20, 10:20] = True
    assert boundary_accuracy(truth, truth, valid) == 1.0
    assert boundary_f(truth, truth, valid) == 1.0
    moved = np.roll(truth, 1, axis=1)
    # Within a cross of the true boundary lie 36 pixels inside and 40 outside; 10 of each are wrong.
    assert boundary_accuracy(moved, truth, valid) == pytest.approx(1 - 20 / 76)
    assert boundary_f(moved, truth, valid) == 1.0
    far = np.roll(truth, 20, axis=1)
    assert boundary_f(far, truth, valid) == 0.0
    assert boundary_f(np.zeros_like(truth), truth, valid) == 0.0


def test_no_boundary_in_the_ground_truth() -> None:
    valid = np.ones((6, 7), dtype=np.bool_)
    some = np.zeros_like(valid)
    some[2:4, 2:5] = True
    for truth in (np.zeros_like(valid), np.ones_like(valid)):
        assert boundary_accuracy(some, truth, valid) is None
        assert boundary_f(some, truth, valid) is None
    assert boundary_accuracy(some, some, ~valid) is None
    assert boundary_f(some, some, ~valid) is None


def test_a_rim_that_does_not_count() -> None:
    truth = np.zeros((20, 20), dtype=np.bool_)
    truth[5:15, 5:15] = True
    around = dilate(truth, euclidean_disc(3))
    valid = ~(around & ~truth)
    # A prediction that ends anywhere in the rim is right; one that stops short of it is not.
    in_rim = dilate(truth, euclidean_disc(2))
    assert boundary_accuracy(in_rim, truth, valid) == 1.0
    assert boundary_f(in_rim, truth, valid) == 1.0
    short: Any = np.zeros_like(truth)
    short[8:12, 8:12] = True
    assert boundary_accuracy(short, truth, valid) == 0.0
    assert boundary_f(short, truth, valid) == 0.0


def test_edges_of_the_image_are_no_boundary() -> None:
    left = np.zeros((8, 9), dtype=np.bool_)
    left[:, :4] = True
    assert np.argwhere(boundary_pixels(left)).tolist() == [[y, 3] for y in range(8)]
