"""Label maps of coarse and refined masks: as places among the image's classes, and as class ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from g4seg_trt.arrays import Bools, Floats, Labels
from g4seg_trt.masks import IGNORE
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.update import BackgroundRule, label_map

DEFAULT_RULE = BackgroundRule("constant", 0.5)
"""The background rule of masks that bring none."""


def places(masks: CoarseMasks, probabilities: Floats, rule: BackgroundRule, size: tuple[int, int]) -> Labels:
    """Which of the image's classes each pixel has, unsigned [H,W]: 0 background, 1.. in the order of the masks.

    Args:
        masks: gives the background's probability.
        probabilities: float32 [K,H,W], the coarse ones or refined ones.
        rule: what is background.
        size: the image's (height, width), for an image without classes.
    """
    if not len(probabilities):
        return np.zeros(size, dtype=np.uint8)
    return label_map(probabilities, rule, masks.background)


def class_ids(places: Labels, ids: Sequence[int], ignored: Bools | None) -> Labels:
    """The class id of each pixel, unsigned [H,W]: 0 background, 255 where the source gives no label.

    Args:
        places: as above.
        ids: the class id of each place.
        ignored: bool [H,W], or None. Left alone if 255 is a class.
    """
    largest = max(ids, default=0)
    labels: Labels = np.zeros(places.shape, dtype=np.uint8 if largest <= IGNORE else np.uint16)
    for place, number in enumerate(ids, start=1):
        labels[places == place] = number
    if ignored is not None and largest < IGNORE:
        labels[ignored] = IGNORE
    return labels
