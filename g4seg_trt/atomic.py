"""Outputs appear whole or not at all: written under a temporary name in the same folder, then renamed.

Imports the standard library only.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from g4seg_engine.errors import first_line
from g4seg_trt.errors import OutputError

_LONGEST = 200
"""Characters of a reason: numpy quotes a whole header."""


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Check, before any work is done, that `path` can become an output file, or an output that is a folder.

    Raises:
        OutputError: if its folder does not exist or `path` is there and is not a regular file, or not a folder.
    """
    try:
        if "\0" in str(path):
            raise OutputError(f"cannot write {str(path)!r}: no file name holds a null character")
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
        # Renaming over /dev/null or a folder would replace or lose it.
        if path.exists() and not (path.is_dir() and not path.is_symlink() if folder else path.is_file()):
            raise OutputError(f"cannot write {path}: it exists and is not a {'folder' if folder else 'regular file'}")
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no permission to write to the folder {path.parent}")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends well and vanishes when it does not.

    Raises:
        OutputError: if `path` cannot be written (see `check_writable`), or the disk is full.
    """
    check_writable(path)
    temporary = _beside(path)
    try:
        try:
            with temporary.open("xb") as file:
                yield file
            temporary.replace(path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to write files into, which takes the name `path` when the block ends well and vanishes when it does not.

    A folder that has the name is removed. For a moment there is none, never a half one.

    Raises:
        OutputError: as `atomic_file`.
    """
    check_writable(path, folder=True)
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        remove_folder(path)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder with what is in it, if it is there: at once, for it takes a temporary name first.

    Raises:
        OSError: if it cannot be removed.
    """
    aside = _beside(path)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside)


def reason(error: Exception) -> str:
    """What the system says about a failed file operation, without the path and the number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = first_line(error)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _beside(path: Path) -> Path:
    """A temporary name in the same folder. It is short: a suffix on a name of 255 bytes would not fit."""
    return path.parent / f".g4seg-{secrets.token_hex(8)}.part"
