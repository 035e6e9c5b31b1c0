"""Where a run over a data set writes to: one folder of files for each kind of output."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from g4seg_trt.atomic import reason, remove_folder
from g4seg_trt.errors import OutputError
from g4seg_trt.masks.class_folder import check_replaceable
from g4seg_trt.outputs import folder_files

PROBABILITY, LABEL, OVERLAY, MATCHES, MASKS = "probability", "label", "overlay", "matches", "masks"
KINDS = (PROBABILITY, LABEL, OVERLAY, MATCHES, MASKS)
"""The folders of outputs; MASKS holds the refined masks in the layout that came in: for each image a file or folder."""

ALWAYS = (PROBABILITY, LABEL)
"""What every run writes."""

_LEFTOVER = re.compile(r"\.g4seg-[0-9a-f]{16}\.part")
"""Temporary files of g4seg_trt.atomic."""

_WRITTEN_BY_THEN = 3600.0
"""Seconds after its last change that a half-written file is one for good."""


@dataclass(frozen=True)
class Layout:
    """The files of a run.

    Attributes:
        root: the output folder.
        overlay: whether pictures before | after are asked for.
        matches: whether pictures of the matches are asked for.
        named: whether the probabilities of a single class keep its name: .npz for any number of classes.
    """

    root: Path
    overlay: bool = False
    matches: bool = False
    named: bool = False

    @property
    def records(self) -> Path:
        """The folder of the records of what is done."""
        return self.root / "records"

    def kinds(self) -> tuple[str, ...]:
        """The kinds of output that are asked for; MASKS comes where each image's masks came by themselves."""
        return (*ALWAYS, *((OVERLAY,) if self.overlay else ()), *((MATCHES,) if self.matches else ()))

    def folders(self) -> list[Path]:
        """The folders of the kinds that are asked for."""
        return [self.root / kind for kind in self.kinds()]

    def all_folders(self) -> list[Path]:
        """The folders of every kind."""
        return [self.root / kind for kind in KINDS]

    def file(self, kind: str, stem: str, classes: int) -> Path:
        """The file of one kind but MASKS for an image of this many classes."""
        npz = kind == PROBABILITY and (self.named or classes != 1)
        return self.root / kind / f"{stem}{'.npz' if npz else '.png'}"

    def masks(self, name: str) -> Path:
        """What holds the refined masks of an image whose coarse ones have this name."""
        return self.root / MASKS / name

    def results(self) -> Iterator[Path]:
        """The files that lie in the folders, whoever made them; raises OutputError if one cannot be listed."""
        try:
            for folder in self.all_folders():
                for path in folder.iterdir() if folder.is_dir() else ():
                    if path.name.startswith("."):
                        continue
                    if path.is_file():
                        yield path
                    elif folder.name == MASKS and path.is_dir():
                        yield from folder_files(path)
        except OSError as error:
            raise OutputError(f"cannot read {self.root}: {reason(error)}") from error

    def remove(self, path: Path) -> None:
        """Remove an output, if it is there; a folder only among the MASKS, and if it holds nothing but masks.

        Raises:
            OutputError: if it cannot be removed.
        """
        try:
            if path.parent == self.root / MASKS and path.is_dir() and not path.is_symlink():
                check_replaceable(path)
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {reason(error)}") from error

    def remove_leftovers(self) -> None:
        """Remove half-written files of a run that was killed. Only for who has the folder for himself.

        What cannot be listed or removed stays: it is in nobody's way.
        """
        for folder in (self.root, *self.all_folders(), self.records):
            for path in _entries(folder):
                if _LEFTOVER.fullmatch(path.name) and (folder != self.root or _is_old(path)):
                    with suppress(OSError):
                        (shutil.rmtree if path.is_dir() else os.unlink)(path)


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, nothing if it cannot be listed."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _is_old(path: Path) -> bool:
    """Whether nobody writes a file any more: a run that has given the folder back still writes its reports there."""
    try:
        return time.time() - path.stat().st_mtime > _WRITTEN_BY_THEN
    except OSError:
        return False
