"""Counting pixels: one confusion matrix for a whole set of images, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from g4seg_trt.arrays import Bools, Doubles, Ints, Labels
from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import ClassNameError, ConfigError, MaskError
from g4seg_trt.masks.png import IGNORE, IGNORE_16_BIT

MEANS = ("present", "ground-truth", "all")
"""The classes that a mean IoU is taken over, see `counted_classes`."""

MOST_CLASSES = 4096
"""A confusion matrix of more would not fit into memory for every thread."""

_SLAB = 1 << 15
"""Pixels counted at a time, as many as the processor's cache holds; a picture of any size takes no more memory."""


@dataclass(frozen=True)
class LabelSpace:
    """The values of label pictures as positions in a confusion matrix.

    255 in a ground truth is a pixel that does not count, in a prediction one without a label, which is wrong
    wherever the ground truth has a class. So are the value 0 if the table has no background, and 65535 in 16 bits,
    where 255 may be a class instead (g4seg_trt.masks.labels).

    Attributes:
        dataset: the table's name.
        ids: value of each class, in ascending order; 0 first if the background is a class.
        names: name of each class.
        positions: int64 [65536], the position of each value in 16 bits; N for no class, N + 1 for a value that is not
            allowed.
    """

    dataset: str
    ids: tuple[int, ...]
    names: tuple[str, ...]
    positions: Ints

    @classmethod
    def of(cls, table: ClassTable) -> LabelSpace:
        """The values of a class table; raises ClassNameError if it is empty or an id is not from 1 to 65534."""
        classes = sorted(table.classes, key=lambda entry: entry.id)
        if not 0 < len(classes) <= MOST_CLASSES:
            raise ClassNameError(f"{table.dataset}: {len(classes)} classes, allowed are 1 to {MOST_CLASSES}")
        for entry in classes:
            if not 0 < entry.id < IGNORE_16_BIT:
                raise ClassNameError(
                    f"{table.dataset}: the class {entry.name!r} has the id {entry.id}, allowed are 1 to "
                    f"{IGNORE_16_BIT - 1}"
                )
        ids = ((0,) if table.background else ()) + tuple(entry.id for entry in classes)
        names = (("background",) if table.background else ()) + tuple(entry.name for entry in classes)
        positions: Ints = np.full(IGNORE_16_BIT + 1, len(ids) + 1, dtype=np.int64)
        positions[[0, IGNORE, IGNORE_16_BIT]] = len(ids)
        positions[list(ids)] = np.arange(len(ids))
        return cls(table.dataset, ids, names, positions)

    def count(self, labels: Labels, truth: Labels) -> Ints:
        """The confusion matrix of one image.

        Args:
            labels: the prediction, unsigned [H,W].
            truth: the ground truth, unsigned [H,W].

        Returns:
            int64 [N,N+1]: pixels by true class and predicted one; the last column has those without a label.

        Raises:
            MaskError: if the sizes differ, or either holds a value that is no class.
        """
        check_sizes(labels, truth)
        side = len(self.ids) + 2
        rows, columns = truth.reshape(-1), labels.reshape(-1)
        row_of, column_of = self._positions_in(truth), self._positions_in(labels)
        counts: Ints = np.zeros(side * side, dtype=np.int64)
        slab = max(_SLAB, counts.size)
        for start in range(0, rows.size, slab):
            # No value can lie beyond the table; "clip" only spares the search for one.
            index = row_of.take(rows[start : start + slab], mode="clip")
            index *= side
            index += column_of.take(columns[start : start + slab], mode="clip")
            counts += np.bincount(index, minlength=side * side)
        matrix = counts.reshape(side, side)
        if matrix[-1].any():
            raise self._outside(truth, "ground truth", "pixels that do not count")
        if matrix[:, -1].any():
            raise self._outside(labels, "prediction", "no label")
        return matrix[:-2, :-1]

    def objects(self, pixels: Ints) -> list[int]:
        """Positions of classes with pixels (int64 [N]), without the background."""
        return [int(position) for position in np.flatnonzero(pixels) if self.ids[position] != 0]

    def counted(self, truth: Labels) -> Bools:
        """bool [H,W]: pixels of a ground truth that count."""
        valid: Bools = np.ones(truth.shape, dtype=np.bool_)
        for value in self._nothing(truth):
            valid &= truth != value
        return valid

    def region(self, labels: Labels, position: int) -> Bools:
        """bool [H,W]: pixels of the class at a position."""
        value, positions = self.ids[position], self._positions_in(labels)
        if value >= len(positions) or positions[value] != position:  # beyond 8 bits, or 255 in them
            return np.zeros(labels.shape, dtype=np.bool_)
        return np.asarray(labels == value)

    @cached_property
    def _positions_of_bytes(self) -> Ints:
        positions: Ints = self.positions[: IGNORE + 1].copy()
        positions[IGNORE] = len(self.ids)
        return positions

    def _positions_in(self, labels: Labels) -> Ints:
        """`positions` for the values of a picture, which mean what they mean in its bits."""
        return self._positions_of_bytes if labels.dtype == np.uint8 else self.positions

    def _nothing(self, labels: Labels) -> list[int]:
        """Values of a picture that stand for no class."""
        positions = self._positions_in(labels)
        values = [value for value in (0, IGNORE, IGNORE_16_BIT) if value < len(positions)]
        return [value for value in values if positions[value] == len(self.ids)]

    def _outside(self, picture: Labels, what: str, ignored: str) -> MaskError:
        values: Ints = np.unique(picture).astype(np.int64)
        first = int(values[self._positions_in(picture).take(values) > len(self.ids)][0])
        allowed = _ranges(sorted({0, *self.ids}))
        nothing = " or ".join(str(value) for value in self._nothing(picture) if value != 0)
        return MaskError(f"the {what} has the value {first}, {self.dataset} has {allowed}, and {nothing} for {ignored}")


