"""Mean IoU over a set: against torchmetrics, by hand, and what must not change it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.errors import ClassNameError, ConfigError, MaskError
from g4seg_trt.evaluate import confusion
from g4seg_trt.evaluate.confusion import (
    LabelSpace,
    class_accuracies,
    class_ious,
    counted_classes,
    mean_iou,
    pixel_accuracy,
)

Labels = npt.NDArray[Any]
MakeTable = Callable[..., ClassTable]

VALUES = np.array([0, 1, 2, 3, 4, 255], dtype=np.uint8)
FIVE = LabelSpace.of(ClassTable("five", tuple(ClassEntry(n, f"c{n}", f"c{n}") for n in range(1, 5)), True))
PAIRS = st.lists(
    st.builds(
        lambda size, seed: tuple(np.random.default_rng(seed).choice(VALUES, (2, *size))),
        st.tuples(st.integers(1, 7), st.integers(1, 7)),
        st.integers(0, 2**32),
    ),
    min_size=1,
    max_size=4,
)


def by_pixels(space: LabelSpace, labels: Labels, truth: Labels) -> Labels:
    """The matrix, one pixel at a time."""
    count = len(space.ids)
    matrix = np.zeros((count, count + 1), dtype=np.int64)
    for label, true in zip(labels.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if true in space.ids:
            matrix[space.ids.index(true), space.ids.index(label) if label in space.ids else count] += 1
    return matrix


def test_by_hand(make_table: MakeTable) -> None:
    space = LabelSpace.of(make_table([1, 2, 3]))
    truth = np.array([[0, 0, 1, 1], [0, 255, 1, 255], [0, 0, 2, 2]], dtype=np.uint8)
    labels = np.array([[0, 1, 1, 1], [0, 1, 255, 2], [0, 0, 0, 0]], dtype=np.uint8)
    matrix = space.count(labels, truth)
    assert matrix.tolist() == [[4, 1, 0, 0, 0], [0, 2, 0, 0, 1], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    ious = class_ious(matrix)
    assert ious[:3].tolist() == [4 / 7, 2 / 4, 0.0]
    assert np.isnan(ious[3])
    assert class_accuracies(matrix)[:3].tolist() == [4 / 5, 2 / 3, 0.0]
    assert pixel_accuracy(matrix) == 6 / 10
    assert mean_iou(matrix, "present") == pytest.approx((4 / 7 + 1 / 2) / 3)
    assert mean_iou(matrix, "ground-truth") == mean_iou(matrix, "present")
    assert mean_iou(matrix, "all") == pytest.approx((4 / 7 + 1 / 2) / 4)


def test_a_class_that_is_only_predicted_tells_the_means_apart(make_table: MakeTable) -> None:
    space = LabelSpace.of(make_table([1, 2, 3]))
    matrix = space.count(np.array([[0, 1, 2, 2]], np.uint8), np.array([[0, 1, 1, 0]], np.uint8))
    assert counted_classes(matrix, "present").tolist() == [True, True, True, False]
    assert counted_classes(matrix, "ground-truth").tolist() == [True, True, False, False]
    assert mean_iou(matrix, "present") == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert mean_iou(matrix, "ground-truth") == pytest.approx(1 / 2)
    assert mean_iou(matrix, "all") == pytest.approx(1 / 4)
    with pytest.raises(ConfigError, match=r"'some', allowed: present, ground-truth, all"):
        mean_iou(matrix, "some")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("classes", [2, 5, 21])
def test_torchmetrics_agrees(classes: int, dtype: Any) -> None:
    import torch
    from torchmetrics import JaccardIndex

    generator = np.random.default_rng(classes)
    table = ClassTable("t", tuple(ClassEntry(n, f"c{n}", f"c{n}") for n in range(1, classes)), True)
    space = LabelSpace.of(table)
    options: dict[str, Any] = {"task": "multiclass", "num_classes": classes, "ignore_index": 255}
    each, macro = JaccardIndex(average="none", **options), JaccardIndex(average="macro", **options)
    total = np.zeros((classes, classes + 1), dtype=np.int64)
    for height, width in ((1, 1), (7, 5), (33, 20), (60, 61)):
        # The last class is absent when there are many.
        truth = generator.integers(0, max(2, classes - 1), (height, width)).astype(dtype)
        labels = np.where(generator.random((height, width)) < 0.6, truth, generator.integers(0, max(2, classes - 1)))
        truth[generator.random((height, width)) < 0.1] = 255
        total += space.count(np.where(labels == 255, 0, labels).astype(dtype), truth)
        for metric in (each, macro):
            metric.update(
                torch.tensor(np.where(labels == 255, 0, labels).astype(np.int64)), torch.tensor(truth.astype(np.int64))
            )
    ours = class_ious(total)
    np.testing.assert_allclose(np.nan_to_num(ours), each.compute().numpy(), atol=1e-6)
    assert mean_iou(total, "present") == pytest.approx(float(macro.compute()), abs=1e-6)
    assert np.isnan(ours).any() == (classes > 2)


@settings(deadline=None)
@given(PAIRS, st.booleans())
def test_every_pixel_counts_once(pairs: list[tuple[Labels, Labels]], background: bool) -> None:
    table = ClassTable("t", tuple(ClassEntry(n, f"c{n}", f"c{n}") for n in range(1, 5)), background)
    space = LabelSpace.of(table)
    for labels, truth in pairs:
        expected = by_pixels(space, labels, truth)
        assert (space.count(labels, truth) == expected).all()
        assert (space.count(labels.astype(np.uint16), truth) == expected).all()
        assert space.counted(truth).sum() == expected.sum()


@settings(deadline=None)
@given(PAIRS, st.permutations(range(1, 5)))
def test_renaming_the_classes_renames_the_figures(pairs: list[tuple[Labels, Labels]], order: list[int]) -> None:
    new = np.arange(256, dtype=np.uint8)
    new[1:5] = order
    before = sum(FIVE.count(labels, truth) for labels, truth in pairs)
    after = sum(FIVE.count(new[labels], new[truth]) for labels, truth in pairs)
    places = [0, *order]
    np.testing.assert_array_equal(class_ious(np.asarray(after))[places], class_ious(np.asarray(before)))
    for over in ("present", "ground-truth", "all"):
        assert mean_iou(np.asarray(after), over) == pytest.approx(mean_iou(np.asarray(before), over), nan_ok=True)


def test_a_large_picture_is_counted_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    labels, truth = generator.integers(0, 5, (2, 37, 41)).astype(np.uint8)
    whole = by_pixels(FIVE, labels, truth)
    assert (FIVE.count(labels, truth) == whole).all()
    monkeypatch.setattr(confusion, "_SLAB", 100)
    assert (FIVE.count(labels, truth) == whole).all()
    assert (FIVE.count(labels[:, ::2], truth[:, ::2]) == by_pixels(FIVE, labels[:, ::2], truth[:, ::2])).all()


def test_nothing_that_counts(make_table: MakeTable) -> None:
    space = LabelSpace.of(make_table([1]))
    ignored = np.full((3, 4), 255, dtype=np.uint8)
    matrix = space.count(np.ones((3, 4), np.uint8), ignored)
    assert not matrix.any()
    assert pixel_accuracy(matrix) is None
    assert mean_iou(matrix, "present") is None
    assert mean_iou(matrix, "ground-truth") is None
    assert mean_iou(matrix, "all") == 0.0


def test_without_background_0_does_not_count(make_table: MakeTable) -> None:
    space = LabelSpace.of(make_table([1, 2], background=False))
    assert space.ids == (1, 2)
    matrix = space.count(np.array([[0, 1, 2, 0]], np.uint8), np.array([[1, 1, 0, 255]], np.uint8))
    assert matrix.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert mean_iou(matrix, "present") == 0.5


def test_65535_is_no_label_in_16_bits(make_table: MakeTable) -> None:
    space = LabelSpace.of(make_table([1, 300]))
    truth = np.array([[0, 1, 300, 65535, 255]], dtype=np.uint16)
    assert space.counted(truth).tolist() == [[True, True, True, False, False]]
    labels = np.array([[65535, 1, 255, 1, 1]], dtype=np.uint16)
    assert space.count(labels, truth).tolist() == [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_255_is_a_class_of_16_bits_alone(make_table: MakeTable) -> None:
    space = LabelSpace.of(make_table([1, 255, 300]))
    wide = np.array([[0, 1, 255, 300, 65535]], dtype=np.uint16)
    assert space.counted(wide).tolist() == [[True, True, True, True, False]]
    assert np.diagonal(space.count(wide, wide)).tolist() == [1, 1, 1, 1]
    assert space.region(wide, 2).tolist() == [[False, False, True, False, False]]
    narrow = np.array([[0, 1, 255, 255, 1]], dtype=np.uint8)
    assert space.counted(narrow).tolist() == [[True, True, False, False, True]]
    assert not space.region(narrow, 2).any()
    assert not space.region(narrow, 3).any()
    # Pixels of either kind beside each other: what 8 bits call 255 has no label.
    assert space.count(narrow, wide).tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert space.count(wide, narrow).tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    with pytest.raises(MaskError, match=r"the value 2, made has 0 to 1, 255, 300, and 65535 for no label"):
        space.count(np.full_like(wide, 2), wide)
    with pytest.raises(MaskError, match=r"the value 2, made has 0 to 1, 255, 300, and 255 for no label"):
        space.count(np.full_like(narrow, 2), wide)
    with pytest.raises(MaskError, match=r"the value 2, made has 0 to 1, 300, and 255 or 65535 for pixels that do not"):
        LabelSpace.of(make_table([1, 300])).count(wide, np.full_like(wide, 2))


def test_ids_above_255_and_with_gaps(make_table: MakeTable) -> None:
    space = LabelSpace.of(make_table([700, 3, 256]))
    assert space.ids == (0, 3, 256, 700)
    truth = np.array([[0, 3, 256, 700, 255]], dtype=np.uint16)
    assert np.diagonal(space.count(truth, truth)).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("labels", "truth", "message"),
    [
        ([[0, 9]], [[0, 1]], r"the prediction has the value 9, made has 0 to 2, 5, and 255 for no label"),
        ([[0, 1]], [[0, 3]], r"the ground truth has the value 3, made has 0 to 2, 5, and 255 for pixels that do not"),
        ([[0, 254]], [[0, 255]], r"the prediction has the value 254"),
        ([[0, 1], [0, 1]], [[0, 1]], r"the prediction is 2x2 pixels, its ground truth is 2x1: they must"),
    ],
)
def test_what_does_not_fit_is_named(labels: Any, truth: Any, message: str, make_table: MakeTable) -> None:
    space = LabelSpace.of(make_table([1, 2, 5]))
    with pytest.raises(MaskError, match=message):
        space.count(np.array(labels, np.uint8), np.array(truth, np.uint8))


@pytest.mark.parametrize("array", [np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2), np.float32), np.zeros(4, np.uint8)])
def test_only_label_pictures_are_counted(array: Any) -> None:
    with pytest.raises(MaskError, match=r"expected uint8 or uint16 \[height, width\]"):
        FIVE.count(array, np.zeros((2, 2), np.uint8))


def test_an_empty_picture_counts_for_nothing() -> None:
    assert not FIVE.count(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)).any()


@pytest.mark.parametrize("number", [0, 65535, 65536, -1])
def test_an_id_that_no_picture_can_hold_is_refused(number: int, make_table: MakeTable) -> None:
    with pytest.raises(ClassNameError, match=rf"'c{number}' has the id {number}, allowed are 1 to 65534"):
        LabelSpace.of(make_table([1, number]))


@pytest.mark.parametrize("count", [0, 5000])
def test_so_many_classes_are_refused(count: int, make_table: MakeTable) -> None:
    ids = list(range(1, count + 1))
    with pytest.raises(ClassNameError, match=rf"{count} classes, allowed are 1 to 4096"):
        LabelSpace.of(make_table(ids))


def test_many_gaps_are_cut_short(make_table: MakeTable) -> None:
    ids = list(range(2, 40, 3))
    assert all(b - a == 3 for a, b in pairwise(ids))
    with pytest.raises(MaskError, match=r"made has 0, 2, 5, 8, \.\., and 255"):
        LabelSpace.of(make_table(ids)).count(np.ones((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
