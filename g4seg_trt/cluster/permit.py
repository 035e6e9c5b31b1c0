"""The permit of a run on many workers: a file among the records that says whether they may go on.

Every worker has to see the output folder anyway. That it finds this file there proves that it is the same folder; the
file emptied tells the workers to end, and without it they write nothing more, so that those of a run that was killed
leave the folder to the next one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from g4seg_trt.atomic import reason
from g4seg_trt.errors import OutputError


@dataclass(frozen=True)
class Permit:
    """Looked at by the workers, between images.

    Attributes:
        path: its file, which is removed with the leftovers of a run that was killed.
    """

    path: Path

    @classmethod
    @contextmanager
    def issue(cls, folder: Path) -> Iterator[Permit]:
        """A permit in a folder, until the block ends; raises OutputError if it cannot be written."""
        permit = cls(folder / _name(secrets.token_bytes(16)))
        try:
            permit.path.write_bytes(b"1")
        except OSError as error:
            raise OutputError(f"cannot write {permit.path}: {reason(error)}") from error
        try:
            yield permit
        finally:
            with suppress(OSError):
                permit.path.unlink(missing_ok=True)

    def recall(self) -> None:
        """Ask the workers to end after what is in flight."""
        with suppress(OSError):
            self.path.write_bytes(b"")

    def is_valid(self) -> bool:
        """Whether what is in flight may be written."""
        return self.path.is_file()

    def has_ended(self) -> bool:
        """Whether no other image may be begun."""
        try:
            return self.path.stat().st_size == 0
        except OSError:
            return True

    @contextmanager
    def attempt(self, task: int) -> Iterator[int]:
        """Yields how often a task has been begun, with this time: more than once if workers died over it."""
        marks = self.path.with_name(_name(f"{self.path.name} {task}".encode()))
        try:
            with marks.open("ab") as file:
                file.write(b"1")
            count = marks.stat().st_size
        except OSError:  # a full disk; writing the outputs will say so
            count = 1
        yield count
        with suppress(OSError):
            marks.unlink(missing_ok=True)


def _name(seed: bytes) -> str:
    """A name as temporary files of outputs have it."""
    return f".g4seg-{hashlib.sha256(seed).hexdigest()[:16]}.part"
