"""The figures of a set of images, gathered image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from g4seg_trt.arrays import Ints, Labels
from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import ConfigError
from g4seg_trt.evaluate.confusion import (
    MEANS,
    LabelSpace,
    class_accuracies,
    class_ious,
    counted_classes,
    mean_iou,
    pixel_accuracy,
)
from g4seg_trt.evaluate.counts import Counts, count
from g4seg_trt.evaluate.strata import Gain, stratified

Figures = dict[str, Any]
"""What JSON can hold; shares from 0 to 1, None where not defined."""


class SetEvaluation:
    """Gathers predictions with their ground truth and says how good they are.

    Give every image either to `add`, or to `add_gain` if its coarse masks are known; `summary` at any time. The order
    of the images does not change a bit of it. Not for several threads at once: give each its own and `merge`.

    Args:
        table: the classes. Pixels without a label do not count, nor those of 0 if the table has no background.
        boundary: measure boundaries too, which takes most of the time.

    Raises:
        ClassNameError: if the table gives a class an id that no label picture can hold.
    """

    def __init__(self, table: ClassTable | LabelSpace, *, boundary: bool = True) -> None:
        self.space = table if isinstance(table, LabelSpace) else LabelSpace.of(table)
        self.boundary = boundary
        self.images = 0
        self._after = self._nothing()
        self._before: Counts | None = None
        self._gains: list[Gain] = []
        self._missed = 0
        self._false = 0

    @classmethod
    def of_sums(
        cls,
        space: LabelSpace,
        images: int,
        before: Counts,
        after: Counts,
        gains: Sequence[Gain],
        missed: int,
        false: int,
    ) -> SetEvaluation:
        """The evaluation of images that were counted elsewhere, with their coarse masks.

        Args:
            space: the classes.
            images: how many.
            before: counts of the coarse masks.
            after: counts of the refined ones.
            gains: of each mask, as for `stratified`.
            missed: as in `summary`.
            false: as in `summary`.
        """
        evaluation = cls(space)
        evaluation.images, evaluation._before, evaluation._after = images, before, after
        evaluation._gains, evaluation._missed, evaluation._false = list(gains), missed, false
        return evaluation

    def add(self, labels: Labels, truth: Labels) -> None:
        """Count one image.

        Args:
            labels: the prediction, uint8 or uint16 [H,W] with the table's ids; what means "no label" is said in
                g4seg_trt.masks.labels.
            truth: the ground truth, the same; pixels without a label do not count.

        Raises:
            MaskError: if the sizes differ or a value is not allowed; the image is not counted then.
            ConfigError: if other images came with coarse masks.
        """
        if self._before is not None:
            raise ConfigError("an image without coarse masks among others with them: their means would not compare")
        self._after.merge(self._count(labels, truth))
        self.images += 1

    def add_gain(self, before: Labels, after: Labels, truth: Labels) -> None:
        """Count one image with its coarse masks and its refined ones.

        Args:
            before: labels of the coarse masks, as for `add`.
            after: labels of the refined ones.
            truth: the ground truth.

        Raises:
            MaskError: as `add`.
            ConfigError: if other images came without coarse masks.
        """
        if self._before is None and self.images:
            raise ConfigError("an image with coarse masks among others without: their means would not compare")
        coarse, refined = self._count(before, truth), self._count(after, truth)
        self._before = self._before or self._nothing()
        self._before.merge(coarse)
        self._after.merge(refined)
        self._add_gains(coarse.matrix, refined.matrix)
        self.images += 1

    def merge(self, other: SetEvaluation) -> None:
        """Add the images of another evaluation with the same table; it stays as it is.

        Raises:
            ConfigError: if the classes differ, or only one of the two has coarse masks.
        """
        if (other.space.ids, other.space.names) != (self.space.ids, self.space.names):
            raise ConfigError(f"evaluations of {self.space.dataset} and {other.space.dataset} cannot be added up")
        if other.images == 0:
            return
        if self.images and (self._before is None) != (other._before is None):
            raise ConfigError("an evaluation with coarse masks and one without cannot be added up")
        if other._before is not None:
            self._before = self._before or self._nothing()
            self._before.merge(other._before)
        self._after.merge(other._after)
        self._gains += other._gains
        self._missed += other._missed
        self._false += other._false
        self.images += other.images

    def summary(self, mean_over: str = "present") -> Figures:
        """All figures so far.

        Args:
            mean_over: which classes the mean IoU is over: one of MEANS, explained at `counted_classes`.

        Returns:
            A mapping that JSON can hold: "dataset", "images", "mean_over", "figures"; with coarse masks "coarse",
            their figures, and "gain": the strata of `stratified`, "missed" and "false". A mask of the gain is a
            class of an image's ground truth that the coarse or the refined labels have there; "missed" is the
            number of those that neither has, "false" of coarse masks whose class the ground truth does not have.

        Raises:
            ConfigError: for another `mean_over`.
        """
        gain = None
        if self._before is not None:
            gain = {"strata": stratified(self._gains), "missed": self._missed, "false": self._false}
        return {
            "dataset": self.space.dataset,
            "images": self.images,
            "mean_over": mean_over,
            "figures": self._figures(self._after, mean_over),
            "coarse": None if self._before is None else self._figures(self._before, mean_over),
            "gain": gain,
        }

    def _nothing(self) -> Counts:
        count = len(self.space.ids)
        return Counts(np.zeros((count, count + 1), dtype=np.int64))

    def _count(self, labels: Labels, truth: Labels) -> Counts:
        return count(self.space, labels, truth, boundary=self.boundary)

    def _add_gains(self, before: Ints, after: Ints) -> None:
        coarse, refined = class_ious(before), class_ious(after)
        true = before.sum(axis=1)
        labelled, labelled_after = before[:, :-1].sum(axis=0), after[:, :-1].sum(axis=0)
        for position in self.space.objects(true):
            if labelled[position] or labelled_after[position]:
                self._gains.append((float(coarse[position]), float(refined[position])))
            else:
                self._missed += 1
        self._false += sum(1 for position in self.space.objects(labelled) if not true[position])

    def _figures(self, counts: Counts, mean_over: str) -> Figures:
        matrix = counts.matrix
        ious, accuracies = class_ious(matrix), class_accuracies(matrix)
        counted = counted_classes(matrix, mean_over)
        true, labelled = matrix.sum(axis=1), matrix.sum(axis=0)
        classes = [
            {
                "id": number,
                "name": name,
                "iou": _number(ious[position]),
                "accuracy": _number(accuracies[position]),
                "counted": bool(counted[position]),
                "true_pixels": int(true[position]),
                "predicted_pixels": int(labelled[position]),
                **_boundary_means(counts.boundary.get(position, [])),
            }
            for position, (number, name) in enumerate(zip(self.space.ids, self.space.names, strict=True))
        ]
        return {
            "mean_iou": mean_iou(matrix, mean_over),
            "mean_iou_over": {over: mean_iou(matrix, over) for over in MEANS},
            "counted_classes": int(counted.sum()),
            "pixel_accuracy": pixel_accuracy(matrix),
            "mean_accuracy": _number(float(np.nanmean(accuracies))) if true.any() else None,
            "pixels": int(matrix.sum()),
            "unlabelled_pixels": int(labelled[-1]),
            "boundary": _boundary_means([pair for pairs in counts.boundary.values() for pair in pairs])
            if self.boundary
            else None,
            "classes": classes,
        }


def _boundary_means(pairs: Sequence[tuple[float, float]]) -> Figures:
    count = len(pairs)
    return {
        "boundary_masks": count,
        "boundary_accuracy": math.fsum(accuracy for accuracy, _ in pairs) / count if count else None,
        "boundary_f": math.fsum(f for _, f in pairs) / count if count else None,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
