"""Entries of an engine's cache: found again, checked, and never half-made, whatever happens while they are made."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_engine import cache
from g4seg_engine.build import staged_engine
from g4seg_engine.cache import FOLDER, cache_bytes, cached, is_whole
from g4seg_engine.manifest import Manifest, check_engine, load_engine

Keep = Callable[..., "Path | None"]
FILES = {"graph": b"nodes" * 7, "weights": bytes(range(256)) * 3, "empty": b""}


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "WORTH_KEEPING", 0)


@pytest.fixture
def manifest(engine: Path) -> Manifest:
    return load_engine(engine)


@pytest.fixture
def keep(engine: Path, manifest: Manifest) -> Keep:
    """keep(make, **key) -> the entry of the UNet."""
    return lambda make=write, **key: cached(engine, manifest, "unet", "mine", key, 2, make)


def write(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


def fail_to_write(folder: Path) -> None:
    write(folder)
    raise OSError(errno.ENOSPC, "No space left on device")


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} is not to be made")


def names(engine: Path) -> list[str]:
    return sorted(path.name for path in (engine / FOLDER).iterdir())


def assert_good(entry: Path | None) -> None:
    assert entry is not None
    assert {path.name: path.read_bytes() for path in entry.iterdir() if path.name != "entry.json"} == FILES
    assert is_whole(entry)


def test_an_entry_is_made_once(engine: Path, keep: Keep) -> None:
    entry = keep(write, precision="fp32", batch=1)
    assert_good(entry)
    assert entry is not None
    assert names(engine) == [entry.name]
    assert entry.name.startswith("mine-unet-")
    # The order of a key's parts is nothing.
    assert keep(refuse, batch=1, precision="fp32") == entry
    record = json.loads((entry / "entry.json").read_text())
    assert record["key"]["precision"] == "fp32"
    size = sum(map(len, FILES.values())) + (entry / "entry.json").stat().st_size
    assert cache_bytes(engine) == {entry.name.split("-")[0]: size}


def test_an_entry_belongs_to_its_key(
    engine: Path, manifest: Manifest, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {
        keep(batch=1),
        keep(batch=2),
        keep(),
        cached(engine, manifest, "unet", "other", {}, 2, write),
        # Another network has other files.
        cached(engine, manifest, "vae_decoder", "mine", {}, 2, write),
    }
    monkeypatch.setattr(cache, "processor_hash", lambda: "another processor")
    entries.add(keep())
    assert len(entries) == 6
    assert sorted(entry.name for entry in entries if entry is not None) == names(engine)


def test_a_small_network_has_none(engine: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(record.bytes for record in manifest.networks["unet"].files)
    monkeypatch.setattr(cache, "WORTH_KEEPING", size + 1)
    assert cached(engine, manifest, "unet", "mine", {}, 2, refuse) is None
    assert not (engine / FOLDER).exists()
    assert cache_bytes(engine) == {}
    monkeypatch.setattr(cache, "WORTH_KEEPING", size)
    assert_good(cached(engine, manifest, "unet", "mine", {}, 2, write))


def test_the_engine_with_a_cache_still_fits_its_manifest(engine: Path, manifest: Manifest, keep: Keep) -> None:
    assert keep() is not None
    check_engine(engine, manifest, every_hash=True)


@pytest.fixture(scope="module")
def spare_entry(tmp_path_factory: pytest.TempPathFactory, fill_engine: Callable[[Path], Manifest]) -> Path:
    engine = tmp_path_factory.mktemp("spare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "WORTH_KEEPING", 0)
        entry = cached(engine, fill_engine(engine), "unet", "mine", {}, 2, write)
    assert entry is not None
    return entry


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_damage_to_a_small_file_is_seen(spare_entry: Path, data: st.DataObject) -> None:
    path = spare_entry / data.draw(st.sampled_from(sorted(FILES)))
    content = path.read_bytes()
    damaged = data.draw(
        st.one_of(
            st.none(),
            st.integers(0, max(len(content) - 1, 0)).map(lambda cut: content[:cut]),
            st.binary(min_size=1, max_size=9).map(lambda more: content + more),
            st.tuples(st.integers(0, max(len(content) - 1, 0)), st.integers(1, 255)).map(
                lambda at: bytes(byte ^ at[1] * (place == at[0]) for place, byte in enumerate(content))
            ),
        )
    )
    try:
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)
        assert is_whole(spare_entry) == (damaged == content)
    finally:
        path.write_bytes(content)
    assert is_whole(spare_entry)


@pytest.mark.parametrize(
    "record", [b"", b"\xff", b"[]", b"{}", b'{"files": 3}', b'{"files": {"graph": 35}}', b'{"files": {"graph": {}}}']
)
def test_a_damaged_record_is_seen(keep: Keep, record: bytes) -> None:
    entry = keep()
    assert entry is not None
    (entry / "entry.json").write_bytes(record)
    assert not is_whole(entry)
    assert_good(keep())


def test_a_large_file_is_taken_by_its_size(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "HASH_ON_OPEN", len(FILES["graph"]))
    entry = keep()
    assert entry is not None
    (entry / "weights").write_bytes(bytes(len(FILES["weights"])))
    assert keep(refuse) == entry
    (entry / "graph").write_bytes(bytes(len(FILES["graph"])))
    assert_good(keep())
    (entry / "weights").write_bytes(bytes(len(FILES["weights"]) - 1))
    assert_good(keep())


@pytest.mark.parametrize("foreign", ["a file", "an empty folder", "a folder of others", "a link"])
def test_what_lies_in_its_place_gives_way(engine: Path, keep: Keep, foreign: str) -> None:
    entry = keep()
    assert entry is not None
    shutil.rmtree(entry)
    if foreign == "a file":
        entry.write_bytes(b"mine")
    elif foreign == "a link":
        entry.symlink_to(engine)
    else:
        entry.mkdir()
        if foreign == "a folder of others":
            (entry / "other").mkdir()
            (entry / "other" / "file").write_bytes(b"other")
    assert keep() == entry
    assert_good(entry)
    assert names(engine) == [entry.name]


def test_a_full_disk_is_said_once(
    engine: Path, manifest: Manifest, keep: Keep, caplog: pytest.LogCaptureFixture
) -> None:
    assert keep(fail_to_write) is None
    assert names(engine) == []
    # It is not tried again for this network, of which every entry takes as much.
    assert keep(refuse) is None
    assert keep(refuse, batch=2) is None
    # Others are smaller, or fail alike.
    assert cached(engine, manifest, "text_encoder", "mine", {}, 2, fail_to_write) is None
    assert_good(cached(engine, manifest, "vae_decoder", "mine", {}, 2, write))
    assert_good(cached(engine, manifest, "unet", "another backend", {}, 2, write))
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert warning.getMessage() == (
        f"no cache in {engine / FOLDER} (No space left on device): the next start takes as long as this one"
    )


def test_another_processes_entry_serves_one_that_could_make_none(
    engine: Path, keep: Keep, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = keep()
    assert entry is not None
    entry.rename(tmp_path / "made elsewhere")
    assert keep(fail_to_write) is None
    (tmp_path / "made elsewhere").rename(entry)
    assert keep(refuse) == entry
    assert len(caplog.records) == 1
    assert names(engine) == [entry.name]


@pytest.mark.parametrize("space", [2, 0.5])
def test_a_disk_that_is_nearly_full_is_left_alone(
    engine: Path, manifest: Manifest, space: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {name: sum(record.bytes for record in network.files) for name, network in manifest.networks.items()}
    smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    free = space * sizes[largest] - 0.5
    assert space * sizes[smallest] <= free
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert cached(engine, manifest, largest, "mine", {}, space, refuse) is None
    assert names(engine) == []
    assert "No space left on device" in caplog.text
    # There is room for a smaller network, and for a backend that needs less.
    assert_good(cached(engine, manifest, smallest, "mine", {}, space, write))
    assert_good(cached(engine, manifest, largest, "lean", {}, space / 2, write))


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_other_errors_pass_and_leave_nothing(engine: Path, keep: Keep, error: BaseException) -> None:
    def make(folder: Path) -> None:
        write(folder)
        raise error

    with pytest.raises(type(error)):
        keep(make)
    assert names(engine) == []
    assert_good(keep())


def test_a_file_in_the_caches_place_is_no_error(engine: Path, keep: Keep, caplog: pytest.LogCaptureFixture) -> None:
    (engine / FOLDER).write_bytes(b"")
    assert keep(refuse) is None
    assert len(caplog.records) == 1


def test_two_may_make_the_same_at_once(engine: Path, keep: Keep, caplog: pytest.LogCaptureFixture) -> None:
    together = Barrier(4)

    def make(folder: Path) -> None:
        write(folder)
        together.wait(timeout=20)

    with ThreadPoolExecutor(4) as pool:
        entries = {future.result() for future in [pool.submit(keep, make) for _ in range(4)]}
    [entry] = entries
    assert_good(entry)
    assert names(engine) == [entry.name if entry else ""]
    assert not caplog.records


@pytest.mark.parametrize("before", ["nothing", "damaged"])
def test_one_that_comes_second_uses_the_first(engine: Path, keep: Keep, before: str) -> None:
    entry = keep()
    assert entry is not None
    (entry / "weights").unlink()
    if before == "nothing":
        shutil.rmtree(entry)

    def make(folder: Path) -> None:
        assert keep(write) == entry
        (folder / "graph").write_bytes(b"as good, but second")

    assert keep(make) == entry
    assert_good(entry)
    assert names(engine) == [entry.name]


@pytest.mark.parametrize("before", ["nothing", "damaged"])
def test_an_entry_that_somebody_has_got_stays(
    engine: Path, keep: Keep, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another maker finishes between the last look at the place and what is done to it."""
    first = keep()
    assert first is not None
    (first / "weights").unlink()
    if before == "nothing":
        shutil.rmtree(first)
    got: list[tuple[Path, int]] = []
    look = cache.is_whole

    def interrupted(entry: Path) -> bool:
        found = look(entry)
        made = (engine / FOLDER).exists() and any(path.name.startswith(".") for path in (engine / FOLDER).iterdir())
        if made and not found and not got:
            with monkeypatch.context() as patch:
                patch.setattr(cache, "is_whole", look)
                other = keep(write)
            assert_good(other)
            assert other is not None
            got.append((other, other.stat().st_ino))
        return found

    monkeypatch.setattr(cache, "is_whole", interrupted)
    mine = keep(write)
    if before == "nothing":
        # Nothing to look at: the place is taken at once.
        assert not got
    else:
        [(other, number)] = got
        assert (mine, mine.stat().st_ino if mine else 0) == (other, number)
    assert_good(mine)
    assert names(engine) == [first.name]


