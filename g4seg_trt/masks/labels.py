"""Label maps of masks: under which background rule, as places among the image's classes, and as class ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from g4seg_trt.arrays import Array, Bools, Floats, Labels
from g4seg_trt.class_table import ClassTable
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.png import IGNORE
from g4seg_trt.update import BackgroundRule, label_map, winners

NO_BACKGROUND = BackgroundRule("constant", float(np.finfo(np.float32).tiny))
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


def class_ids(place: Labels, ids: Sequence[int], ignored: Bools | None) -> Labels:
    """The class id of each pixel, uint8 or uint16 [H,W]: 0 background, 255 where the source gives no label.

    Args:
        place: as above.
        ids: the class id of each place.
        ignored: bool [H,W], or None. Left alone if 255 is a class.
    """
    numbers: Array = np.array([0, *ids], dtype=np.uint16 if max(ids, default=0) > IGNORE else np.uint8)
    labels: Labels = numbers[place]
    if ignored is not None and IGNORE not in ids:
        labels[ignored] = IGNORE
    return labels


def places_of(labels: Labels, ids: Sequence[int]) -> Labels:
    """The way back from `class_ids`; what has no class is 0, as is every id that is not among these."""
    known: Labels = np.zeros(int(max(labels.max(initial=0), *ids, 0)) + 1, dtype=np.uint16)
    known[list(ids)] = np.arange(1, len(ids) + 1)
    place: Labels = known[labels]
    return place
