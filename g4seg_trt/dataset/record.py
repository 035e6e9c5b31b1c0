"""Records of what is done: JSON lines that a run appends to, each after the outputs of its image are whole.

A file begins every run with a line {"run", "settings", ..}; a line for an image holds its stem, what its outputs depend
on, its outputs with their bytes and its figures. A line {"withdrawn": stem} takes the earlier ones of that image back.
A line that a killed process left half-written does not count.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from g4seg_trt.atomic import reason
from g4seg_trt.errors import OutputError
from g4seg_trt.outputs import bytes_of


@dataclass(frozen=True)
class Key:
    """What the outputs of an image depend on.

    Attributes:
        image: its file, relative to the folder of the images.
        image_sha256: of the file.
        masks_sha256: of its masks and of the class names asked for.
        settings_sha256: of the settings of the run.
        engine_sha256: of the engine's manifest.
    """

    image: str
    image_sha256: str
    masks_sha256: str
    settings_sha256: str
    engine_sha256: str

    def differing(self, other: Key) -> tuple[str, ...]:
        """In words what is not the same."""
        mine, theirs = asdict(self), asdict(other)
        return tuple(_WORDS[name] for name in mine if mine[name] != theirs[name])


_BLOCK = 1 << 16

_RUN = b'{"run"'
"""What the line of a run begins with."""

_WORDS = {
    "image": "name of the image",
    "image_sha256": "image",
    "masks_sha256": "masks",
    "settings_sha256": "settings",
    "engine_sha256": "engine",
}


@dataclass(frozen=True)
class Record:
    """One finished image.

    Attributes:
        stem: of the image.
        key: what its outputs depend on.
        outputs: kind -> name of the file or folder relative to the output folder, and its bytes; None for a kind that
            an image without classes has no file of.
        details: figures, warnings and seconds, as JSON has them.
    """

    stem: str
    key: Key
    outputs: Mapping[str, tuple[str, int] | None]
    details: Mapping[str, Any] = field(default_factory=dict)

    def has(self, root: Path, kinds: tuple[str, ...]) -> bool:
        """Whether the outputs of these kinds, and the masks if they were written, are there with their bytes."""
        return all(
            kind in self.outputs and (self.outputs[kind] is None or self._is_whole(root, kind))
            for kind in {*kinds, *({"masks"} & set(self.outputs))}
        )

    def files(self, root: Path) -> list[Path]:
        """The outputs."""
        return [root / found[0] for found in self.outputs.values() if found is not None]

    def to_line(self) -> dict[str, Any]:
        """As a line holds it."""
        return {"stem": self.stem, "key": asdict(self.key), "outputs": dict(self.outputs), **self.details}

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Record:
        """The record of a line; raises KeyError, TypeError, ValueError or AttributeError if it holds none."""
        rest = dict(line)
        stem, key, outputs = rest.pop("stem"), Key(**rest.pop("key")), rest.pop("outputs")
        pairs = {kind: None if found is None else (str(found[0]), int(found[1])) for kind, found in outputs.items()}
        for kind, found in pairs.items():  # they are removed one day
            if found is not None and (PurePosixPath(found[0]).parts[:-1] != (kind,) or found[0].endswith("/..")):
                raise ValueError(f"{found[0]} is no output")
        return cls(stem, key, pairs, rest)

    def _is_whole(self, root: Path, kind: str) -> bool:
        found = self.outputs[kind]
        try:
            return found is not None and bytes_of(root / found[0]) == found[1]
        except OSError:
            return False


class _Run(NamedTuple):
    number: int
    settings: Mapping[str, Any] | None


def settings_digest(settings: Mapping[str, Any]) -> str:
    """sha256 of settings that JSON can hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode("ascii")).hexdigest()


