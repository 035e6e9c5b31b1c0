"""An image that is done, read again from its inputs and its label picture: to measure it anew, or to show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from g4seg_trt.arrays import Labels
from g4seg_trt.class_table import ClassTable
from g4seg_trt.dataset.layout import LABEL, Layout
from g4seg_trt.dataset.measures import ClassFigures, GroundTruth, figures, read_ground_truth, scores
from g4seg_trt.dataset.plan import DoneBefore, Plan, compared_rows
from g4seg_trt.dataset.record import Record
from g4seg_trt.dataset.source import Item
from g4seg_trt.dataset.writing import is_binary
from g4seg_trt.errors import G4SegError, InputError, MaskError
from g4seg_trt.evaluate.counts import NamedCounts
from g4seg_trt.evaluate.named import COARSE, RESULT
from g4seg_trt.geometry import load_image
from g4seg_trt.masks import read_index_png
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.labels import background_of, places, places_of, without
from g4seg_trt.report import Pictures, draw_pictures
from g4seg_trt.update import BackgroundRule


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


def read_done(item: Item, layout: Layout, rule: BackgroundRule | None, table: ClassTable | None) -> DoneImage:
    """Read an image that is done.

    Args:
        item: where its inputs are.
        layout: where its outputs are.
        rule: the background rule asked for, None for the masks' own.
        table: the data set's classes, if it has them.

    Raises:
        InputError: if an input or the label picture cannot be read, or does not fit the others.
    """
    if isinstance(item.masks, InputError):
        raise item.masks
    if isinstance(item.truth, InputError):
        raise item.truth
    masks = item.masks.read()
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
    same_truth = truth_sha256 is None or details.get("truth_sha256") == truth_sha256
    stored: Mapping[str, Any] = (details.get("counts") or {}) if same_truth else {}
    if truth_sha256 is not None and plan.compare is not None and not {*compared_rows(plan.compare)} <= {*stored}:
        return
    if same_truth:
        known = [field.name for field in fields(ClassFigures)]
        classes = {
            name: ClassFigures(*(values[field] for field in known))
            for name, values in details.get("classes", {}).items()
        }
        counts = {row: NamedCounts.from_mapping(one) for row, one in stored.items()} or None
        raise DoneBefore(record, classes, None if truth_sha256 is None else counts)
    done = read_done(item, layout, plan.rule, plan.table)
    if done.truth is None:
        raise DoneBefore(record, {}, None)
    rows = {COARSE: done.before, RESULT: done.after}
    before, after = (without(place, done.masks.ignored) for place in (done.before, done.after))
    measured = figures(done.masks.names, before, after, done.truth)
    raise DoneBefore(record, measured, scores(done.masks, rows, done.truth, plan.table))


def draw_done(item: Item, layout: Layout, rule: BackgroundRule | None, table: ClassTable | None) -> Pictures | None:
    """The pictures of an image that is done, for a report; None if something cannot be read any more."""
    try:
        done = read_done(item, layout, rule, table)
        image = load_image(item.image)
    except G4SegError:
        return None
    if image.shape[:2] != done.before.shape:
        return None
    if done.truth is None:
        return draw_pictures(image, done.before, done.after)
    truth: Labels = np.zeros(done.before.shape, dtype=np.uint16)
    for place, name in enumerate(done.masks.names, start=1):
        truth[done.truth.regions[name]] = place
    return draw_pictures(image, done.before, done.after, truth, ~done.truth.valid)
