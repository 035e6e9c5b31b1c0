"""Format "npz": classes by their names in a .npz file, each an array [H,W]."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from g4seg_trt.arrays import Array
from g4seg_trt.errors import InputError, MaskError, some
from g4seg_trt.masks.array import (
    MOST_UNSIZED,
    as_stored,
    npz_arrays,
    npz_headers,
    npz_maps,
    write_arrays,
    write_npz,
)
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.gather import Chosen, choose, maps_by_key, named_maps

NAME = "npz"

_MOST_PASSED_ON = 8 * MOST_UNSIZED
"""Bytes of an array that is no mask asked for, and only copied."""


@dataclass(frozen=True)
class ArchiveLayout:
    """What `write` gives back.

    Attributes:
        path: the file, which still has the arrays that were not asked for.
        chosen: what the file calls the classes.
        headers: shape and dtype of all its arrays, in its order.
    """

    path: Path
    chosen: Chosen
    headers: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read the named classes, or all. An array called "background" is the background's own probability.

    Raises:
        MaskError: if the file cannot be read (`array.npz_maps`), the sizes differ, a named class is not in it, or
            an array that was not asked for is too large to be copied.
        ClassNameError: for a name that the table does not have.
    """
    headers = npz_headers(path)
    chosen = choose(headers, naming, path)
    wanted = chosen.wanted()
    for name, (shape, dtype) in headers.items():
        if name not in wanted and math.prod(shape) * np.dtype(dtype).itemsize > _MOST_PASSED_ON:
            raise MaskError(
                f"{path}: {name!r} is an array {list(shape)} of {dtype}, which is too large to be passed on"
            )
    maps = npz_maps(path, wanted, naming.size)
    return named_maps(maps, chosen, naming, path, {NAME: ArchiveLayout(path, chosen, headers)})


def write(path: Path, masks: CoarseMasks) -> None:
    """Write the maps under the names, in the order and the dtypes that they came in, the background as it was.

    Arrays that were not asked for are copied from the file that was read.

    Raises:
        MaskError: if that file is no longer there, or another.
        OutputError: if the file cannot be written.
    """
    layout: ArchiveLayout | None = masks.origin.get(NAME)
    if layout is None:
        write_npz(path, maps_by_key(masks, None))
    else:
        write_arrays(path, _arrays(masks, layout))


def recognise(path: Path) -> str | None:
    """What tells that this is an archive of named maps, or None."""
    try:
        headers = npz_headers(path)
    except InputError:
        return None
    if any(len(shape) != 2 for shape, _ in headers.values()):
        return None
    return f"an archive of named arrays ({some(headers)})"


def _arrays(masks: CoarseMasks, layout: ArchiveLayout) -> Iterator[tuple[str, Array]]:
    """All arrays of the file, in its order."""
    maps = maps_by_key(masks, layout.chosen)
    others = npz_arrays(layout.path, {key: header for key, header in layout.headers.items() if key not in maps})
    for key, (_, dtype) in layout.headers.items():
        if key in maps:
            yield key, as_stored(maps[key], dtype)
            continue
        name, array = next(others, (None, None))
        if name != key or array is None:
            raise MaskError(f"{layout.path}: {key!r} is no longer there")
        yield key, array
