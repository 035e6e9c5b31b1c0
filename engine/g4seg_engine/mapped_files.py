"""Memory of files that a library has mapped and reads no more."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

_MADV_DONTNEED = 4
_INTERVAL = 0.1
"""Seconds between two times; a page given back too early comes from the file again."""


@contextmanager
def dropping_pages(folder: Path) -> Iterator[None]:
    """Give back the memory of the mapped files in `folder` again and again while the block runs, and once after it.

    A library that reads weights once, to pack them, then never holds all of them twice.
    """
    done = Event()

    def drop() -> None:
        while not done.wait(_INTERVAL):
            drop_pages(folder)

    thread = Thread(target=drop, name="g4seg-drop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        drop_pages(folder)


def drop_pages(folder: Path) -> int:
    """Give back the memory of every file in `folder` that is mapped read-only; a page read again comes from the file.

    Returns:
        Bytes of address space whose pages were given back; 0 on systems other than Linux, where nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return 0
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    prefix, given = f"{folder.resolve()}/", 0
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    mapped = [fields for line in lines if len(fields := line.split(maxsplit=5)) == 6 and fields[5].startswith(prefix)]
    # Pages that were written to would be lost; a library's are, before they are made read-only.
    written = {fields[5] for fields in mapped if "w" in fields[1] or "x" in fields[1]}
    for fields in mapped:
        if fields[5] not in written:
            start, end = (int(number, 16) for number in fields[0].split("-"))
            if advise(start, end - start, _MADV_DONTNEED) == 0:
                given += end - start
    return given
