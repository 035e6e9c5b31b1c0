"""Files mapped into memory, whose pages are given back once they are read."""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4
"""The pages leave this process and stay in the system's cache. MADV_PAGEOUT, which could not lose data even at an
address that has become another's, takes them out of that too: the next start would wait for the disk."""

_INTERVAL = 0.1
"""Seconds between two times; a page given back too early comes from the file again."""


def map_file(path: Path) -> Array:
    """The bytes of a file that is not empty, uint8 [N], read when they are looked at; the array holds the mapping."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


@contextmanager
def dropping_pages(arrays: Iterable[Array]) -> Iterator[None]:
    """Give back the memory of mapped arrays again and again while the block runs, and once after it.

    A library that reads weights once, to pack them, then never holds all of them twice.

    Args:
        arrays: views of mapped files that keep the mapping alive, as `map_file` gives them and numpy's views of
            OpenVINO's constants are. They are held until the last page is given back, so that no address can have
            become another's. Arrays elsewhere in memory are left alone, and not held.
    """
    # The held arrays are what makes the addresses good.
    held, extents = _mapped(arrays)
    if not held:
        yield
        return
    done = Event()

    def drop() -> None:
        while not done.wait(_INTERVAL):
            _give_back(extents)

    thread = Thread(target=drop, name="g4seg-drop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _give_back(extents)
        del held


def _mapped(arrays: Iterable[Array]) -> tuple[list[Array], list[tuple[int, int]]]:
    """The arrays that lie in files mapped shared and read-only, and the addresses of their pages.

    In a private mapping, or one that may be written to, pages could be the only copy.
    """
    # First all of them, then the map: what is there by then stays what it is while it is held.
    given = list(arrays)
    regions = _read_only_files()
    starts = [start for start, _ in regions]
    held: list[Array] = []
    # Arrays of one mapping have a part of the file between them, which is as good as theirs.
    found: dict[int, tuple[int, int]] = {}
    for array in given:
        first = array.ctypes.data
        last = first + array.nbytes
        number = bisect_right(starts, first) - 1
        if array.flags.c_contiguous and array.nbytes and number >= 0 and last <= regions[number][1]:
            lowest, highest = found.get(number, (first, last))
            found[number] = min(lowest, first), max(highest, last)
            held.append(array)
    page = mmap.PAGESIZE
    return held, [(first // page * page, -(-last // page) * page) for first, last in found.values()]


def _read_only_files() -> list[tuple[int, int]]:
    """Start and end of every file mapping that is shared and read-only, in order of addresses."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    mapped = [line.split(maxsplit=5) for line in lines]
    ranges = [fields[0].split("-") for fields in mapped if len(fields) == 6 and fields[1] == "r--s"]
    return sorted((int(start, 16), int(end, 16)) for start, end in ranges)


def _give_back(extents: Iterable[tuple[int, int]]) -> None:
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for first, last in extents:
        # Refused, as for memory that is locked, the pages stay: nothing is lost.
        advise(first, last - first, _MADV_DONTNEED)
