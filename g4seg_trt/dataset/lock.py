"""One run for each output folder: a lock that the system takes back from a process that dies."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from g4seg_trt.atomic import reason
from g4seg_trt.errors import OutputError

LOCK = ".lock"

_PATIENCE = 30.0
"""Seconds to wait for another shard, which has the folder for itself while it starts."""

_REMEDY = "wait until it ends, or choose another --output"

Shard = tuple[int, int]


@contextmanager
def locked(root: Path, shard: Shard | None, alone: Callable[[], None]) -> Iterator[None]:
    """Hold an output folder: for itself, or as one shard beside the other shards of the same number.

    Systems without fcntl (Windows) have no such lock: nothing keeps two runs apart there.

    Args:
        root: the folder, which exists.
        shard: (i, n) for the i-th of n.
        alone: called first, while no other process has the folder; a shard that joins others leaves it out.

    Raises:
        OutputError: if another run has the folder; names its process.
    """
    if find_spec("fcntl") is None:
        alone()
        yield
        return
    if shard is None:
        with _opened(root / LOCK) as whole:
            if not _take(whole, shared=False):
                raise _busy(root, _holder(whole))
            _sign(whole, None)
            alone()
            try:
                yield
            finally:
                _clear(whole)
        return
    with _opened(root / f"{LOCK}-{shard[0]}-of-{shard[1]}") as own, _opened(root / LOCK) as whole:
        if not _take(own, shared=False):
            raise _busy(root, _holder(own))
        _sign(own, shard)
        _join(whole, root, shard, alone)
        try:
            yield
        finally:
            _clear(own)


@contextmanager
def in_turn(root: Path, shard: Shard | None) -> Iterator[None]:
    """Hold a folder that is `locked` for itself for a moment: of shards that start together one after the other.

    Raises:
        OutputError: if another shard does not let go of it.
    """
    if shard is None or find_spec("fcntl") is None:
        yield
        return
    with _opened(root / f"{LOCK}-turn") as turn:
        deadline = time.monotonic() + _PATIENCE
        while not _take(turn, shared=False):
            if time.monotonic() > deadline:
                raise OutputError(f"{root}: another shard has been starting for {_PATIENCE:.0f} s; try again")
            time.sleep(0.02)
        yield


def check_free(root: Path, shard: Shard | None) -> None:
    """Check that no other run has an output folder, without leaving anything in it; raises OutputError as `locked`."""
    name = LOCK if shard is None else f"{LOCK}-{shard[0]}-of-{shard[1]}"
    if find_spec("fcntl") is None or not (root / name).is_file():
        return
    with _opened(root / name) as descriptor:
        if not _take(descriptor, shared=False):
            raise _busy(root, _holder(descriptor))


def _join(whole: int, root: Path, shard: Shard, alone: Callable[[], None]) -> None:
    """Share the folder's lock with the other shards, once the first of them has made the folder ready."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        if _take(whole, shared=False):
            _sign(whole, shard)
            alone()
        # Another shard may come in between: turning one kind of lock into the other gives it up for a moment.
        if _take(whole, shared=True):
            break
        holder = _holder(whole)
        if holder.get("shards", 0) is None or time.monotonic() > deadline:
            raise _busy(root, holder)
        time.sleep(0.02)
    shards = _holder(whole).get("shards")
    if shards != shard[1]:
        raise OutputError(f"{root} is being written by a run in {shards} shards, this is one of {shard[1]}: {_REMEDY}")


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # which also gives the lock back


def _take(descriptor: int, *, shared: bool) -> bool:
    """Whether the lock could be had at once."""
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OutputError(
            f"the output folder cannot be locked ({reason(error)}): choose one on a file system that has locks"
        ) from error
    return True


def _sign(descriptor: int, shard: Shard | None) -> None:
    """Write down who has the lock, for the message of those that are refused."""
    holder = {"process": os.getpid(), "host": socket.gethostname(), "shards": shard[1] if shard else None}
    _clear(descriptor)
    try:
        os.pwrite(descriptor, json.dumps(holder).encode("ascii"), 0)
    except OSError as error:
        raise OutputError(f"cannot write the output folder's lock: {reason(error)}") from error


def _clear(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)


def _holder(descriptor: int) -> dict[str, Any]:
    """What the holder of the lock wrote down, empty if it has not come to that yet."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _busy(root: Path, holder: dict[str, Any]) -> OutputError:
    process = holder.get("process")
    here = holder.get("host") == socket.gethostname()
    who = f" (process {process}{'' if here else ' on ' + str(holder.get('host'))})" if process is not None else ""
    return OutputError(f"{root} is being written by another run{who}: {_REMEDY}")
