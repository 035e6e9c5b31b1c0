"""The instances of one image in COCO's JSON files as one map for each class, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from g4seg_trt.arrays import Bools, Floats
from g4seg_trt.masks.array import check_count
from g4seg_trt.masks.coarse import Naming, selected
from g4seg_trt.masks.coco_rle import decode


@dataclass(frozen=True)
class Instance:
    """One mask in a file.

    Attributes:
        category: its category id.
        score: in [0,1].
        segmentation: as the file has it.
        what: names it in messages.
        record: all that the file says about it.
    """

    category: int
    score: float
    segmentation: object
    what: str
    record: dict[str, Any]


@dataclass(frozen=True)
class ClassMaps:
    """The classes of an image that are asked for.

    Attributes:
        categories: their category ids.
        maps: float32 [K,H,W] in [0,1].
        others: what the file says about the instances of other categories.
    """

    categories: tuple[int, ...]
    maps: Floats
    others: tuple[dict[str, Any], ...]


def class_maps(
    instances: Sequence[Instance], names: Mapping[int, str], naming: Naming, size: tuple[int, int], what: str
) -> ClassMaps:
    """One map for each class: the largest score of its instances at each pixel.

    Args:
        instances: of one image.
        names: category id -> class name, as the class table has it if there is one.
        naming: the classes asked for, and the size that the image has.
        size: (height, width) of the masks.
        what: the file and image, for the message.

    Raises:
        MaskError: if a class asked for is not among them, that is too much to hold, the masks are of another size
            than the image, or a segmentation asked for is malformed (`coco_rle.decode`).
        ClassNameError: for a name that the table does not have.
    """
    found = list(names)
    categories = tuple(found[place] for place in selected(list(names.values()), naming, what))
    check_count(len(categories), size, what, naming.size)
    places = {category: place for place, category in enumerate(categories)}
    maps = np.zeros((len(categories), *size), np.float32)
    for one in instances:
        if one.category in places:
            pixels = decode(one.segmentation, size, one.what)
            into = maps[places[one.category]]
            np.maximum(into, np.float32(one.score), out=into, where=pixels)
    return ClassMaps(categories, maps, tuple(one.record for one in instances if one.category not in places))


def kept(probability: Floats, score: float) -> Bools:
    """The pixels of a class that are written: at least half of its score, and above 0."""
    return (probability >= np.float32(score / 2)) & (probability > 0)
