"""Probability arrays: one class in a .npy file, named classes in a .npz file."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from PIL import Image

from g4seg_trt.arrays import Array, Floats
from g4seg_trt.atomic import atomic_file, reason
from g4seg_trt.errors import MaskError
from g4seg_trt.inputs import check_masks

_BROKEN_FILE = (
    OSError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for damaged, encrypted and pickled files; numpy parses headers as Python."""

UNNAMED = "arr_0"
"""What `numpy.savez` calls an array that was given no name."""

MOST_VALUES = 2**30
"""Values that the maps of one image may have together if they are of its size: 4 GiB as float32."""

MOST_UNSIZED = 2**28
"""The same where the image's size is not known: a packed file may declare any, and be a thousandth of it."""

_LONGEST_HEADER = 2**16
"""Bytes before an array's values; the format allows 4 GiB, which a zip archive packs into 4 MB."""

_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What numpy writes; the others of zip have errors of their own."""

_HALF_ROUNDING = 2.0**-10
"""How far float16 values may lie outside [0,1]: its step at 1."""


def read_npy(path: Path) -> Floats:
    """Read a .npy file.

    Returns:
        float32 [H,W] in [0,1].

    Raises:
        MaskError: if the file is missing, damaged or pickled, or holds no probability (`as_probability`).
    """
    return as_probability(open_npy(path), str(path))


def open_npy(path: Path) -> Array:
    """The array of a .npy file, mapped, of any shape and dtype; raises MaskError as `read_npy`."""
    try:
        # A mapped file cannot make a damaged header allocate more than the file holds.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such file") from error
    except _BROKEN_FILE as error:
        raise MaskError(f"{path}: not a .npy array, or damaged ({reason(error)})") from error
    if not isinstance(array, np.ndarray):
        raise MaskError(f"{path}: an archive of arrays, name it .npz")
    return array


def write_npy(path: Path, array: Array) -> None:
    """Write an array as a .npy file, atomically; raises OutputError."""
    with atomic_file(path) as file:
        npy.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


def npz_names(path: Path) -> tuple[str, ...]:
    """The class names of a .npz file, in the file's order; raises MaskError if it is missing or damaged."""
    with _archive(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist())


def npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
    """Shape and dtype of every array of a .npz file as their headers say, by name in the file's order.

    Raises:
        MaskError: if the file is missing, damaged or empty, two arrays have one name, or one is far too large.
    """
    headers: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {}
    with _archive(path) as archive:
        for info in archive.infolist():
            key = info.filename.removesuffix(".npy")
            if key in headers:
                raise MaskError(f"{path}: two arrays are called {key!r}")
            if info.compress_type not in _PACKINGS:
                raise MaskError(f"{path}: {key!r} is packed in a way that numpy does not write")
            with archive.open(info) as member:
                headers[key] = _header(_Bounded(member, _LONGEST_HEADER))
    if not headers:
        raise MaskError(f"{path}: holds no array, expected one [height, width] probability for each class name")
    return headers


def read_npz(
    path: Path, names: Collection[str] | None = None, image: tuple[int, int] | None = None
) -> dict[str, Floats]:
    """Read a .npz file: key = class name, value = its probability.

    Args:
        path: the file.
        names: the classes wanted; None for all. The others are not unpacked.
        image: the image's (height, width), if it is known.

    Returns:
        class name -> float32 [H,W] in [0,1], in the file's order.

    Raises:
        MaskError: as `npz_maps`.
    """
    return dict(npz_maps(path, names, image))


def npz_maps(
    path: Path, names: Collection[str] | None = None, image: tuple[int, int] | None = None
) -> Iterator[tuple[str, Floats]]:
    """As `read_npz`, one class after the other.

    Raises:
        MaskError: if the file is missing, damaged, pickled or empty, an array is not a probability
            (`as_probability`), or it unpacks to more than an image's maps may hold (`check_count`), which is
            known before anything is unpacked.
    """
    headers = npz_headers(path)
    wanted = {name: header for name, header in headers.items() if names is None or name in names}
    for name, (shape, dtype) in wanted.items():
        what = f"{path}, class {name!r}"
        if len(shape) != 2 or np.dtype(dtype).kind not in "fbiu":
            raise MaskError(
                f"mask of {what!r} has dtype {dtype} and shape {list(shape)}, "
                "expected floating-point probabilities [height, width]"
            )
        # As many of this size as there are maps: those of one image are all of one.
        check_count(len(wanted), (shape[0], shape[1]), what, image)
    for name, array in npz_arrays(path, wanted):
        yield name, as_probability(array, f"{path}, class {name!r}")


