"""COCO's run-length codes and polygons, checked before pycocotools sees them.

pycocotools trusts its input: codes that end too early give pixels of uninitialised memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from g4seg_trt.arrays import Array, Bools, Ints
from g4seg_trt.errors import MaskError, MissingExtraError
from g4seg_trt.masks.array import check_count
from g4seg_trt.masks.coco import is_whole, short

_LONGEST_RUN = 7
"""Characters of one run: five bits each, as many as 32 bits need."""

_LONGEST_OUTLINE = 2_000_000
"""Pixels along the polygons of one mask."""


def decode(segmentation: object, size: tuple[int, int] | None, what: str) -> Bools:
    """A segmentation as pixels.

    Args:
        segmentation: {"size": [height, width], "counts": text or list of numbers}, or a list of polygons
            [x1, y1, x2, y2, ..].
        size: the image's (height, width); None to take what the segmentation says, which polygons do not.
        what: names the segmentation in messages.

    Returns:
        bool [height, width].

    Raises:
        MaskError: for anything else, a size other than the image's or too large, runs that do not fill it, or
            polygons that are no list of pairs or lie far from the image.
        MissingExtraError: pycocotools is not installed.
    """
    if isinstance(segmentation, Mapping):
        return _decode_runs(segmentation, size, what)
    if not isinstance(segmentation, list) or size is None:
        raise MaskError(f'{what}: expected a segmentation {{"size", "counts"}}, it is {short(segmentation)}')
    return _decode_polygons(segmentation, size, what)


def encode(mask: Bools) -> dict[str, Any]:
    """The segmentation {"size", "counts"} of pixels bool [height, width], counts as text."""
    codes = _pycocotools().encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in codes["size"]], "counts": codes["counts"].decode("ascii")}


def size_of(segmentation: Mapping[str, Any], what: str) -> tuple[int, int]:
    """The (height, width) that a run-length code says it has; raises MaskError if it is none or too large."""
    size = segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(is_whole(side) and side > 0 for side in size):
        raise MaskError(f"{what}: size is {short(size)}, expected [height, width]")
    check_count(1, (size[0], size[1]), what)
    return size[0], size[1]


def _decode_runs(segmentation: Mapping[str, Any], size: tuple[int, int] | None, what: str) -> Bools:
    height, width = size_of(segmentation, what)
    if size is not None and size != (height, width):
        raise MaskError(f"{what}: is {width}x{height} pixels, its image {size[1]}x{size[0]}: they must be the same")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        runs = _runs_of_text(counts, what)
    elif isinstance(counts, list) and all(isinstance(run, int) and 0 <= run < 2**32 for run in counts):
        runs = np.array(counts, np.int64)
    else:
        raise MaskError(f"{what}: counts are {short(counts)}, expected text or a list of numbers from 0 up")
    if (runs < 0).any():
        raise MaskError(f"{what}: counts hold a run of {runs.min()} pixels")
    if runs.sum() != height * width:
        raise MaskError(f"{what}: counts add up to {runs.sum()} pixels, its size {width}x{height} has {height * width}")
    library = _pycocotools()
    codes = {"size": [height, width], "counts": counts}
    if not isinstance(counts, str):
        codes = library.frPyObjects(codes, height, width)
    return np.asarray(library.decode(codes)).astype(np.bool_)


def _runs_of_text(text: str, what: str) -> Ints:
    """The runs that compressed counts stand for, signed.

    A run is written as characters of five bits each, lowest first, the sixth bit where more follow; from the fourth
    run on as the difference to the last but one.
    """
    if not text.isascii():
        raise MaskError(f"{what}: counts {ascii(text)[:37]} are no run-length code")
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise MaskError(f"{what}: counts {short(text)} are no run-length code, or cut off")
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_RUN:
        raise MaskError(f"{what}: counts {short(text)} are no run-length code")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs: Array = np.add.reduceat((codes & 31) << shifts, starts)
    runs = runs - (((codes[ends] & 16) != 0).astype(np.int64) << (5 * lengths))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _decode_polygons(polygons: Sequence[object], size: tuple[int, int], what: str) -> Bools:
    height, width = size
    check_count(1, size, what)
    if not polygons:
        raise MaskError(f"{what}: has no polygon")
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(_is_number(number) for number in polygon):
            raise MaskError(f"{what}: a polygon is {short(polygon)}, expected a list of numbers")
        if len(polygon) % 2 or len(polygon) < 6:
            raise MaskError(f"{what}: a polygon has {len(polygon)} numbers, expected pairs x, y of 3 points or more")
        for numbers, side in ((polygon[0::2], width), (polygon[1::2], height)):
            far = next((number for number in numbers if not -side <= number <= 2 * side), None)
            if far is not None:
                raise MaskError(f"{what}: a polygon reaches {short(far)}, its image is {width}x{height} pixels")
    outline = sum(_outline(polygon) for polygon in polygons if isinstance(polygon, list))
    if outline > _LONGEST_OUTLINE:
        raise MaskError(f"{what}: its polygons are {outline} pixels long, allowed: {_LONGEST_OUTLINE}")
    library = _pycocotools()
    merged = library.merge(library.frPyObjects(list(polygons), height, width))
    return np.asarray(library.decode(merged)).astype(np.bool_)


def _outline(polygon: list[float]) -> int:
    """Pixels along a polygon: the library takes so much memory and time, and does not see that there is none left."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    return int(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()) + len(points)


def _is_number(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool)


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "pycocotools":
            raise
        raise MissingExtraError.for_package("pycocotools", "coco") from error
    return mask
