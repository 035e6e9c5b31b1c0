from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from g4seg_engine import manifest as manifest_module
from g4seg_engine.build import record_file, staged_engine
from g4seg_engine.errors import EngineError, EngineIncompleteError, EngineMismatchError
from g4seg_engine.manifest import MANIFEST_FILE, FileRecord, Manifest, load_engine, read_manifest

Fill = Callable[[Path], Manifest]


def contents(directory: Path) -> dict[str, bytes | None]:
    """Every file below a folder by its path; folders are None."""
    return {
        str(path.relative_to(directory)): None if path.is_dir() else path.read_bytes() for path in directory.rglob("*")
    }


def test_a_finished_engine_takes_its_place(tmp_path: Path, fill_engine: Fill) -> None:
    with staged_engine(tmp_path / "new") as staged:
        assert staged.parent == tmp_path
        assert not (tmp_path / "new").exists()
        manifest = fill_engine(staged)
    assert load_engine(tmp_path / "new", verify=True) == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_others_may_read_the_engine(tmp_path: Path, fill_engine: Fill) -> None:
    before = os.umask(0o022)
    try:
        with staged_engine(tmp_path / "new") as staged:
            fill_engine(staged)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "new" / MANIFEST_FILE).stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, EngineError])
@pytest.mark.parametrize("existing", [False, True])
@settings(deadline=None, max_examples=10)
@given(steps=st.integers(0, 12))
def test_an_interrupted_build_changes_nothing(
    error: type[BaseException],
    existing: bool,
    steps: int,
    tmp_path_factory: pytest.TempPathFactory,
    fill_engine: Fill,
) -> None:
    parent = tmp_path_factory.mktemp("interrupted")
    if existing:
        (parent / "engine").mkdir()
        fill_engine(parent / "engine")
    before = contents(parent)
    with pytest.raises(error), staged_engine(parent / "engine", overwrite=True) as staged:
        # The build stops after any number of files, the manifest included.
        fill_engine(staged)
        for path in sorted(staged.iterdir(), key=lambda path: (path.name == MANIFEST_FILE, path.name))[steps:]:
            path.unlink()
        raise error
    assert contents(parent) == before


def test_a_build_without_a_manifest_is_not_an_engine(tmp_path: Path, fill_engine: Fill) -> None:
    with pytest.raises(EngineIncompleteError, match="half-built"), staged_engine(tmp_path / "new") as staged:
        fill_engine(staged)
        (staged / MANIFEST_FILE).unlink()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("limit", [0, 2**20])
