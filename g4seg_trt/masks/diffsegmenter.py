"""DiffSegmenter: one .mat file for each image, a map of 0..255 for each class.

From the code of VCG-team/DiffSegmenter: open_vocabulary/voc12/ptp_stable_best.py writes with scipy's
savemat(do_compression=True) the class's index from 0 among the foreground classes, as a string, -> float32 [H,W],
scaled to 0..255 for each class. evaluation_voc12.py and evaluation_coco.py read every entry behind loadmat's own
three, divide by 255, add 1 to the index, and try constant backgrounds from 0.30 to 0.74.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from g4seg_trt.arrays import Array, Floats
from g4seg_trt.atomic import atomic_file, reason
from g4seg_trt.errors import MaskError, MissingExtraError
from g4seg_trt.masks.array import as_probability, check_count
from g4seg_trt.masks.coarse import CoarseMasks, Naming, named_by_ids
from g4seg_trt.update import BackgroundRule

NAME = "diffsegmenter"
RULE = BackgroundRule("constant", 0.5)
"""In the middle of what its authors try."""

_MAGIC = b"MATLAB 5.0 MAT-file"
_TEXT = 116  # bytes of text that the file begins with, where savemat puts the clock time
_HEADER = 128
_COMPRESSED = 15
_NUMBERS = {
    *("double", "single", "logical"),
    *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
}
_BROKEN_MAT = (
    OSError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    TypeError,
    ValueError,
    zlib.error,
)
"""What scipy raises for damaged files, beside an error of its own, and for HDF5 ones (-v7.3)."""


@dataclass(frozen=True)
class MatLayout:
    """How a file was laid out.

    Attributes:
        text: what it begins with.
        dtypes: class index -> dtype of its map.
    """

    text: bytes
    dtypes: Mapping[int, np.dtype[np.generic]]


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read a .mat file of DiffSegmenter.

    Returns:
        The masks, values over 255, with the rule constant:0.5; id = key + 1.

    Raises:
        MaskError: if the file cannot be read as such, unpacks to more than it declares, or has values outside
            0..255 or only up to 1.
        ClassNameError: for a class id outside the table.
        MissingExtraError: scipy is not installed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MaskError(f"{path}: {reason(error)}") from error
    maps, text = _load(data, path)
    ids = tuple(index + 1 for index in maps)
    names = named_by_ids(ids, naming, str(path))
    highest = max(float(array.max()) for array in maps.values())
    if 0.0 < highest <= 1.0:
        raise MaskError(f"{path}: values up to {highest:g}, {NAME} has 0 to 255; multiply by 255")
    probabilities = [
        as_probability(array.astype(np.float64) / 255.0, f"{path}, class {name!r}, over 255")
        for name, array in zip(names, maps.values(), strict=True)
    ]
    layout = MatLayout(text, {index: array.dtype for index, array in maps.items()})
    return CoarseMasks(ids, names, np.stack(probabilities), rule=RULE, origin={NAME: layout})


def write(path: Path, masks: CoarseMasks) -> None:
    """Write a .mat file, atomically, dtypes as they came in. The same masks give the same bytes.

    Raises:
        OutputError: if the file cannot be written.
        MissingExtraError: scipy is not installed.
    """
    layout: MatLayout = masks.origin.get(NAME, MatLayout(_MAGIC, {}))
    entries = {
        str(number - 1): _stored(probability, layout.dtypes.get(number - 1, np.dtype(np.float32)))
        for number, probability in zip(masks.ids, masks.probabilities, strict=True)
    }
    written = io.BytesIO()
    _scipy_io(path).savemat(written, entries, do_compression=True)
    with atomic_file(path) as file:
        file.write(layout.text.ljust(_TEXT)[:_TEXT])
        file.write(written.getbuffer()[_TEXT:])


def recognise(path: Path) -> str | None:
    """What makes the file one of DiffSegmenter, in words, or None; never raises MaskError.

    Without scipy every .mat file is taken for one, so that reading it says what is missing.
    """
    if path.suffix.lower() != ".mat":
        return None
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except OSError:
        return None
    if head != _MAGIC:
        return None
    try:
        names = list(_shapes(_scipy_io(path), path.read_bytes(), path))
    except (MaskError, OSError):
        return None
    except MissingExtraError:
        return "a MATLAB file"
    return f"a MATLAB file with maps under the class indices {', '.join(map(str, names))}"


def _load(data: bytes, path: Path) -> tuple[dict[int, Array], bytes]:
    """The maps by class index in the file's order, and the file's text."""
    scipy_io = _scipy_io(path)
    shapes = _shapes(scipy_io, data, path)
    height, width = next(iter(shapes.values()))
    check_count(len(shapes), (height, width), str(path))
    names = [str(index) for index in shapes]
    try:
        _check_packed(data, 4096 + 8 * height * width, path)
        found = scipy_io.loadmat(io.BytesIO(data), variable_names=names, squeeze_me=False)
    except (*_BROKEN_MAT, scipy_io.matlab.MatReadError) as error:
        raise MaskError(f"{path}: not a MATLAB file, or damaged ({reason(error)})") from error
    maps: dict[int, Array] = {index: found[str(index)] for index in shapes}
    for index, array in maps.items():
        if array.shape != (height, width) or array.dtype.kind not in "fiu":
            raise MaskError(f"{path}, class index {index}: {array.dtype} {list(array.shape)}, expected real numbers")
    return maps, data[:_TEXT] if data.startswith(_MAGIC) else _MAGIC


def _shapes(scipy_io: ModuleType, data: bytes, path: Path) -> dict[int, tuple[int, int]]:
    """(height, width) of each map by class index, in the file's order; all the same, and there is one."""
    try:
        variables = scipy_io.whosmat(io.BytesIO(data))
    except (*_BROKEN_MAT, scipy_io.matlab.MatReadError) as error:
        raise MaskError(f"{path}: not a MATLAB file, or damaged ({reason(error)})") from error
    shapes: dict[int, tuple[int, int]] = {}
    for name, shape, kind in variables:
        if not (name.isascii() and name.isdigit() and str(int(name)) == name and int(name) not in shapes):
            raise MaskError(
                f"{path}: an entry {ascii(name)[:40]}, expected class indices from 0 on, each once ({NAME})"
            )
        if kind not in _NUMBERS or len(shape) != 2 or 0 in shape or shape != variables[0][1]:
            raise MaskError(
                f"{path}, class index {name}: {kind} {list(shape)}, expected numbers [height, width], all the same"
            )
        shapes[int(name)] = shape
    if not shapes:
        raise MaskError(f"{path}: holds no map, expected one for each class ({NAME})")
    return shapes


def _check_packed(data: bytes, most: int, path: Path) -> None:
    """Check that no entry unpacks to more bytes than its map needs."""
    order = {b"IM": "<II", b"MI": ">II"}.get(data[_HEADER - 2 : _HEADER])
    at = _HEADER
    while order is not None and at + 8 <= len(data):
        kind, length = struct.unpack_from(order, data, at)
        at += 8
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj()
            if len(unpacked.decompress(data[at : at + length], most)) == most:
                raise MaskError(f"{path}: an entry unpacks to more than {most} bytes, which its map does not need")
        at += length


def _stored(probability: Floats, dtype: np.dtype[np.generic]) -> Array:
    values: Array = probability.astype(np.float64) * 255.0
    return (values if dtype.kind == "f" else np.rint(values)).astype(dtype)


def _scipy_io(path: Path) -> ModuleType:
    try:
        from scipy import io as scipy_io
    except ModuleNotFoundError as error:
        if error.name != "scipy":
            raise
        raise MissingExtraError(
            f"{path}: a MATLAB file, and {MissingExtraError.for_package('scipy', 'mat')}"
        ) from error
    module: ModuleType = scipy_io
    return module
