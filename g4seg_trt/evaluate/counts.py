"""What is counted of one image: small and by class names, so that a record can hold it and any number be added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from g4seg_trt.arrays import Ints, Labels
from g4seg_trt.evaluate.boundary import boundary_accuracy, boundary_f
from g4seg_trt.evaluate.confusion import LabelSpace

BACKGROUND, NO_LABEL = "", None
"""What stands for the background among the names, and for pixels without a label."""


@dataclass
class Counts:
    """What is counted of one kind of prediction, of an image or of many.

    Attributes:
        matrix: int64 [N,N+1], as from `LabelSpace.count`.
        boundary: by position of the class, boundary accuracy and F of each mask that the ground truth has a
            boundary of.
    """

    matrix: Ints
    boundary: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def merge(self, other: Counts) -> None:
        """Add those of other images."""
        self.matrix += other.matrix
        for position, values in other.boundary.items():
            self.boundary.setdefault(position, []).extend(values)


def count(space: LabelSpace, labels: Labels, truth: Labels, *, boundary: bool) -> Counts:
    """Count one image.

    Args:
        space: the classes.
        labels: the prediction, uint8 or uint16 [H,W]; what means "no label" is said in g4seg_trt.masks.labels.
        truth: the ground truth, the same; pixels without a label do not count.
        boundary: measure boundaries too.

    Raises:
        MaskError: if the sizes differ or a value is not allowed.
    """
    counts = Counts(space.count(labels, truth))
    if not boundary:
        return counts
    valid = space.counted(truth)
    for position in space.objects(counts.matrix.sum(axis=1)):
        region, true = space.region(labels, position), space.region(truth, position)
        accuracy = boundary_accuracy(region, true, valid)
        f = boundary_f(region, true, valid)
        if accuracy is not None and f is not None:
            counts.boundary[position] = [(accuracy, f)]
    return counts


@dataclass(frozen=True)
class NamedCounts:
    """`Counts` of one image by the names of its classes.

    Attributes:
        pixels: (true class, label or NO_LABEL) -> pixels, of what there is.
        boundary: true class -> boundary accuracy and F.
    """

    pixels: Mapping[tuple[str, str | None], int]
    boundary: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, space: LabelSpace, labels: Labels, truth: Labels, *, boundary: bool) -> NamedCounts:
        """Count one image; as `count`."""
        counts = count(space, labels, truth, boundary=boundary)
        names = [BACKGROUND if number == 0 else name for number, name in zip(space.ids, space.names, strict=True)]
        labelled = [*names, NO_LABEL]
        rows, columns = np.nonzero(counts.matrix)
        pixels = {
            (names[row], labelled[column]): int(counts.matrix[row, column])
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        }
        return cls(pixels, {names[position]: pairs[0] for position, pairs in counts.boundary.items()})

    def to_mapping(self) -> dict[str, Any]:
        """A mapping that JSON can hold and `from_mapping` takes back."""
        return {
            "pixels": [[true, label, number] for (true, label), number in self.pixels.items()],
            "boundary": {name: list(pair) for name, pair in self.boundary.items()},
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> NamedCounts:
        """The counts of a record; raises KeyError, TypeError or ValueError if it holds none."""
        pixels = {(true, label): int(number) for true, label, number in mapping["pixels"]}
        boundary = {name: (float(accuracy), float(f)) for name, (accuracy, f) in mapping["boundary"].items()}
        return cls(pixels, boundary)
