"""What tests of all formats need to know of a file: how it is made and loaded, and where the map of one class is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.formats import FORMATS, Format
from tests.masks.dict_files import Array

HEIGHT, WIDTH = 7, 11
TABLE = ClassTable(
    "pets",
    tuple(ClassEntry(number, name, name, number) for number, name in enumerate(("cat", "dog", "cow"), start=1)),
    background=True,
)
ALL = Naming(None, TABLE)
DOG = Naming(("dog",), TABLE)


@dataclass(frozen=True)
class Case:
    """A file of a format.

    Attributes:
        format: its name.
        file: what the file or folder is called.
        save: writes one as its authors' programs do. The class asked for is the dog.
        load: path -> what those programs find in it, in plain types.
        dog: what is loaded -> the dog's map as probabilities, [H,W].
        erase: takes the dog's map out of what is loaded, and all that follows from it.
        derived: takes out what a writer makes anew.
        naming: whose classes they are.
        step: of the values stored.
        rounding: of values that only pass through; what came as float64 has been a float32.
        hard: the least refined value that is written as 1, None where values are soft.
        free: what is loaded -> where the dog may come, bool [H,W]; None for anywhere.
    """

    format: str
    file: str
    save: Callable[[Path], Any]
    load: Callable[[Path], Any]
    dog: Callable[[Any], Array]
    erase: Callable[[Any], object]
    derived: Callable[[Any], object] = lambda _: None
    naming: Naming = ALL
    step: float = 1e-7
    rounding: float = 6e-8
    hard: float | None = None
    free: Callable[[Any], Array] | None = None

    def called(self, **changes: Any) -> Naming:
        """`naming` with changes."""
        return replace(self.naming, **changes)

    def through(
        self,
        source: Path,
        target: Path,
        naming: Naming,
        change: Callable[[CoarseMasks], CoarseMasks] = lambda masks: masks,
    ) -> None:
        """Read all that a file has and write it, changed, to another."""
        one = FORMATS[self.format]
        if isinstance(one, Format):
            one.write(target, change(one.read(source, naming)))
        else:
            collection = one.open(source, naming)
            one.write(target, [(stem, change(collection.read(stem))) for stem in collection.stems()], collection)


def soft(seed: int = 0) -> Array:
    """A map of multiples of 1/1024, which every floating-point type holds."""
    return np.random.default_rng(seed).integers(0, 1025, (HEIGHT, WIDTH)).astype(np.float32) / np.float32(1024)


def bits(seed: int = 0) -> Array:
    return soft(seed) >= 0.5
