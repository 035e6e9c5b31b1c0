"""Write an engine directory so that an interrupted build is never taken for a finished one."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from g4seg_engine import codec
from g4seg_engine.cache import FOLDER as CACHE
from g4seg_engine.errors import EngineError
from g4seg_engine.manifest import MANIFEST_FILE, FileRecord, NetworkRecord, file_sha256, load_engine
from g4seg_engine.spec import NetworkSpec

logger = logging.getLogger(__name__)


@contextmanager
def staged_engine(output: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory beside `output` that takes its place when the block ends well.

    It does so only if the block wrote a manifest, every hash agrees and no unlisted file lies in it. An older
    engine at `output` is kept until then, and kept if the block fails or is interrupted; the temporary
    directory is deleted. (A killed process leaves a ``.g4seg-*.partial`` directory, to be deleted by hand.)

    Args:
        output: the engine directory to write. Its parent must exist. An empty directory counts as none.
        overwrite: replace an engine that is there.

    Yields:
        The directory to write into.

    Raises:
        EngineError: `output` may not be written; checked before the block runs.
        EngineIncompleteError: the block wrote no manifest, or a file it lists is missing.
        EngineMismatchError: a file differs from its record.
    """
    check_output(output, overwrite=overwrite)
    shown, target = Path(output), Path(output).resolve()
    staged = _sibling(target, "partial")
    try:
        _make_directory(staged, shown)
        yield staged
        load_engine(staged, verify=True)
        if unlisted := _unlisted(staged):
            raise EngineError(f"engine {shown}: its manifest does not list {', '.join(unlisted)}")
        check_output(output, overwrite=overwrite)
        _move_into_place(staged, target, shown)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check_output(output: str | Path, *, overwrite: bool = False) -> None:
    """Check that an engine may be written to `output`, as `staged_engine` does: before work that takes long.

    Raises:
        EngineError: its folder is missing, or something is there that may not be replaced.
    """
    shown, target = Path(output), Path(output).resolve()
    if not target.parent.is_dir():
        raise EngineError(f"the folder {shown.parent} does not exist: create it first")
    if not target.exists():
        return
    if not target.is_dir():
        raise EngineError(f"{shown} is a file: choose another output directory")
    if not any(target.iterdir()):
        return
    if not _is_engine(target):
        raise EngineError(f"{shown} is not empty and no engine directory: choose another one")
    if not overwrite:
        raise EngineError(f"engine {shown} exists: use --overwrite to replace it, or another directory")
    if unlisted := _unlisted(target):
        raise EngineError(f"engine {shown} also holds foreign files, move them first: {', '.join(unlisted)}")


def record_file(path: Path, directory: Path | None = None) -> FileRecord:
    """The record of a finished file.

    Args:
        path: the file.
        directory: the engine directory that holds it; the file's own folder unless given.
    """
    relative = path.relative_to(directory or path.parent)
    return FileRecord(relative.as_posix(), file_sha256(path), path.stat().st_size)


def network_record(
    spec: NetworkSpec, files: Iterable[Path], *, opset: int, precision: str, parity: Mapping[str, Any]
) -> NetworkRecord:
    """The record of a finished network.

    Args:
        spec: what was exported; names, shapes and batch range are taken from it.
        files: the graph first, then its external data, all in the engine directory itself.
        opset: ONNX opset of the graph.
        precision: what the graph computes in, one of PRECISIONS.
        parity: figures of the comparison with torch, plain JSON.
    """
    return NetworkRecord(
        files=tuple(record_file(path) for path in files),
        opset=opset,
        precision=precision,
        inputs=spec.inputs,
        outputs=spec.outputs,
        min_batch=spec.min_batch,
        max_batch=spec.max_batch,
        parity=dict(parity),
    )


def _is_engine(directory: Path) -> bool:
    data = _raw_manifest(directory)
    return isinstance(data, dict) and "schema" in data and "networks" in data


def _unlisted(directory: Path) -> list[str]:
    """The files below `directory` that its manifest, of whatever schema, does not name."""
    listed = {MANIFEST_FILE, *_named_files(_raw_manifest(directory))}
    found = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    foreign = (path.as_posix() for path in found if path.parts[0] != CACHE)
    return sorted(file for file in foreign if file not in listed)


def _named_files(data: object) -> Iterator[str]:
    children: Iterable[object] = ()
    if isinstance(data, dict):
        if isinstance(data.get("file"), str):
            yield data["file"]
        children = data.values()
    elif isinstance(data, list):
        children = data
    for child in children:
        yield from _named_files(child)


def _raw_manifest(directory: Path) -> object:
    try:
        return codec.parse((directory / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _make_directory(staged: Path, shown: Path) -> None:
    try:
        staged.mkdir()
    except OSError as error:
        raise EngineError(f"cannot write into the folder {shown.parent}: {error.strerror}") from error


def _move_into_place(staged: Path, target: Path, shown: Path) -> None:
    old = _sibling(target, "old")
    try:
        # A rename does not replace a directory that holds files, so the older engine steps aside.
        if target.exists():
            target.rename(old)
        staged.rename(target)
    except BaseException as error:
        # Whatever stopped it, the older engine comes back.
        if old.exists() and not target.exists():
            old.rename(target)
        if isinstance(error, OSError):
            raise EngineError(f"cannot move the finished engine to {shown}: {error.strerror}") from error
        raise
    if old.exists():
        try:
            shutil.rmtree(old)
        except OSError as error:
            logger.warning("the replaced engine could not be deleted from %s: %s", old, error.strerror)


def _sibling(target: Path, suffix: str) -> Path:
    # Beside the target: a rename stays on one file system. (mkdtemp would make it unreadable to others.)
    return target.parent / f".g4seg-{os.getpid()}-{os.urandom(4).hex()}.{suffix}"
