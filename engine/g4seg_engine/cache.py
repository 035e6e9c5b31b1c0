"""What a backend keeps of its own making in an engine directory, so that its next start is a short one.

An entry is a folder of files below ``cache/``. It is made beside its place and renamed, so that an interrupted
process leaves none; a process that finds one there uses it. Entries are named after a hash of their key: what they
were made from, with what and for which processor. They are not a part of the engine: the manifest does not list
them, and deleting them costs only time.

Whoever uses an entry checks it as an engine directory is checked: the size of every file, and the sha256 of files up
to HASH_ON_OPEN bytes. Weights larger than that are taken by their size: to read them would cost what an entry saves.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from g4seg_engine.manifest import HASH_ON_OPEN, file_sha256
from g4seg_engine.processor import processor_hash
from g4seg_engine.records import Manifest

logger = logging.getLogger(__name__)

FOLDER = "cache"
"""The folder of entries in an engine directory."""

WORTH_KEEPING = 32 * 2**20
"""Networks with fewer bytes than this are ready as fast without an entry."""

Keep = Callable[[Mapping[str, Any], float, Callable[[Path], None]], "Path | None"]
"""``cached`` with all but its last three arguments given, which a backend fills in."""

_RECORD = "entry.json"

_LEFTOVER = re.compile(r"\..+\.\d+\.[0-9a-f]{8}")
_LEFTOVER_AGE = 24 * 3600
"""Seconds after which an unfinished entry is one that nobody finishes."""

_refused: set[tuple[Path, str, str]] = set()
"""Engine directory, backend and network of what this process could not keep: not tried again."""

_said: set[tuple[Path, str]] = set()
"""Folders and what was wrong there: said once."""

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
"""What renaming a folder gives where something lies in its place."""


def cached(
    directory: Path,
    manifest: Manifest,
    network: str,
    backend: str,
    key: Mapping[str, Any],
    space: float,
    make: Callable[[Path], None],
) -> Path | None:
    """The folder of an entry, made now if there is none that fits.

    Args:
        directory: the engine directory.
        manifest: its manifest.
        network: what the entry is made of; the hashes of its files become a part of the key.
        backend: whose entry it is.
        key: whatever else the entry depends on, plain JSON: versions, precision, batch size. The processor is added.
        space: times the bytes of its network that an entry takes, about: so much must be free before it is made.
        make: writes the entry's files into the folder that it is given. An OSError says that it cannot be kept; what
            else it raises is passed on.

    Returns:
        The folder, or None where an entry is not worth its while or cannot be written. That is logged once for each
        engine directory and reason, and not tried again for this network.
    """
    files = manifest.networks[network].files
    size = sum(record.bytes for record in files)
    if size < WORTH_KEEPING:
        return None
    whole = {**key, "files": [record.sha256 for record in files], "processor": processor_hash()}
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    entry = directory / FOLDER / f"{backend}-{network}-{digest}"
    if is_whole(entry):
        return entry
    refusal = (directory.resolve(), backend, network)
    if refusal in _refused:
        return None
    try:
        _make(entry, whole, space * size, make)
    except OSError as error:
        # Two processes may finish at once: the other's entry is as good.
        if not is_whole(entry):
            _refused.add(refusal)
            reason = str(error.strerror or error)
            _warn(entry.parent, f"no cache in {entry.parent} ({reason}): the next start takes as long as this one")
            return None
    return entry


def say_unusable(entry: Path, reason: object) -> None:
    """Log, once for each entry, that it is whole but cannot be used, and that the graph itself takes its place."""
    _warn(entry, f"{reason}; using the graph itself: delete {entry} to have it made again")


def is_whole(entry: Path) -> bool:
    """Whether an entry is there with every file as it was made (see above). A file more does no harm."""
    try:
        files = json.loads((entry / _RECORD).read_bytes())["files"]
        return all(_as_recorded(entry / name, record) for name, record in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def cache_bytes(directory: Path) -> dict[str, int]:
    """What the entries of an engine directory take on the disk, by backend."""
    found: dict[str, int] = {}
    for path in sorted((directory / FOLDER).glob("*/*")):
        backend = path.parent.name.partition("-")[0]
        if path.is_file() and not backend.startswith("."):
            found[backend] = found.get(backend, 0) + path.stat().st_size
    return found


def _warn(where: Path, message: str) -> None:
    said = (where.resolve(), message)
    if said not in _said:
        _said.add(said)
        logger.warning("%s", message)


def _make(entry: Path, key: Mapping[str, Any], space: float, make: Callable[[Path], None]) -> None:
    """Make an entry beside its place and move it there."""
    staged = _beside(entry)
    try:
        staged.mkdir(parents=True)
        _delete_leftovers(entry.parent)
        if shutil.disk_usage(staged).free < space:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        make(staged)
        files = {path.name: _record(path) for path in staged.iterdir()}
        text = json.dumps({"key": key, "files": files}, indent=1)
        (staged / _RECORD).write_text(f"{text}\n", encoding="utf-8")
        _put(staged, entry)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _record(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    return {"bytes": size} | ({"sha256": file_sha256(path)} if size <= HASH_ON_OPEN else {})


def _as_recorded(path: Path, record: Mapping[str, Any]) -> bool:
    # A file of another size need not be read.
    return path.is_file() and path.stat().st_size == record["bytes"] and _record(path) == record


def _put(staged: Path, entry: Path) -> None:
    """Move a finished entry to its place, unless another's whole one is there: that may be in use already."""
    while True:
        try:
            staged.rename(entry)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return
        if is_whole(entry):
            return
        _move_away(entry)


def _move_away(entry: Path) -> None:
    """Delete a damaged entry, or whatever is in its place, in one step for everybody else."""
    aside = _beside(entry)
    try:
        entry.rename(aside)
    except FileNotFoundError:
        return
    if is_whole(aside):
        # Another process was faster: it has deleted the damaged one and put its own there.
        try:
            aside.rename(entry)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()


def _delete_leftovers(folder: Path) -> None:
    """Delete what killed processes left unfinished."""
    for path in folder.iterdir():
        try:
            left = bool(_LEFTOVER.fullmatch(path.name)) and time.time() - path.stat().st_mtime > _LEFTOVER_AGE
        except FileNotFoundError:  # finished just now
            continue
        if left:
            shutil.rmtree(path, ignore_errors=True)


def _beside(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.{os.getpid()}.{os.urandom(4).hex()}")