def npz_arrays(path: Path, wanted: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]]) -> Iterator[tuple[str, Array]]:
    """Arrays of a .npz file as they are stored, one after the other.

    Args:
        path: the file.
        wanted: which, with what `npz_headers` says of them.

    Yields:
        Name and array, in the file's order.

    Raises:
        MaskError: if the file is missing or damaged, or an array is longer than its header says.
    """
    with _archive(path) as archive:
        for member_name in archive.namelist():
            name = member_name.removesuffix(".npy")
            if name not in wanted:
                continue
            shape, dtype = wanted[name]
            length = math.prod(shape) * np.dtype(dtype).itemsize
            with archive.open(member_name) as member:
                array = npy.read_array(_Bounded(member, length + _LONGEST_HEADER), allow_pickle=False)
            yield name, array


def write_npz(path: Path, probabilities: Mapping[str, Floats]) -> None:
    """Write named probabilities as a .npz file of float32 (`write_arrays`).

    Args:
        path: where to.
        probabilities: class name -> float [H,W] in [0,1]. Any name will do, also "file".

    Raises:
        OutputError: if the file cannot be written.
    """
    write_arrays(path, ((name, as_stored(one, np.float32)) for name, one in probabilities.items()))


def write_arrays(path: Path, arrays: Iterable[tuple[str, Array]]) -> None:
    """Write named arrays as a compressed .npz file, atomically. The same input gives the same bytes.

    Raises:
        OutputError: if the file cannot be written.
    """
    with (
        atomic_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, array in arrays:
            # A ZipInfo of one's own carries no clock time.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as stream:
                npy.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)


def as_stored(probability: Floats, dtype: npt.DTypeLike) -> Array:
    """A probability in the dtype that it was read from: bool and integers, which hold 0 and 1 only, are 1 from 0.5."""
    if np.dtype(dtype).kind == "f":
        return probability.astype(dtype)
    return (probability >= np.float32(0.5)).astype(dtype)


def as_probability(array: Array, what: str) -> Floats:
    """Check that an array is a probability and return it as float32.

    Args:
        array: floating point, bool, or integers that are all 0 or 1; [H,W] with values in [0,1], or outside by
            no more than the rounding of the dtype.
        what: names the array in the message.

    Returns:
        float32 [H,W] in [0,1], a copy.

    Raises:
        MaskError: naming the shape, dtype or value that is wrong.
    """
    if array.size == 0:
        raise MaskError(f"mask of {what!r} has shape {list(array.shape)}: it holds no pixel")
    if array.dtype == np.float16:
        low, high = np.float16(0), np.float16(1)
        near = (array >= -_HALF_ROUNDING) & (array <= 1 + _HALF_ROUNDING)
        array = np.where(near, np.clip(array, low, high), array)
    height, width = array.shape if array.ndim == 2 else (0, 0)
    return check_masks({what: array}, (height, width))[what]


def as_probabilities(arrays: Iterable[Array], names: Sequence[str], size: tuple[int, int], what: str) -> Floats:
    """Arrays of one size as the maps of classes, one after the other: no more than two are held beside the maps.

    Args:
        arrays: [H,W] each, as `as_probability` takes them.
        names: their classes, as many.
        size: (height, width).
        what: the file and the place in it, for the message.

    Returns:
        float32 [K,H,W] in [0,1].

    Raises:
        MaskError: as `as_probability`.
    """
    maps = np.empty((len(names), *size), np.float32)
    for one, array, name in zip(maps, arrays, names, strict=True):
        one[:] = as_probability(array, f"{what}, class {name!r}")
    return maps


def check_count(classes: int, size: tuple[int, int], what: str, image: tuple[int, int] | None = None) -> None:
    """Check that the maps of an image are of a size that can be worked with, before any is made.

    Args:
        classes: how many maps.
        size: (height, width).
        what: the file, for the message.
        image: the image's (height, width); None if it is not known.

    Raises:
        MaskError: for another size than the image's, above Pillow's limit of pixels, which pictures have too, or
            MOST_VALUES (without the image's size MOST_UNSIZED) in all.
    """
    height, width = size
    if image is not None and size != image:
        raise MaskError(
            f"{what}: the masks are {width}x{height} pixels, the image is {image[1]}x{image[0]}: they must have the "
            "same size"
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise MaskError(f"{what}: {width}x{height} pixels are more than Pillow's limit of {limit} pixels")
    most = MOST_UNSIZED if image is None else MOST_VALUES
    if classes * height * width > most:
        raise MaskError(f"{what}: its maps hold {classes * height * width} values together, allowed: {most}")


class _Bounded:
    """A stream that ends with an error where more is asked of it than there may be."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._left = most

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= self._left:
            raise ValueError("it unpacks to more than its header says")
        data = self._stream.read(size)
        self._left -= len(data)
        return data


def _header(stream: _Bounded) -> tuple[tuple[int, ...], npt.DTypeLike]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    return shape, dtype


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """An open .npz file; what goes wrong in the block is a MaskError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise MaskError(f"{path}: no such file") from error
    except _BROKEN_FILE as error:
        raise MaskError(f"{path}: not a .npz archive, or damaged ({reason(error)})") from error