def test_a_build_with_a_wrong_hash_keeps_the_older_engine(
    engine: Path, fill_engine: Fill, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    # A build checks large files too, which opening passes over.
    monkeypatch.setattr(manifest_module, "HASH_ON_OPEN", limit)
    before = contents(engine.parent)
    with pytest.raises(EngineMismatchError), staged_engine(engine, overwrite=True) as staged:
        fill_engine(staged)
        path = staged / "unet.onnx"
        path.write_bytes(path.read_bytes()[::-1])
    assert contents(engine.parent) == before


def test_a_build_with_an_unlisted_file_is_refused(tmp_path: Path, fill_engine: Fill) -> None:
    with (
        pytest.raises(EngineError, match=r"does not list left/over\.bin"),
        staged_engine(tmp_path / "new") as staged,
    ):
        fill_engine(staged)
        (staged / "left").mkdir()
        (staged / "left" / "over.bin").write_bytes(b"x")
    assert contents(tmp_path) == {}


def test_an_existing_engine_is_replaced_only_at_the_end(engine: Path, fill_engine: Fill) -> None:
    before = contents(engine)
    old = read_manifest(engine)
    (engine / "tokenizer.json").write_bytes(b"damaged")  # a damaged engine is an engine all the same
    damaged = contents(engine)
    with staged_engine(engine, overwrite=True) as staged:
        new = fill_engine(staged)
        assert contents(engine) == damaged
    assert load_engine(engine, verify=True) == new
    assert old.files() == new.files()
    assert contents(engine).keys() == before.keys()
    assert [path.name for path in engine.parent.iterdir()] == [engine.name]


def test_an_existing_engine_is_kept_without_overwrite(engine: Path) -> None:
    before = contents(engine.parent)
    with pytest.raises(EngineError, match="exists: use --overwrite"), staged_engine(engine):
        pytest.fail("the block must not run")
    assert contents(engine.parent) == before


@pytest.mark.parametrize(
    "content",
    [None, b'{"name": "my web page", "icons": []}', b'{"schema": 1, "netw', b"[1]", b'{"schema": 1}'],
)
def test_a_directory_that_is_no_engine_is_never_replaced(tmp_path: Path, content: bytes | None) -> None:
    target = tmp_path / "documents"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    if content is not None:
        (target / MANIFEST_FILE).write_bytes(content)
    before = contents(tmp_path)
    with (
        pytest.raises(EngineError, match="not empty and no engine directory"),
        staged_engine(target, overwrite=True),
    ):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == before


def test_foreign_files_in_an_engine_are_never_deleted(engine: Path, fill_engine: Fill) -> None:
    (engine / "notes").mkdir()
    (engine / "notes" / "results.csv").write_text("1,2,3")
    before = contents(engine.parent)
    with (
        pytest.raises(EngineError, match=r"foreign files, move them first: notes/results\.csv"),
        staged_engine(engine, overwrite=True),
    ):
        pytest.fail("the block must not run")
    (engine / "notes" / "results.csv").unlink()
    # One that appears while the build runs is as safe.
    with pytest.raises(EngineError, match=r"late\.csv"), staged_engine(engine, overwrite=True) as staged:
        fill_engine(staged)
        (engine / "late.csv").write_text("1,2,3")
    before = {**before, f"{engine.name}/late.csv": b"1,2,3"}
    before.pop(f"{engine.name}/notes/results.csv")
    assert contents(engine.parent) == before


def test_an_engine_of_a_newer_schema_may_be_replaced(tmp_path: Path, fill_engine: Fill) -> None:
    target = tmp_path / "newer"
    target.mkdir()
    (target / MANIFEST_FILE).write_text('{"schema": 2, "networks": [{"graph": {"file": "all.bin"}}]}')
    (target / "all.bin").write_bytes(b"x")
    with staged_engine(target, overwrite=True) as staged:
        manifest = fill_engine(staged)
    assert load_engine(target) == manifest
    assert not (target / "all.bin").exists()


def test_an_empty_directory_counts_as_none(tmp_path: Path, fill_engine: Fill) -> None:
    (tmp_path / "new").mkdir()
    with staged_engine(tmp_path / "new") as staged:
        manifest = fill_engine(staged)
    assert load_engine(tmp_path / "new") == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_link_to_an_engine_stays_a_link(engine: Path, tmp_path: Path, fill_engine: Fill) -> None:
    link = tmp_path / "link"
    link.symlink_to(engine, target_is_directory=True)
    (engine / "unet.onnx").write_bytes(b"damaged")
    with staged_engine(link, overwrite=True) as staged:
        assert staged.parent == engine.parent
        fill_engine(staged)
    assert link.is_symlink()
    assert load_engine(link, verify=True) == load_engine(engine)


def test_wrong_outputs_are_refused_before_the_work(tmp_path: Path, engine: Path) -> None:
    for output, message in [
        (tmp_path / "no" / "such", r"the folder .*no does not exist: create it first"),
        (engine / MANIFEST_FILE, r"manifest\.json is a file"),
    ]:
        with pytest.raises(EngineError, match=message), staged_engine(output, overwrite=True):
            pytest.fail("the block must not run")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EngineError, match="cannot write into the folder"), staged_engine(tmp_path / "new"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize(
    ("error", "seen"),
    [(OSError(16, "Device or resource busy"), EngineError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failing_rename_brings_the_older_engine_back(
    engine: Path,
    fill_engine: Fill,
    monkeypatch: pytest.MonkeyPatch,
    failing: int,
    error: BaseException,
    seen: type[BaseException],
) -> None:
    before = contents(engine.parent)
    rename, calls = Path.rename, 0

    def rename_but_once(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise error
        return rename(path, target)

    with pytest.raises(seen), staged_engine(engine, overwrite=True) as staged:
        fill_engine(staged)
        monkeypatch.setattr(Path, "rename", rename_but_once)
    assert calls >= failing
    assert contents(engine.parent) == before


def test_an_older_engine_that_cannot_be_deleted_is_named(
    engine: Path, fill_engine: Fill, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with staged_engine(engine, overwrite=True) as staged:
        manifest = fill_engine(staged)
    assert load_engine(engine, verify=True) == manifest
    assert "the replaced engine could not be deleted" in caplog.text


def test_record_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tensorrt" / "unet.plan"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    # The first test vector of the SHA-256 standard.
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record_file(path) == FileRecord("unet.plan", sha256, 3)
    assert record_file(path, tmp_path) == FileRecord("tensorrt/unet.plan", sha256, 3)
