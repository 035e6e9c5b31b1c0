"""Label maps of masks: under which background rule, as places among the image's classes, and as class ids.

A label picture holds class ids, 0 for the background, and a value for pixels without a label. That is 255 in 8 bits
and 65535 in 16, where 255 may be a class. Pictures of 16 bits that other programs write may have 255 in its place: it
means the same unless one of the classes has this id.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from g4seg_trt.arrays import Array, Bools, Floats, Labels
from g4seg_trt.class_table import ClassTable
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.png import IGNORE, IGNORE_16_BIT
from g4seg_trt.update import LIKELIEST, BackgroundRule, label_map, winners

NO_BACKGROUND = BackgroundRule("constant", LIKELIEST)
"""Every pixel gets its likeliest class: the rule of data sets whose table has no background."""


def background_of(masks: CoarseMasks, table: ClassTable | None, rule: BackgroundRule | None) -> BackgroundRule:
    """The rule that decides: the one given, else the source's own, else constant:0.5, or none without background."""
    return rule or masks.rule or (BackgroundRule() if table is None or table.background else NO_BACKGROUND)


def places(masks: CoarseMasks, probabilities: Floats, rules: Iterable[BackgroundRule]) -> Iterator[Labels]:
    """Which of the image's classes each pixel has, under each of the rules.

    Args:
        masks: give the size and the background's probability.
        probabilities: float32 [K,H,W], the coarse ones or refined ones.
        rules: background rules.

    Returns:
        For each rule unsigned [H,W]: 0 background, 1.. in the order of the masks.

    Raises:
        ConfigError: for the rule channel if the masks come without a background.
        MaskError: if the background has another size.
    """
    label: Labels
    best: Floats
    if len(probabilities):
        label, best = winners(probabilities)
    else:
        label, best = np.zeros(masks.size, dtype=np.uint8), np.zeros(masks.size, dtype=np.float32)
    for rule in rules:
        yield label * label_map([best], rule, masks.background)


def without(place: Labels, ignored: Bools | None) -> Labels:
    """The places with 0 also where the source gives no label."""
    if ignored is None:
        return place
    known: Labels = place * ~ignored
    return known


def label_type(ids: Iterable[int]) -> tuple[npt.DTypeLike, int]:
    """The dtype of a label picture of these classes, uint8 or uint16, and its value for pixels without a label."""
    return (np.uint8, IGNORE) if max(ids, default=0) < IGNORE else (np.uint16, IGNORE_16_BIT)


def class_ids(place: Labels, ids: Sequence[int], ignored: Bools | None) -> Labels:
    """The class id of each pixel, [H,W] as from `label_type`: 0 background, its other value where there is no label.

    Args:
        place: as above.
        ids: the class id of each place.
        ignored: bool [H,W], pixels that the source gives no label, or None.
    """
    dtype, none = label_type(ids)
    numbers: Array = np.array([0, *ids], dtype=dtype)
    labels: Labels = numbers[place]
    if ignored is not None:
        labels[ignored] = none
    return labels


def unlabelled(labels: Labels, ids: Collection[int]) -> Bools:
    """Where a label picture says nothing, bool [H,W].

    Args:
        labels: uint8 or uint16 [H,W].
        ids: the ids of the classes that it may have.
    """
    if labels.dtype == np.uint8:
        return np.asarray(labels == IGNORE)
    nothing: Bools = np.asarray(labels == IGNORE_16_BIT)
    return nothing if IGNORE in ids else nothing | (labels == IGNORE)


def places_of(labels: Labels, ids: Sequence[int]) -> Labels:
    """The way back from `class_ids`; what has no class is 0, as is every id that is not among these."""
    known: Labels = np.zeros(int(max(labels.max(initial=0), *ids, 0)) + 1, dtype=np.uint16)
    known[list(ids)] = np.arange(1, len(ids) + 1)
    place: Labels = known[labels]
    return place
