"""Format "array": all classes of an image in one .npy file, an array [C,H,W] or [H,W,C]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from g4seg_trt.arrays import Array
from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import ClassNameError, InputError, MaskError
from g4seg_trt.masks.array import as_probabilities, as_probability, as_stored, check_count, open_npy, write_npy
from g4seg_trt.masks.coarse import CoarseMasks, Naming, ids_of_names
from g4seg_trt.masks.gather import CHANNEL

NAME = "array"


@dataclass(frozen=True)
class Channels:
    """One way to understand the array.

    Attributes:
        axis: where the channels are, 0 or 2.
        names: class names of all of them, in order, without the background.
        background: whether a channel for the background comes before them.
    """

    axis: int
    names: tuple[str, ...]
    background: bool


@dataclass(frozen=True)
class StackLayout:
    """What `write` gives back.

    Attributes:
        array: [C,H,W] as it came in, also what is not refined.
        axis: where the channels were.
        places: the channel of each map.
    """

    array: Array
    axis: int
    places: tuple[int, ...]


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read the channels of the named classes, or all.

    The channels are the names in their order, or the classes of the table in the order of their ids, with or without
    a first one for the background where the table has it. Which axis they are on follows from how many they are.

    Raises:
        MaskError: if the file cannot be read, the channels are none of those numbers or may be two of them, or a
            value is not a probability.
        ClassNameError: without names and table, or for a name that the table does not have.
    """
    array = open_npy(path)
    if array.ndim != 3 or 0 in array.shape:
        raise MaskError(f"{path}: an array of shape {list(array.shape)}, expected [classes, height, width]")
    channels = _channels(array.shape, naming, path)
    moved = np.moveaxis(array, channels.axis, 0)
    names = _in_table(naming, path) or channels.names
    places = tuple(channels.names.index(name) + channels.background for name in names)
    check_count(len(moved), (moved.shape[1], moved.shape[2]), str(path), naming.size)
    height, width = moved.shape[1:]
    return CoarseMasks(
        ids_of_names(names, naming, str(path)),
        names,
        as_probabilities((moved[place] for place in places), names, (height, width), str(path)),
        background=as_probability(moved[0], f"{path}, background") if channels.background else None,
        rule=CHANNEL if channels.background else None,
        origin={NAME: StackLayout(np.array(moved), channels.axis, places)},
    )


def write(path: Path, masks: CoarseMasks) -> None:
    """Write the array with the refined channels in their places, axes and dtype as they came in.

    Raises:
        OutputError: if the file cannot be written.
    """
    layout = masks.origin.get(NAME)
    if layout is None:
        write_npy(path, masks.probabilities)
        return
    array = layout.array.copy()
    for place, probability in zip(layout.places, masks.probabilities, strict=True):
        array[place] = as_stored(probability, array.dtype)
    write_npy(path, np.moveaxis(array, 0, layout.axis))


def recognise(path: Path) -> str | None:
    """What tells that this is an array of several classes, or None."""
    try:
        array = open_npy(path)
    except InputError:
        return None
    if array.ndim != 3 or array.dtype.kind not in "fbiu":
        return None
    return f"an array {list(array.shape)} of {array.dtype}"


def _channels(shape: tuple[int, ...], naming: Naming, path: Path) -> Channels:
    if naming.names is None and naming.table is None:
        raise ClassNameError(f"{path} does not say its classes; give --classes, --dataset or --class-table")
    lists = _lists(naming, path)
    possible = {
        Channels(axis, names, background)
        for axis in (0, 2)
        for names, background in lists
        if shape[axis] == len(names) + background
    }
    if not possible:
        counts = " or ".join(str(len(names) + background) for names, background in lists)
        raise MaskError(f"{path}: an array of shape {list(shape)}, expected {counts} channels, first or last")
    if len(possible) > 1:
        readings = "; ".join(sorted(_words(one, naming.table) for one in possible))
        raise MaskError(
            f"{path}: an array of shape {list(shape)} may be read in several ways ({readings}); a .npz file with an "
            "array for each class name says which"
        )
    return possible.pop()


def _in_table(naming: Naming, path: Path) -> tuple[str, ...] | None:
    """The names wanted as the table has them."""
    if naming.names is None or naming.table is None:
        return naming.names
    return tuple(naming.table.named(name, str(path)).name for name in naming.names)


def _lists(naming: Naming, path: Path) -> list[tuple[tuple[str, ...], bool]]:
    """Class lists that the channels may follow, and whether a background comes before them."""
    wanted = _in_table(naming, path)
    lists = [] if wanted is None else [(wanted, False)]
    if naming.table is not None:
        names = tuple(entry.name for entry in naming.table.classes)
        lists += [(names, False)] if names != wanted else []
        lists += [(names, True)] if naming.table.background else []
    return lists


def _words(channels: Channels, table: ClassTable | None) -> str:
    of_table = table is not None and channels.names == tuple(entry.name for entry in table.classes)
    whose = f"the {len(channels.names)} classes" + (f" of {table.dataset}" if table is not None and of_table else "")
    ground = "background and " if channels.background else ""
    return f"{ground}{whose} on axis {channels.axis}"
