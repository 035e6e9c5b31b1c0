"""Checks of what the correspondence search is handed: its arguments in one form, or a CorrespondenceError."""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple, SupportsInt, TypeGuard

import numpy as np

from g4seg_trt.arrays import Array, Floats, Ints
from g4seg_trt.errors import CorrespondenceError

_DTYPES = ("float16", "float32", "float64")


class Arguments(NamedTuple):
    """What `nearest_positions` takes, checked: features float32, queries int64."""

    generated: Floats
    original: Floats
    size: tuple[int, int] | None
    queries: Ints | None
    radius: int | None


def check_arguments(generated: object, original: object, size: object, queries: object, radius: object) -> Arguments:
    """The arguments of `nearest_positions`.

    Raises:
        CorrespondenceError: for one that is not allowed, or features that do not fit together.
    """
    ours, theirs = _array("generated", generated), _array("original", original)
    if ours.shape[0] != theirs.shape[0]:
        raise CorrespondenceError(
            f"original has shape {list(theirs.shape)}, generated {list(ours.shape)}: they must have the same P"
        )
    if ours.dtype != theirs.dtype:
        raise CorrespondenceError(
            f"original {list(theirs.shape)} is {theirs.dtype}, generated {list(ours.shape)} is {ours.dtype}: "
            "they must have the same dtype"
        )
    pixels = None if size is None else _size(size)
    # More than the longer side is everything, whatever is added to it.
    reach = None if radius is None else min(check_radius(radius), max(pixels or ours.shape[1:]))
    if reach is not None and pixels is None and ours.shape != theirs.shape:
        raise CorrespondenceError(
            f"original has shape {list(theirs.shape)}, generated {list(ours.shape)}: "
            "a radius on the grid needs grids of the same size"
        )
    positions = int(np.prod(ours.shape[1:] if pixels is None else pixels))
    wanted = None if queries is None else _queries(queries, positions)
    return Arguments(_finite("generated", ours), _finite("original", theirs), pixels, wanted, reach)


def check_radius(radius: object) -> int:
    """The radius as an int.

    Raises:
        CorrespondenceError: unless it is an integer from 0 on.
    """
    if not _whole(radius) or int(radius) < 0:
        raise CorrespondenceError(f"radius is {radius!r}, allowed: an integer from 0 on, or none")
    return int(radius)


def _whole(value: object) -> TypeGuard[SupportsInt]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _array(name: str, features: object) -> Array:
    if not isinstance(features, np.ndarray):
        raise CorrespondenceError(f"{name} is a {type(features).__name__}, expected an array [P,g,g]")
    if features.ndim != 3 or 0 in features.shape:
        raise CorrespondenceError(f"{name} has shape {list(features.shape)}, expected [P,g,g] and not empty")
    if features.dtype.name not in _DTYPES:
        raise CorrespondenceError(
            f"{name} {list(features.shape)} has dtype {features.dtype}, allowed: {', '.join(_DTYPES)}"
        )
    return features


def _finite(name: str, features: Array) -> Floats:
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused as that
        floats: Floats = features.astype(np.float32, copy=False)
    broken = floats.size - np.count_nonzero(np.isfinite(floats))
    if broken:
        raise CorrespondenceError(
            f"{name} {list(features.shape)} has {broken} values that are NaN or infinite, allowed: finite float32"
        )
    return floats


def _size(size: object) -> tuple[int, int]:
    if isinstance(size, (tuple, list)) and len(size) == 2:
        height, width = size
        if _whole(height) and _whole(width) and int(height) > 0 and int(width) > 0:
            return int(height), int(width)
    raise CorrespondenceError(f"size is {size!r}, allowed: a height and a width, integers from 1 on, or none")


def _queries(queries: object, positions: int) -> Ints:
    if not isinstance(queries, np.ndarray):
        raise CorrespondenceError(f"queries is a {type(queries).__name__}, expected an array of integers [n]")
    if queries.ndim != 1 or queries.dtype.kind not in "iu":
        raise CorrespondenceError(
            f"queries is {queries.dtype} of shape {list(queries.shape)}, expected an array of integers [n]"
        )
    if queries.size and not 0 <= queries.min() <= queries.max() < positions:
        raise CorrespondenceError(
            f"queries [{queries.size}] is from {queries.min()} to {queries.max()}, allowed: 0 to {positions - 1}"
        )
    wanted: Ints = queries.astype(np.int64, copy=False)
    return wanted
