"""Memory of mapped files."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import pytest

from g4seg_engine.mapped_files import drop_pages, dropping_pages

MEGABYTE = 2**20


def resident(path: Path) -> int:
    """Kilobytes of a mapped file that are in this process's memory."""
    kilobytes, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return kilobytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_pages_are_given_back_and_come_again(tmp_path: Path) -> None:
    folder = tmp_path / "with ünicode and space"
    folder.mkdir()
    inside, outside = folder / "weights.bin", tmp_path / "weights.bin"
    for path in (inside, outside):
        path.write_bytes(bytes(range(256)) * (8 * MEGABYTE // 256))
    with inside.open("rb") as one, outside.open("rb") as other:
        mapped = mmap.mmap(one.fileno(), 0, prot=mmap.PROT_READ)
        elsewhere = mmap.mmap(other.fileno(), 0, prot=mmap.PROT_READ)
        assert sum(mapped[:: mmap.PAGESIZE]) == sum(elsewhere[:: mmap.PAGESIZE]) == 0
        assert resident(inside) >= 8 * 1024
        assert drop_pages(folder) == 8 * MEGABYTE
        assert resident(inside) == 0
        assert resident(outside) >= 8 * 1024
        assert mapped[:] == elsewhere[:]


def test_nothing_is_mapped(tmp_path: Path) -> None:
    assert drop_pages(tmp_path) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_pages_are_given_back_while_a_block_runs(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(8 * MEGABYTE))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with dropping_pages(tmp_path):
            assert sum(mapped[:: mmap.PAGESIZE]) == 0
            for _ in range(100):
                if resident(path) == 0:
                    break
                time.sleep(0.05)
            assert resident(path) == 0
            assert mapped[5 * MEGABYTE] == 0
        assert resident(path) == 0
        with pytest.raises(KeyError), dropping_pages(tmp_path):
            raise KeyError("what the block raises is passed on")
