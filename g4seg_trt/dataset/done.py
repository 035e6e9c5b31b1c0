"""An image that is done, read again from its inputs and its label picture: to measure it anew, or to show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any

import numpy as np

from g4seg_trt.arrays import Bools, Labels
from g4seg_trt.class_table import ClassTable
from g4seg_trt.dataset.layout import LABEL, Layout
from g4seg_trt.dataset.mask_files import Size
from g4seg_trt.dataset.measures import ClassFigures, GroundTruth, figures, numbered, read_ground_truth, scores
from g4seg_trt.dataset.plan import DoneBefore, Plan
from g4seg_trt.dataset.record import Record
from g4seg_trt.dataset.source import Item
from g4seg_trt.dataset.writing import is_binary
from g4seg_trt.errors import G4SegError, InputError, MaskError
from g4seg_trt.evaluate.counts import NamedCounts
from g4seg_trt.evaluate.named import COARSE, RESULT
from g4seg_trt.geometry import load_image
from g4seg_trt.masks import read_index_png
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.labels import background_of, places, places_of, unlabelled, without
from g4seg_trt.report import Pictures, draw_pictures
from g4seg_trt.update import BackgroundRule

_CHANGED_BY_HAND = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What reading a record raises that no run has written; its image is done again."""


@dataclass(frozen=True)
class DoneImage:
    """What there is of an image beside its pixels.

    Attributes:
        masks: the coarse ones.
        before: places of their classes, unsigned [H,W] (g4seg_trt.masks.labels).
        after: those of the refined ones.
        truth: the true regions, None without a ground truth.
    """

    masks: CoarseMasks
    before: Labels
    after: Labels
    truth: GroundTruth | None


def read_done(
    item: Item, layout: Layout, rule: BackgroundRule | None, table: ClassTable | None, size: Size | None
) -> DoneImage:
    """Read an image that is done.

    Args:
        item: where its inputs are.
        layout: where its outputs are.
        rule: the background rule asked for, None for the masks' own.
        table: the data set's classes, if it has them.
        size: the image's (height, width), if it is known.

    Raises:
        InputError: if an input or the label picture cannot be read, or does not fit the others.
    """
    if isinstance(item.masks, InputError):
        raise item.masks
    if isinstance(item.truth, InputError):
        raise item.truth
    masks = item.masks.read(size, (rule,))
    (before,) = places(masks, masks.probabilities, [background_of(masks, table, rule)])
    path = layout.file(LABEL, item.stem, len(masks.ids))
    pixels = read_index_png(path)
    after = (pixels > 0).astype(np.uint8) if is_binary(masks, table) else places_of(pixels, masks.ids)
    if after.shape != before.shape:
        raise MaskError(f"{path}: of another size than the masks; delete it")
    truth = None
    if item.truth is not None and (masks.names or table is not None):
        truth = read_ground_truth(item.truth, masks.names, masks.size, table)
    return DoneImage(masks, before, after, truth)


def check_done(record: Record, item: Item, plan: Plan, layout: Layout, truth_sha256: str | None) -> None:
    """Raise DoneBefore for an image whose record holds: with its figures or, for another ground truth, new ones.

    A comparison that the record knows nothing about is no reason to: the image has to be done again for it.

    Raises:
        DoneBefore: as said.
        InputError: if an input or the label picture cannot be read.
    """
    details = record.details
    try:
        known = _known_figures(details)
        _check(details)
    except _CHANGED_BY_HAND:
        return
    if truth_sha256 is None:  # nobody asks how it compared with the one of an earlier run
        bare = {name: replace(one, iou_before=None, iou_after=None) for name, one in known.items()}
        raise DoneBefore(record, bare, None)
    same_truth = details.get("truth_sha256") == truth_sha256
    if plan.compare is not None and not (same_truth and details.get("compare_sha256") == plan.compare_sha256):
        return
    if same_truth:
        try:
            stored = {row: NamedCounts.from_mapping(one) for row, one in (details["counts"] or {}).items()} or None
        except _CHANGED_BY_HAND:
            return
        if stored is None and known:
            return
        raise DoneBefore(record, known, stored)
    height, width = details["size"]
    done = read_done(item, layout, plan.rule, plan.table, (height, width))
    if done.truth is None:
        raise DoneBefore(record, {}, None)
    rows = {COARSE: done.before, RESULT: done.after}
    before, after = (without(place, done.masks.ignored) for place in (done.before, done.after))
    measured = figures(done.masks.names, before, after, done.truth)
    counts = scores(done.masks, rows, done.truth, plan.table)
    known_of = details["classes"]
    new = {
        "classes": {name: {**known_of.get(name, {}), **one.to_mapping()} for name, one in measured.items()},
        "truth_sha256": truth_sha256,
        "counts": {row: one.to_mapping() for row, one in counts.items()},
        "compare_sha256": None,
    }
    raise DoneBefore(replace(record, details={**details, **new}), measured, counts, remeasured=True)


def _known_figures(details: Mapping[str, Any]) -> dict[str, ClassFigures]:
    """The figures of each class that a record holds; raises one of _CHANGED_BY_HAND if it holds others."""
    known = [field.name for field in fields(ClassFigures)]
    found = {name: [values[field] for field in known] for name, values in details["classes"].items()}
    if not all(value is None or isfinite(value) for values in found.values() for value in values):
        raise ValueError("a figure is no number")
    return {name: ClassFigures(*values) for name, values in found.items()}


def _check(details: Mapping[str, Any]) -> None:
    """Look at what reports read; raises one of _CHANGED_BY_HAND."""
    height, width = details["size"]
    texts = isinstance(details["warnings"], list) and all(isinstance(text, str) for text in details["warnings"])
    if not (height > 0 and width > 0 and 0 <= details["changed_pixels"] <= height * width and texts):
        raise ValueError("the size, the changed pixels or the warnings are none")


def draw_done(item: Item, layout: Layout, rule: BackgroundRule | None, table: ClassTable | None) -> Pictures | None:
    """The pictures of an image that is done, for a report; None if something cannot be read any more."""
    try:
        image = load_image(item.image)
        done = read_done(item, layout, rule, table, (image.shape[0], image.shape[1]))
    except G4SegError:
        return None
    if image.shape[:2] != done.before.shape:
        return None
    if done.truth is None:
        return draw_pictures(image, done.before, done.after)
    truth, ignored = _true_places(done.masks, done.truth, table)
    return draw_pictures(image, done.before, done.after, truth, ignored)


def _true_places(masks: CoarseMasks, truth: GroundTruth, table: ClassTable | None) -> tuple[Labels, Bools]:
    """The places of the true classes, unsigned [H,W], and the pixels that do not count, bool [H,W].

    All classes that the masks do not have share one place after theirs: those pixels are neither background nor right.
    """
    ids = tuple(numbered(masks.names).values()) if table is None else masks.ids
    allowed = ids if table is None else [entry.id for entry in table.classes]
    ignored = ~truth.valid | unlabelled(truth.labels, allowed)
    place = places_of(truth.labels, ids)
    place[(place == 0) & (truth.labels != 0)] = len(ids) + 1
    return place, np.asarray(ignored)
