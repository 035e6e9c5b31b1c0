"""The masks of one image in files that are given one by one, each for a class that is named beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import MaskError
from g4seg_trt.masks import read_mask
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.gather import Chosen, named_maps
from g4seg_trt.update import BACKGROUND


@dataclass(frozen=True)
class NamedFiles:
    """A MaskSource.

    Attributes:
        files: class name -> a .png, .npy or .npz file; under "background" the background's own probability.
        table: the data set's classes, if it has them.
    """

    files: Mapping[str, Path]
    table: ClassTable | None = None

    def taken_for(self) -> tuple[str, str]:
        """Nothing: the suffix of each file says it."""
        return "", ""

    def digest(self) -> str:
        """Never called: nothing is recorded of an image that is refined by itself."""
        raise NotImplementedError

    def read(self) -> CoarseMasks:
        """See MaskSource."""
        classes = [name for name in self.files if name != BACKGROUND]
        if not classes:
            raise MaskError("no mask given beside that of the background")
        keys = {self._name(name): name for name in classes}
        background = BACKGROUND if BACKGROUND in self.files else None
        maps = {name: read_mask(path, name) for name, path in self.files.items()}
        return named_maps(maps, Chosen(keys, background), Naming(tuple(keys), self.table), Path("--mask"), {})

    def back(self) -> str | None:
        """None: the files are of g4seg-refine's own formats."""
        return None

    def write(self, path: Path, masks: CoarseMasks) -> None:
        """Never called, for there is nothing to give `back`."""
        raise NotImplementedError

    def _name(self, name: str) -> str:
        return name if self.table is None else self.table.named(name, "--mask").name
