"""The one type that every format of coarse masks is read into and written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from g4seg_trt.arrays import Bools, Floats
from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import ClassNameError, MaskError, some
from g4seg_trt.update import BackgroundRule

_SHOWN = 12


@dataclass(frozen=True)
class Naming:
    """What is known about the classes of an image beside its mask file.

    Attributes:
        names: the image's classes in order, None if the file has to say it.
        table: class ids and names of the data set, None without one.
        size: the image's (height, width), which its masks have to have; None if it is not known.
        rules: the background rules that will decide over the labels, None among them for the source's own; None if
            they are not known. Classes that none of them gives a pixel need not be read.
    """

    names: tuple[str, ...] | None = None
    table: ClassTable | None = None
    size: tuple[int, int] | None = None
    rules: tuple[BackgroundRule | None, ...] | None = None


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


def selected(names: Sequence[str], naming: Naming, what: str) -> tuple[int, ...]:
    """Which of the classes that a file has are asked for.

    Args:
        names: the file's classes, as the table calls them if there is one (`named_by_ids`).
        naming: its names, in order, as the table's data set calls them or as prompts; None for all.
        what: the file, for the message.

    Returns:
        Places among `names`, in the order asked for. A file without a class has none to give: ().

    Raises:
        MaskError: for a class that the file does not have.
        ClassNameError: for a name that the table does not have, or a class asked for twice.
    """
    if naming.names is None or not names:
        return tuple(range(len(names)))
    asked = naming.names
    if naming.table is not None:
        asked = tuple(naming.table.named(name, what).name for name in asked)
    for name in asked:
        if asked.count(name) > 1:
            raise ClassNameError(f"{what}: the class {name!r} is asked for twice")
        if name not in names:
            raise MaskError(f"{what}: no class {name!r}, it holds {some(names, _SHOWN)}")
    return tuple(names.index(name) for name in asked)


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
