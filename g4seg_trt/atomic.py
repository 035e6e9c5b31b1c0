"""Outputs appear whole or not at all: written under a temporary name in the same folder, then renamed.

Imports the standard library only.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from g4seg_trt.errors import OutputError


def check_writable(path: Path) -> None:
    """Check, before any work is done, that `path` can become an output file.

    Raises:
        OutputError: if its folder does not exist or `path` is there and is not a regular file.
    """
    try:
        if "\0" in str(path):
            raise OutputError(f"cannot write {str(path)!r}: no file name holds a null character")
        if not path.parent.is_dir():
            raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
        # Renaming over /dev/null or a folder would replace or lose it.
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write {path}: it exists and is not a regular file")
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
    # A short name of its own: a suffix on a name of 255 bytes would not fit.
    temporary = path.parent / f".g4seg-{secrets.token_hex(8)}.part"
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


def reason(error: Exception) -> str:
    """What the system says about a failed file operation, without the path and the number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
