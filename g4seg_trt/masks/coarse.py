"""The one type that every format of coarse masks is read into and written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from g4seg_trt.arrays import Bools, Floats
from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import ClassNameError, MaskError
from g4seg_trt.update import BackgroundRule


@dataclass(frozen=True)
class Naming:
    """What is known about the classes of an image beside its mask file.

    Attributes:
        names: the image's classes in order, None if the file has to say it.
        table: class ids and names of the data set, None without one.
    """

    names: tuple[str, ...] | None = None
    table: ClassTable | None = None


@dataclass(frozen=True)
class CoarseMasks:
    """Coarse masks of one image, whichever file they came from.

    Attributes:
        ids: class id of each map as ground truth pictures have it: 1 or more, each once.
        names: class name of each map, as the file or the class table calls it, each once.
        probabilities: float32 [K,H,W] in [0,1]; K may be 0.
        background: the background's own probability, float32 [H,W] in [0,1], or None.
        rule: how the source itself decides what is background, None if it has no rule of its own.
        ignored: bool [H,W], pixels that the source gives no label, or None.
        origin: what the format's writer needs to give the same layout back; no other reads it.

    Raises:
        MaskError: if the numbers of ids, names and maps differ, or one is there twice.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: Floats
    background: Floats | None = None
    rule: BackgroundRule | None = None
    ignored: Bools | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.probabilities)
        if not len(self.ids) == len(self.names) == count:
            raise MaskError(f"{len(self.ids)} class ids and {len(self.names)} names for {count} masks")
        for values in (self.ids, self.names):
            if len(set(values)) != count:
                twice = next(value for value in values if values.count(value) > 1)
                raise MaskError(f"the class {twice!r} has two masks")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.probabilities.shape[1], self.probabilities.shape[2]

    def with_probabilities(self, probabilities: Floats) -> CoarseMasks:
        """The same classes with other maps [K,H,W], for the writer."""
        return replace(self, probabilities=probabilities)


def named_by_ids(ids: Sequence[int], naming: Naming, what: str) -> tuple[str, ...]:
    """Class names for ids that a file gives.

    Args:
        ids: 1 or more each.
        naming: its table gives the names; without one `names` do, if there are as many as ids.
        what: the file, for the message.

    Raises:
        ClassNameError: without names, or for an id that the table does not have.
    """
    if naming.table is not None:
        return tuple(naming.table.entry(number, what).name for number in ids)
    if naming.names is not None and len(naming.names) == len(ids):
        return naming.names
    raise ClassNameError(f"{what} has class ids without names: say whose they are with --dataset or --class-table")


def ids_of_names(names: Sequence[str], naming: Naming, what: str) -> tuple[int, ...]:
    """Class ids for names that a file or the caller gives: those of the table, else 1, 2, .. in their order.

    Args:
        names: as the table's data set calls them, or as prompts.
        naming: its table.
        what: the file, for the message.

    Raises:
        ClassNameError: for a name that the table does not have.
    """
    if naming.table is None:
        return tuple(range(1, len(names) + 1))
    return tuple(naming.table.named(name, what).id for name in names)
