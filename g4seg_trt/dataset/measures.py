"""Figures of one refinement: areas, changed pixels, and against a ground truth IoU and what a set adds up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from g4seg_trt.arrays import Array, Bools, Floats, Labels
from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import MaskError
from g4seg_trt.evaluate.confusion import LabelSpace
from g4seg_trt.evaluate.counts import NamedCounts
from g4seg_trt.evaluate.named import COARSE, RESULT, table_of_names
from g4seg_trt.masks import IGNORE, NAMED_READERS, read_index_png, read_mask, read_masks
from g4seg_trt.masks.array import UNNAMED
from g4seg_trt.masks.class_folder import class_files
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.labels import class_ids, label_type, unlabelled
from g4seg_trt.masks.png import IGNORE_16_BIT
from g4seg_trt.update import BACKGROUND


@dataclass(frozen=True)
class GroundTruth:
    """The true regions.

    Attributes:
        regions: bool [H,W] for each class.
        valid: bool [H,W], pixels that count.
        labels: the same as a label picture (g4seg_trt.masks.labels), uint8 or uint16 [H,W]: with a class table its
            ids, also of other classes; else 1.. the classes in their order. Pixels that do not count or have two
            classes have its value for those without a label.
    """

    regions: dict[str, Bools]
    valid: Bools
    labels: Labels


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class; IoU from 0 to 1, None without a ground truth or where both regions are empty.

    Attributes:
        area_before: pixels with this label under the coarse masks.
        area_after: the same under the refined ones.
        changed_pixels: pixels that gained or lost this label.
    """

    area_before: int
    area_after: int
    changed_pixels: int
    iou_before: float | None
    iou_after: float | None

    def to_mapping(self) -> dict[str, Any]:
        """A mapping that JSON can hold."""
        return dict(vars(self))


def figures(names: Sequence[str], before: Labels, after: Labels, truth: GroundTruth | None) -> dict[str, ClassFigures]:
    """Figures of each class, in the order of the names.

    Args:
        names: class names.
        before: label map of the coarse masks, unsigned [H,W]: 1.. the classes in the order of the names.
        after: label map of the refined masks.
        truth: the true regions, if there are any.
    """
    result = {}
    for label, name in enumerate(names, start=1):
        coarse, refined = before == label, after == label
        result[name] = ClassFigures(
            int(coarse.sum()),
            int(refined.sum()),
            int((coarse != refined).sum()),
            None if truth is None else iou(coarse, truth.regions[name], truth.valid),
            None if truth is None else iou(refined, truth.regions[name], truth.valid),
        )
    return result


def iou(region: Bools, truth: Bools, valid: Bools) -> float | None:
    """Intersection over union of two bool [H,W] among the valid pixels; None if both are empty there."""
    union = int(((region | truth) & valid).sum())
    return int((region & truth & valid).sum()) / union if union else None


@dataclass
class MeanIou:
    """Running means over the masks that have an IoU, whatever order they come in: sums of fractions are exact."""

    masks: int = 0
    before: Fraction = Fraction()
    after: Fraction = Fraction()
    made_worse: int = 0

    def add(self, figures: Iterable[ClassFigures]) -> None:
        """Count masks in."""
        for one in figures:
            if one.iou_before is not None and one.iou_after is not None:
                self.masks += 1
                self.before += Fraction(one.iou_before)
                self.after += Fraction(one.iou_after)
                self.made_worse += one.iou_after < one.iou_before

    def to_mapping(self) -> dict[str, Any]:
        """The means, None if no mask has an IoU: "masks", "before", "after", "made_worse"."""
        count = self.masks
        return {
            "masks": count,
            "before": float(self.before / count) if count else None,
            "after": float(self.after / count) if count else None,
            "made_worse": self.made_worse,
        }


def mean_iou(figures: Iterable[ClassFigures]) -> dict[str, Any]:
    """The means over some masks: see MeanIou."""
    mean = MeanIou()
    mean.add(figures)
    return mean.to_mapping()


