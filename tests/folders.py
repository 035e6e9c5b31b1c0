"""Data sets on the disk: where their parts lie, and what lies in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataFolder:
    """images/STEM.png with masks and truth of the same names; the output goes beside them."""

    root: Path
    stems: tuple[str, ...]

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    @property
    def truth(self) -> Path:
        return self.root / "truth"

    @property
    def output(self) -> Path:
        return self.root / "out put"


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outputs(folder: Path) -> dict[str, bytes]:
    """The outputs of a run by their names, without records and locks."""
    return {name: data for name, data in files(folder).items() if not name.startswith((".", "records/"))}