def check_sizes(labels: Labels, truth: Labels) -> None:
    """Check that both are unsigned [H,W] of one size; raises MaskError."""
    for what, picture in (("prediction", labels), ("ground truth", truth)):
        if picture.ndim != 2 or picture.dtype not in (np.uint8, np.uint16):
            raise MaskError(
                f"the {what} is {picture.dtype} of shape {list(picture.shape)}, expected uint8 or uint16 "
                "[height, width] with class ids"
            )
    if labels.shape != truth.shape:
        raise MaskError(
            f"the prediction is {labels.shape[1]}x{labels.shape[0]} pixels, its ground truth is "
            f"{truth.shape[1]}x{truth.shape[0]}: they must have the same size"
        )


def class_ious(matrix: Ints) -> Doubles:
    """Intersection over union of each class, from 0 to 1, NaN without a true or predicted pixel.

    Args:
        matrix: int64 [N,N+1], as from `LabelSpace.count`, of one image or of many added.
    """
    return _ratio(np.diagonal(matrix), _unions(matrix))


def class_accuracies(matrix: Ints) -> Doubles:
    """Share of each class's true pixels that are labelled so, NaN without one."""
    return _ratio(np.diagonal(matrix), matrix.sum(axis=1))


def pixel_accuracy(matrix: Ints) -> float | None:
    """Share of all pixels with a true class that are labelled so, None without one."""
    total = int(matrix.sum())
    return int(np.trace(matrix)) / total if total else None


def counted_classes(matrix: Ints, over: str) -> Bools:
    """Which classes a mean IoU is taken over.

    Args:
        matrix: int64 [N,N+1].
        over: "present", those with a true or a predicted pixel, as mmsegmentation and IRN count (numpy's nanmean);
            "ground-truth", those with a true pixel, as CLIP-ES counts: a class that is only predicted lowers the mean
            in the first and not in the second; "all", where a class that is in neither counts as 0.

    Raises:
        ConfigError: for another `over`.
    """
    if over == "present":
        return np.asarray(_unions(matrix) > 0)
    if over == "ground-truth":
        return np.asarray(matrix.sum(axis=1) > 0)
    if over == "all":
        return np.ones(len(matrix), dtype=np.bool_)
    raise ConfigError(f"mean over {over!r}, allowed: {', '.join(MEANS)}")


def mean_iou(matrix: Ints, over: str) -> float | None:
    """The mean IoU over `counted_classes`, None if there is none; raises ConfigError."""
    counted = np.nan_to_num(class_ious(matrix))[counted_classes(matrix, over)]
    return float(counted.mean()) if counted.size else None


def _unions(matrix: Ints) -> Ints:
    labelled = matrix[:, : len(matrix)].sum(axis=0)
    return np.asarray(matrix.sum(axis=1) + labelled - np.diagonal(matrix))


def _ratio(part: Ints, whole: Ints) -> Doubles:
    result: Doubles = np.full(len(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _ranges(values: Sequence[int]) -> str:
    """Ascending numbers as "0 to 20, 30"; of more than four ranges the first four."""
    ranges: list[list[int]] = []
    for value in values:
        if ranges and value == ranges[-1][1] + 1:
            ranges[-1][1] = value
        else:
            ranges.append([value, value])
    shown = [str(low) if low == high else f"{low} to {high}" for low, high in ranges[:4]]
    return ", ".join([*shown, ".."] if len(ranges) > 4 else shown)