class Records:
    """The records of an output folder: all of them to look into, one file to append to, from `begin` on.

    Looking and appending may go on in two threads. Use it as a context manager.

    Args:
        folder: the folder of the records, which exists.
        name: the file to append to, without its suffix.
        apart: names of files of runs that do other images than this one.

    Attributes:
        path: the file that is appended to.
        before: the settings of the latest run before this one, of those that are not apart; None if there is none.

    Raises:
        OutputError: if a file cannot be read or written.
    """

    _own: FileIO
    _size: int

    def __init__(self, folder: Path, name: str, apart: Collection[str] = ()) -> None:
        self.path = folder / f"{name}.jsonl"
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[int, int] | None] = {}
        latest: dict[str, int] = {}
        last = before = _Run(0, None)
        try:
            for path in sorted(folder.glob("*.jsonl")):
                run = self._index(path, latest)
                last = max(last, run, key=lambda one: one.number)
                if path.stem not in apart:
                    before = max(before, run, key=lambda one: one.number)
        except OSError as error:
            self.close()
            raise OutputError(f"cannot use the records in {folder}: {reason(error)}") from error
        self._number = last.number + 1
        self.before = before.settings

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Begin a run of these settings; raises OutputError."""
        try:
            self._own = self.path.open("ab+", buffering=0)
            self._files.append(self._own)
            self._size = _whole_lines(self._own)
        except OSError as error:
            raise OutputError(f"cannot use the records in {self.path.parent}: {reason(error)}") from error
        self._append({"run": self._number, "settings": dict(settings)})

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, stem: object) -> bool:
        """Whether an image had a record when the records were opened."""
        return self._places.get(str(stem)) is not None

    def __len__(self) -> int:
        return sum(place is not None for place in self._places.values())

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def find(self, stem: str) -> Record | None:
        """The record that an image had when the records were opened, None if it has none that counts."""
        place = self._places.get(stem)
        if place is None:
            return None
        file, offset = self._files[place[0]], place[1]
        try:
            file.seek(offset)
            return Record.of_line(json.loads(file.readline()))
        except OSError as error:
            raise OutputError(f"cannot read {file.name}: {reason(error)}") from error
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return None

    def was_withdrawn(self, stem: str) -> bool:
        """Whether the last word about an image, when the records were opened, was that its record is taken back.

        The run that did so was killed before it had another one: files of either may be there.
        """
        return stem in self._places and self._places[stem] is None

    def withdraw(self, stem: str) -> None:
        """Take back what is said about an image, before its outputs change; raises OutputError."""
        self._append({"withdrawn": stem})

    def add(self, record: Record) -> None:
        """Record a finished image; raises OutputError."""
        self._append(record.to_line())

    def _append(self, line: Mapping[str, Any]) -> None:
        # ASCII: a stem need not be valid Unicode.
        data = (json.dumps(line) + "\n").encode("ascii")
        try:
            written = self._own.write(data)
            if written != len(data):  # as a disk does that is all but full
                self._own.truncate(self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += written
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {reason(error)}") from error

    def _index(self, path: Path, latest: dict[str, int]) -> _Run:
        """Note where the lines of a file begin that count, `latest` run by run; returns the file's latest run."""
        file = path.open("rb")
        number = len(self._files)
        self._files.append(file)
        run, offset = _Run(0, None), 0
        for text in file:
            begin, offset = offset, offset + len(text)
            if not text.endswith(b"\n"):
                break
            try:
                line = json.loads(text)
                if "run" in line:
                    run = _Run(int(line["run"]), line["settings"])
                    continue
                withdrawn = "withdrawn" in line
                stem = line["withdrawn"] if withdrawn else line["stem"]
            except (ValueError, TypeError, KeyError):
                continue
            if run.number >= latest.get(stem, 0):
                latest[stem] = run.number
                self._places[stem] = None if withdrawn else (number, begin)
        return run


def latest_settings(folder: Path, name: str) -> dict[str, Mapping[str, Any]]:
    """The settings of the latest run of each file of records with this name (a glob pattern), by the file's name.

    Raises:
        OutputError: if one cannot be read.
    """
    found: dict[str, Mapping[str, Any]] = {}
    try:
        for path in sorted(folder.glob(f"{name}.jsonl")):
            with path.open("rb") as file:
                for text in file:
                    if text.startswith(_RUN) and text.endswith(b"\n"):
                        with suppress(ValueError, KeyError, TypeError):
                            found[path.stem] = dict(json.loads(text)["settings"])
    except OSError as error:
        raise OutputError(f"cannot read the records in {folder}: {reason(error)}") from error
    return found


def has_runs(folder: Path, name: str = "*") -> bool:
    """Whether a file of records with this name (a glob pattern) holds a run; raises OutputError."""
    try:
        for path in folder.glob(f"{name}.jsonl"):
            with path.open("rb") as file:
                if file.readline().startswith(_RUN):
                    return True
    except OSError as error:
        raise OutputError(f"cannot read the records in {folder}: {reason(error)}") from error
    return False


def _whole_lines(file: FileIO) -> int:
    """Cut off a last line that was left half-written; returns the bytes that stay."""
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        file.truncate(end)
    return end
