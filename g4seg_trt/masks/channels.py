"""What the channels of a semantic segmentation decide, one for each class and maybe one before them for the background.

Class ids count from `first`: 0 where channel 0 is the background, else 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g4seg_trt.arrays import Array, Floats, Ints
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.update import BackgroundRule, label_map, winners


def log_sum(logits: Array) -> Floats:
    """The logarithm of the sum of their exponentials over the channels, float32 [H,W]."""
    highest: Floats = logits.max(axis=0).astype(np.float32)
    total = np.zeros_like(highest)
    for one in logits:
        total += np.exp(one.astype(np.float32) - highest)
    return highest + np.log(total)


def decided(values: Floats, rule: BackgroundRule | None) -> Array:
    """The channel that each pixel goes to: by the rule, where 0 is background, or without one the likeliest."""
    return values.argmax(axis=0) if rule is None else label_map(values[1:], rule, values[0])


def present(values: Floats, first: int, rules: Sequence[BackgroundRule] | None) -> tuple[int, ...]:
    """Ids of the classes that one of the rules gives a pixel, None: that any could, from probabilities [C,H,W]."""
    labels, best = winners(values[1 - first :])
    if rules is None or first == 1:
        kept = best > 0
    else:
        kept = np.zeros(best.shape, dtype=np.bool_)
        for rule in rules:
            kept |= label_map([best], rule, values[0]) > 0
    return tuple(np.unique(labels[kept]).tolist())


def relabelled(given: Array, masks: CoarseMasks, first: int, rule: BackgroundRule | None) -> Ints:
    """Labels where there is nothing but labels: those of the refined masks where they say something else.

    Pixels of classes that were not asked for stay.

    Args:
        given: the labels there were, integers [H,W].
        masks: the refined masks.
        first: the class id of label 0.
        rule: decides what is background, if there is a label for it; None for constant:0.5.
    """
    numbers = given.astype(np.int64) + first
    before = np.where(np.isin(numbers, masks.ids), numbers, 0)
    if first == 0:
        places = label_map(masks.probabilities, rule or BackgroundRule())
    else:
        places, best = winners(masks.probabilities)
        places[best <= 0] = 0
    after = np.array((0, *masks.ids), np.int64)[places]
    # Without a label for background a class that goes leaves the pixel as it was.
    changed = (after != before) & ((after > 0) | (first == 0)) & (before == numbers)
    return np.where(changed, after - first, given)
