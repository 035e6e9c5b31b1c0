"""DiffSegmenter: one .mat file for each image, a map of 0..255 for each class.

From the code of VCG-team/DiffSegmenter: open_vocabulary/voc12/ptp_stable_best.py writes with scipy's
savemat(do_compression=True) the class's index from 0 among the foreground classes, as a string, -> float32 [H,W],
scaled to 0..255 for each class. evaluation_voc12.py and evaluation_coco.py read every entry behind loadmat's own
three, divide by 255, add 1 to the index, and try constant backgrounds from 0.30 to 0.74.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from g4seg_trt.arrays import Array, Floats
from g4seg_trt.atomic import atomic_file, reason
from g4seg_trt.errors import MaskError
from g4seg_trt.masks import matlab
from g4seg_trt.masks.array import as_probabilities, check_count
from g4seg_trt.masks.coarse import CoarseMasks, Naming, named_by_ids, selected
from g4seg_trt.update import BackgroundRule

NAME = "diffsegmenter"
RULE = BackgroundRule("constant", 0.5)
"""In the middle of what its authors try."""

_INDEX = re.compile(r"0|[1-9]\d{0,3}", re.ASCII)


@dataclass(frozen=True)
class MatLayout:
    """How a file was laid out.

    Attributes:
        text: what it begins with.
        dtypes: class index -> dtype of its map, in the file's order.
        others: class index -> map as stored, of classes that were not asked for.
    """

    text: bytes
    dtypes: Mapping[int, np.dtype[np.generic]]
    others: Mapping[int, Array]


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read a .mat file of DiffSegmenter.

    Returns:
        The masks, values over 255, with the rule constant:0.5; id = key + 1.

    Raises:
        MaskError: if the file cannot be read as such, unpacks to more than it declares, has values outside 0..255 or
            only up to 1 or of a type that ends before 255, or does not have a class asked for.
        ClassNameError: for a class id outside the table.
    """
    try:
        data = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise MaskError(f"{path}: {reason(error)}") from error
    maps = _maps(data, path)
    indices = tuple(maps)
    size = maps[indices[0]].shape
    check_count(len(maps), size, str(path), naming.size)
    names = named_by_ids([index + 1 for index in indices], naming, str(path))
    places = selected(names, naming, str(path))
    stored = {index: one.values(str(path)) for index, one in maps.items()}
    highest = max(float(array.max()) for array in stored.values())
    if 0.0 < highest <= 1.0:
        raise MaskError(f"{path}: values up to {highest:g}, {NAME} has 0 to 255; multiply by 255")
    chosen = tuple(names[place] for place in places)
    scaled = _scaled(stored.pop(indices[place]) for place in places)
    probabilities = as_probabilities(scaled, chosen, size, f"{path}, over 255")
    layout = MatLayout(matlab.text_of(data), {index: one.dtype for index, one in maps.items()}, stored)
    return CoarseMasks(
        tuple(indices[place] + 1 for place in places),
        chosen,
        probabilities,
        rule=RULE,
        origin={NAME: layout},
    )


def write(path: Path, masks: CoarseMasks) -> None:
    """Write a .mat file, atomically, dtypes as they came in. The same masks give the same bytes.

    Raises:
        OutputError: if the file cannot be written.
    """
    layout: MatLayout = masks.origin.get(NAME, MatLayout(matlab.MAGIC, {}, {}))
    refined = {
        number - 1: _stored(probability, layout.dtypes.get(number - 1, np.dtype(np.float32)))
        for number, probability in zip(masks.ids, masks.probabilities, strict=True)
    }
    entries = {**layout.others, **refined}
    with atomic_file(path) as file:
        matlab.write(file, layout.text, {str(index): entries[index] for index in layout.dtypes or refined})


def recognise(path: Path) -> str | None:
    """What makes the file one of DiffSegmenter, in words, or None; never raises MaskError."""
    if path.suffix.lower() != ".mat":
        return None
    try:
        indices = list(_maps(path.read_bytes(), path))
    except (MaskError, OSError, MemoryError):
        return None
    return f"a MATLAB file with maps under the class indices {', '.join(map(str, indices))}"


def _maps(data: bytes, path: Path) -> dict[int, matlab.Variable]:
    """The maps by class index, in the file's order, unread; all of one shape, and there is one."""
    maps: dict[int, matlab.Variable] = {}
    first = None
    for one in matlab.variables(data, str(path)):
        if not _INDEX.fullmatch(one.name) or int(one.name) in maps:
            raise MaskError(
                f"{path}: an entry {ascii(one.name)[:40]}, expected class indices from 0 on, each once ({NAME})"
            )
        first = first or one
        if one.shape != first.shape:
            raise MaskError(
                f"{path}, class index {one.name}: {list(one.shape)}, expected {list(first.shape)} as the first has"
            )
        if one.dtype == np.int8:
            raise MaskError(f"{path}, class index {one.name}: int8, which ends before 255; save it as uint8")
        maps[int(one.name)] = one
    if not maps:
        raise MaskError(f"{path}: holds no map, expected one for each class ({NAME})")
    return maps


def _scaled(maps: Iterator[Array]) -> Iterator[Array]:
    """Maps of 0..255 as maps of 0..1."""
    for one in maps:
        with np.errstate(invalid="ignore"):  # NaN is told by who takes them
            yield one.astype(np.float64) / 255.0


def _stored(probability: Floats, dtype: np.dtype[np.generic]) -> Array:
    values: Array = probability.astype(np.float64) * 255.0
    return (values if dtype.kind == "f" else np.rint(values)).astype(dtype)
