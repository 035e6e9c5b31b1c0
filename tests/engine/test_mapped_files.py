"""Memory of mapped files."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread, active_count

import numpy as np
import pytest

from g4seg_engine import mapped_files
from g4seg_engine.mapped_files import Array, dropping_pages, map_file

MEGABYTE = 2**20
SIZE = 8 * MEGABYTE

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "with ünicode and space" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(np.arange(SIZE, dtype=np.uint8).tobytes())
    return path


def mapped(path: Path, flags: int = mmap.MAP_SHARED, protection: int = mmap.PROT_READ) -> Array:
    """The bytes of a file; the array holds the mapping."""
    with path.open("r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, flags=flags, prot=protection), np.uint8)


def resident(path: Path) -> int:
    """Kilobytes of a mapped file that are in this process's memory."""
    kilobytes, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return kilobytes


def drop_pages(arrays: Sequence[Array]) -> int:
    """Give back what a block does at its end; returns the bytes of address space."""
    _, extents = mapped_files._mapped(arrays)
    with dropping_pages(arrays):
        pass
    return sum(last - first for first, last in extents)


def read(array: Array) -> int:
    return int(array.astype(np.uint64).sum())


@linux
def test_pages_are_given_back_and_come_again(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "weights.bin"
    other.write_bytes(path.read_bytes())
    inside, outside = mapped(path), mapped(other)
    expected = read(inside)
    assert read(outside) == expected
    assert resident(path) >= SIZE // 1024
    assert drop_pages([inside]) == SIZE
    assert resident(path) == 0
    assert resident(other) >= SIZE // 1024, "nobody asked for it"
    assert read(inside) == expected


@linux
def test_a_mapped_file_is_read_only_and_gives_its_pages_back(path: Path) -> None:
    array = map_file(path)
    assert array.tobytes() == path.read_bytes()
    assert not array.flags.writeable
    assert drop_pages([array[100:]]) == SIZE
    assert resident(path) == 0
    assert array[-1] == (SIZE - 1) % 256


@linux
def test_parts_of_a_file_are_parts(path: Path) -> None:
    """What lies before the first and behind the last of the arrays stays."""
    whole = mapped(path)
    read(whole)
    given = drop_pages([whole[3 * MEGABYTE + 5 : 4 * MEGABYTE], whole[MEGABYTE : 2 * MEGABYTE - 7]])
    assert given == 3 * MEGABYTE
    # Where the system maps 2 MB at once, the rest of those goes with the part.
    assert resident(path) >= (SIZE - given - 2 * 2 * MEGABYTE) // 1024
    assert drop_pages([whole[:0], whole[::2]]) == 0


@linux
@pytest.mark.parametrize(
    ("flags", "protection"),
    [
        (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE),
        (mmap.MAP_PRIVATE, mmap.PROT_READ),
        (mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    ],
)
def test_what_is_written_or_private_is_never_touched(path: Path, flags: int, protection: int) -> None:
    array = mapped(path, flags, protection)
    if protection & mmap.PROT_WRITE:
        array[:] = 7
    elif flags == mmap.MAP_PRIVATE:
        # As a loader does: write to the pages, then take the right to write away.
        change(array, mmap.PROT_READ | mmap.PROT_WRITE)
        ctypes.memset(array.ctypes.data, 7, array.nbytes)
        change(array, mmap.PROT_READ)
    assert drop_pages([array]) == 0
    assert array.min() == array.max() == 7
    assert resident(path) >= SIZE // 1024


def change(array: Array, protection: int) -> None:
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(array.ctypes.data, array.nbytes, protection) == 0


def test_other_memory_is_left_alone() -> None:
    array = np.full(SIZE, 7, np.uint8)
    assert drop_pages([array, np.empty(0)]) == drop_pages([]) == 0
    threads = active_count()
    gone = weakref.ref(array)
    with dropping_pages(iter([array])):
        assert active_count() == threads, "there is nothing to do"
        assert array.min() == 7
        del array
        assert gone() is None, "nor is there anything to hold"


@linux
@pytest.mark.parametrize("why", ["unreadable", "not there", "another system"])
def test_a_system_that_does_not_tell(path: Path, tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = mapped(path)
    if why == "another system":
        monkeypatch.setattr(sys, "platform", "darwin")
    else:
        # A folder cannot be read as a file, whoever tries.
        monkeypatch.setattr(mapped_files, "_MAPS", tmp_path if why == "unreadable" else tmp_path / "none")
    assert drop_pages([array]) == 0
    with dropping_pages([array]):
        assert read(array) > 0
    assert resident(path) >= SIZE // 1024


@linux
def test_pages_are_given_back_while_a_block_runs(path: Path) -> None:
    array = mapped(path)
    expected = read(array)
    with dropping_pages([array]):
        assert wait_for(lambda: resident(path) == 0)
        assert read(array) == expected
    assert resident(path) == 0
    with pytest.raises(KeyError), dropping_pages([array]):
        raise KeyError("what the block raises is passed on")


@linux
def test_addresses_stay_the_mappings_while_a_block_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lets go of the mapping inside the block does not make room for others in its place."""
    monkeypatch.setattr(mapped_files, "_INTERVAL", 0.001)
    array = mapped(path)
    address = array.ctypes.data
    with dropping_pages(iter([array])):
        del array
        gc.collect()
        assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
        others = [np.full(SIZE, 7, np.uint8) for _ in range(8)]
        assert all(not other.ctypes.data <= address < other.ctypes.data + SIZE for other in others)
        time.sleep(0.02)
        assert all(other.min() == 7 for other in others)
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8"), "the mapping is held no longer"


@linux
def test_a_mapping_of_the_same_file_that_goes_away_takes_nothing_with_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another runner of the same engine is closed, and its addresses become somebody's memory."""
    monkeypatch.setattr(mapped_files, "_INTERVAL", 0.0)
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    mine = mapped(path)
    done, lost = Event(), []

    def come_and_go(file: int) -> None:
        while not done.is_set():
            place = library.mmap(None, SIZE, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
            ctypes.string_at(place, 1)
            library.munmap(place, SIZE)
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100000  # MAP_FIXED_NOREPLACE: the same place
            again = library.mmap(place, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
            if again != place:  # another thread has it
                continue
            ctypes.memset(again, 7, MEGABYTE)
            time.sleep(0.001)
            if ctypes.string_at(again, 1) != b"\7":
                lost.append(again)
            library.munmap(again, SIZE)

    with path.open("rb") as file:
        thread = Thread(target=come_and_go, args=[os.dup(file.fileno())])
        thread.start()
        for _ in range(60):
            with dropping_pages([mine]):
                time.sleep(0.002)
        done.set()
        thread.join()
    assert not lost


def wait_for(met: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not met() and time.monotonic() < end:
        time.sleep(0.02)
    return met()
