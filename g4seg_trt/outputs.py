"""Where outputs may go: checked before any computing, so that a refused run has written nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from g4seg_trt.atomic import reason
from g4seg_trt.errors import OutputError


def check_distinct(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that no output is an input and that no two outputs are the same file.

    Args:
        outputs: the files that a run will write.
        inputs: the files that it reads.

    Raises:
        OutputError: naming the output.
    """
    read = {identity(path): path for path in inputs}
    seen: set[object] = set()
    for path in outputs:
        this = identity(path)
        if this in read:
            raise OutputError(f"cannot write {path}: it is the input {read[this]}; choose another name")
        if this in seen:
            raise OutputError(f"cannot write {path}: another output has the same name")
        seen.add(this)


def check_folder(folder: Path) -> None:
    """Check that an output folder is there or can be made in a folder that is; raises OutputError."""
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"cannot write to {folder}: it is a file, expected a folder")
        if not folder.exists() and not folder.parent.is_dir():
            raise OutputError(f"cannot make {folder}: the folder {folder.parent} does not exist; create it first")
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write to {folder}: {reason(error)}") from error


def make_folders(folders: Iterable[Path]) -> None:
    """Make folders and their parents; raises OutputError."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder}: {reason(error)}") from error


def folder_files(folder: Path) -> list[Path]:
    """The files in a folder and below it, none if it cannot be read."""
    try:
        return [path for path in folder.rglob("*") if path.is_file()]
    except OSError:
        return []


def identity(path: Path) -> object:
    """Equal for all names of one file: links, and upper case where the file system does not tell it apart."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return os.path.normcase(os.path.realpath(path))
    return status.st_dev, status.st_ino


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder but hidden ones; raises OSError, as if it is not there."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.iterdir() if not file.name.startswith("."))