@pytest.fixture
def killed(engine: Path) -> Iterator[Path]:
    """What a process leaves that is killed while it makes an entry."""
    code = """
import sys, time
from pathlib import Path
from g4seg_engine import cache
from g4seg_engine.manifest import load_engine

def make(folder):
    (folder / "weights").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(60)

cache.WORTH_KEEPING = 0
engine = Path(sys.argv[1])
cache.cached(engine, load_engine(engine), "unet", "mine", {}, 2, make)
"""
    command = [sys.executable, "-c", code, str(engine)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().rstrip("\n"))
        process.send_signal(signal.SIGKILL)
    assert (folder / "weights").stat().st_size == 1000
    yield folder


def test_what_a_killed_process_left_is_deleted_after_a_day(engine: Path, keep: Keep, killed: Path) -> None:
    entry = keep()
    assert_good(entry)
    assert killed.exists()  # it may still be at work
    yesterday = killed.stat().st_mtime - 25 * 3600
    foreign = engine / FOLDER / ".a folder of the user"
    foreign.mkdir()
    for path in (killed, foreign):
        os.utime(path, (yesterday, yesterday))
    assert keep(refuse) == entry
    assert killed.exists()  # finding an entry is to be quick
    assert_good(keep(batch=2))
    assert not killed.exists()
    assert foreign.exists()


def test_an_overwritten_engine_starts_without_the_old_entries(
    engine: Path, keep: Keep, fill_engine: Callable[[Path], Manifest]
) -> None:
    assert keep() is not None
    with staged_engine(engine, overwrite=True) as staged:
        fill_engine(staged)
    assert not (engine / FOLDER).exists()
    again: Any = partial(cached, engine, load_engine(engine), "unet", "mine", {}, 2)
    assert_good(again(write))