def read_ground_truth(
    path: Path, names: Sequence[str], size: tuple[int, int], table: ClassTable | None = None
) -> GroundTruth:
    """Read the true regions of the classes.

    Args:
        path: for one class its mask, 0/255 or a probability, true from 0.5 on; if 1 and 255 are all that it holds
            beside 0, then 1 is the object and 255 are pixels that do not count. For several a .npz with their
            names, a folder of such masks CLASS.png, or an index PNG: 0 background, the classes in order, 255 (in 16
            bits 65535) for pixels that do not count.
        names: the classes.
        size: (height, width) of the image.
        table: the data set's classes; a picture is then an index PNG of its ids.

    Raises:
        MaskError: if a file cannot be read, lacks a class, or has another size than the image.
    """
    if table is not None and not path.is_dir() and path.suffix.lower() not in NAMED_READERS:
        allowed = {entry.id for entry in table.classes}
        of_table = {name: table.named(name, str(path)).id for name in names}
        return _from_index(path, of_table, size, allowed, table.background)
    if path.is_dir():
        masks = {name: read_mask(file, name) for name, file in class_files(path).items() if table or name in names}
    elif len(names) == 1 and table is None:
        masks = {names[0]: read_mask(path, names[0])}
    elif path.suffix.lower() in NAMED_READERS:
        masks = read_masks(path)
        if list(masks) == [UNNAMED] and len(names) == 1:
            masks = {names[0]: masks[UNNAMED]}
    else:
        ids = numbered(names)
        return _from_index(path, ids, size, set(ids.values()), True)
    if table is not None:
        masks.pop(BACKGROUND, None)
        masks = {table.named(name, str(path)).name: mask for name, mask in masks.items()}
        ids = {name: table.named(name, str(path)).id for name in masks}
    else:
        ids = numbered(names)
    for name in names:
        if name not in masks:
            raise MaskError(f"{path}: no ground truth of the class {name!r}")
    regions: dict[str, Bools] = {}
    valid: Bools = np.ones(size, dtype=np.bool_)
    for name in ids:
        _check_size(masks[name], size, path)
        regions[name], counts = _one_class(masks[name])
        valid &= counts
    return GroundTruth(regions, valid, _labels(regions, valid, ids))


def numbered(names: Sequence[str]) -> dict[str, int]:
    """The labels of classes that no table has: 1, 2, .. in their order."""
    return {name: number for number, name in enumerate(names, start=1)}


def scores(
    masks: CoarseMasks, rows: Mapping[str, Labels], truth: GroundTruth, table: ClassTable | None
) -> dict[str, NamedCounts]:
    """What an image adds to the figures of a set.

    Args:
        masks: the coarse masks: classes, and pixels without a label.
        rows: what is counted -> label map, unsigned [H,W]: 1.. the classes in the order of the masks. Boundaries are
            measured of COARSE and RESULT.
        truth: read for these classes and this table.
        table: the data set's classes, if it has them.
    """
    classes = table if table is not None else table_of_names(masks.names, "the classes of an image")
    numbers = masks.ids if table is not None else tuple(numbered(masks.names).values())
    space = LabelSpace.of(classes)
    return {
        row: NamedCounts.of(
            space, class_ids(place, numbers, masks.ignored), truth.labels, boundary=row in (COARSE, RESULT)
        )
        for row, place in rows.items()
    }


def _labels(regions: Mapping[str, Bools], valid: Bools, ids: Mapping[str, int]) -> Labels:
    dtype, none = label_type(ids.values())
    labels: Labels = np.zeros(valid.shape, dtype)
    for name, region in regions.items():
        labels[region] = np.where(labels[region] == 0, ids[name], none)
    labels[~valid] = none
    return labels


def _one_class(values: Floats) -> tuple[Bools, Bools]:
    """The region and the pixels that count, bool [H,W]."""
    # PASCAL VOC's values, as read from a grey picture: as probabilities the ignored band would be the object.
    one, ignored = values == np.float32(1) / np.float32(IGNORE), values == 1.0
    if one.any() and ignored.any() and (one | ignored | (values == 0.0)).all():
        return np.asarray(one), np.asarray(~ignored)
    return np.asarray(values >= 0.5), np.ones(values.shape, dtype=np.bool_)


def _from_index(
    path: Path, ids: Mapping[str, int], size: tuple[int, int], allowed: Collection[int], background: bool
) -> GroundTruth:
    """The regions of an index picture of the ids `allowed`; pixels of 0 count only if it is `background`."""
    index = read_index_png(path)
    _check_size(index, size, path)
    nothing = unlabelled(index, allowed)
    unknown = np.setdiff1d(index[~nothing], [0, *allowed])
    if unknown.size:
        largest, none = max(allowed, default=0), IGNORE if index.dtype == np.uint8 else IGNORE_16_BIT
        raise MaskError(
            f"{path}: has the value {int(unknown[0])}, a ground truth of these classes has 0 to {largest}, "
            f"and {none} for pixels that do not count"
        )
    regions = {name: np.asarray((index == label) & ~nothing) for name, label in ids.items()}
    valid = ~nothing if background else ~nothing & (index != 0)
    return GroundTruth(regions, np.asarray(valid), index)


def _check_size(values: Array, size: tuple[int, int], path: Path) -> None:
    if values.shape != size:
        (height, width), given = size, f"{values.shape[1]}x{values.shape[0]}"
        raise MaskError(f"{path}: the ground truth is {given} pixels, its image is {width}x{height}")
