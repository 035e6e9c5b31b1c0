"""The masks of one image in files that are given one by one, each for a class that is named beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from g4seg_trt.class_table import ClassTable
from g4seg_trt.dataset.mask_files import Rules, Size
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

    def read(self, size: Size | None = None, rules: Rules | None = None) -> CoarseMasks:
        """See MaskSource; raises MaskError also if two of the names are one class."""
        classes = [name for name in self.files if name != BACKGROUND]
        if not classes:
            raise MaskError("no mask given beside that of the background")
        keys: dict[str, str] = {}
        for name in classes:
            other = keys.setdefault(self._name(name), name)
            if other != name:
                raise MaskError(
                    f"--mask: {other!r} and {name!r} are both the class {self._name(name)!r}; give one mask for it"
                )
        background = BACKGROUND if BACKGROUND in self.files else None
        maps = ((name, read_mask(path, name)) for name, path in self.files.items())
        naming = Naming(tuple(keys), self.table, size, rules)
        return named_maps(maps, Chosen(keys, background), naming, Path("--mask"), {})

    def back(self) -> None:
        """None: there is a file for each class."""

    def write(self, path: Path, masks: CoarseMasks) -> None:
        """Never called, for there is nothing to give `back`."""
        raise NotImplementedError

    def _name(self, name: str) -> str:
        return name if self.table is None else self.table.named(name, "--mask").name
