"""The figures of a set from the counts of its images, whichever process made them, with or without a class table."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from g4seg_trt.class_table import ClassEntry, ClassTable
from g4seg_trt.evaluate.confusion import MOST_CLASSES, LabelSpace
from g4seg_trt.evaluate.counts import BACKGROUND, NO_LABEL, Counts, NamedCounts
from g4seg_trt.evaluate.sets import Figures, SetEvaluation

COARSE, RESULT = "coarse", "refined"
"""The rows of every image: its coarse masks, and what became of them."""


@dataclass
class _Row:
    """Sums of one kind of prediction; 16 bytes for each mask of a set, all else is bounded by the classes."""

    pixels: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    boundary: dict[str, array[float]] = field(default_factory=dict)
    gains: array[float] = field(default_factory=lambda: array("d"))
    missed: int = 0
    false: int = 0

    def add(self, coarse: NamedCounts, this: NamedCounts) -> None:
        self.pixels.update(this.pixels)
        for name, pair in this.boundary.items():
            self.boundary.setdefault(name, array("d")).extend(pair)
        true, labelled = _sums(coarse)
        _, labelled_after = _sums(this)
        for name, number in true.items():
            if name == BACKGROUND:
                continue
            before, after = labelled[name], labelled_after[name]
            if before or after:
                self.gains.extend((_iou(coarse, name, number, before), _iou(this, name, number, after)))
            else:
                self.missed += 1
        self.false += sum(1 for name in labelled if name not in (BACKGROUND, NO_LABEL) and name not in true)


class NamedEvaluation:
    """Adds up images that are counted by class names; the order of the images does not change a bit of the figures.

    Args:
        table: the classes; None takes those that come up, by their names. The background is a class then.
    """

    def __init__(self, table: ClassTable | None = None) -> None:
        self._table = table
        self._rows: dict[str, _Row] = {}
        self.images = 0

    def add(self, rows: Mapping[str, NamedCounts]) -> None:
        """Add an image: COARSE, RESULT, and rows to compare them with; the same ones for every image."""
        for name, one in rows.items():
            self._rows.setdefault(name, _Row()).add(rows[COARSE], one)
        self.images += 1

    @property
    def rows(self) -> tuple[str, ...]:
        """The names of the rows."""
        return tuple(self._rows)

    def summary(self, row: str = RESULT) -> Figures | None:
        """As `SetEvaluation.summary`, of one row beside COARSE.

        Returns:
            None without an image, or if more classes came up than a confusion matrix holds: see `missing`.
        """
        space = self._space()
        if space is None:
            return None
        coarse, this = self._rows[COARSE], self._rows[row]
        gains = list(zip(this.gains[::2], this.gains[1::2], strict=True))
        evaluation = SetEvaluation.of_sums(
            space, self.images, _counts(space, coarse), _counts(space, this), gains, this.missed, this.false
        )
        return evaluation.summary()

    @property
    def missing(self) -> str:
        """Why `summary` gives none, in a line; "" if it gives one."""
        if not self.images:
            return "no image was evaluated"
        if self._table is not None:
            return ""
        count = len(self._names())
        if count > MOST_CLASSES:
            return f"{count} classes came up, allowed are {MOST_CLASSES}; a class table says which ones count"
        return "" if count else "no class came up"

    def _space(self) -> LabelSpace | None:
        if self.missing:
            return None
        table = self._table if self._table is not None else table_of_names(self._names(), "the classes given")
        return LabelSpace.of(table)

    def _names(self) -> list[str]:
        """The classes that came up."""
        pairs: Iterable[tuple[str, str | None]] = (pair for row in self._rows.values() for pair in row.pixels)
        return sorted({name for pair in pairs for name in pair if name} - {BACKGROUND})


def table_of_names(names: Iterable[str], what: str) -> ClassTable:
    """A class table of some names, with the ids 1, 2, .. in their order."""
    return ClassTable(what, tuple(ClassEntry(number, name, name) for number, name in enumerate(names, 1)), True)


def _sums(counts: NamedCounts) -> tuple[Counter[str], Counter[str | None]]:
    """Pixels of each true class and of each label."""
    true: Counter[str] = Counter()
    labelled: Counter[str | None] = Counter()
    for (one, label), number in counts.pixels.items():
        true[one] += number
        labelled[label] += number
    return true, labelled


def _iou(counts: NamedCounts, name: str, true: int, labelled: int) -> float:
    both = counts.pixels.get((name, name), 0)
    return both / (true + labelled - both)


def _counts(space: LabelSpace, row: _Row) -> Counts:
    names = [BACKGROUND if number == 0 else name for number, name in zip(space.ids, space.names, strict=True)]
    positions: dict[str | None, int] = {name: position for position, name in enumerate(names)}
    positions[NO_LABEL] = len(names)
    matrix = np.zeros((len(names), len(names) + 1), dtype=np.int64)
    for (true, label), number in row.pixels.items():
        matrix[positions[true], positions[label]] = number
    boundary = {
        positions[name]: list(zip(pairs[::2], pairs[1::2], strict=True)) for name, pairs in row.boundary.items()
    }
    return Counts(matrix, boundary)
