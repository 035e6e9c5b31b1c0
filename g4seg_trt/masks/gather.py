"""Maps of formats that have class names, or not even those, become CoarseMasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from g4seg_trt.arrays import Floats
from g4seg_trt.errors import ClassNameError, MaskError, some
from g4seg_trt.masks.array import UNNAMED, check_count
from g4seg_trt.masks.coarse import CoarseMasks, Naming, ids_of_names
from g4seg_trt.update import BACKGROUND, BackgroundRule

CHANNEL = BackgroundRule("channel", 0.0)
"""The rule of files that bring the background's own probability."""


@dataclass(frozen=True)
class Chosen:
    """What is to be read from a file with named maps.

    Attributes:
        keys: class name -> what the file calls its map.
        background: what the file calls the background's own probability, None if it has none.
    """

    keys: Mapping[str, str]
    background: str | None

    def wanted(self) -> list[str]:
        """All names in the file that are to be read."""
        return [*self.keys.values(), *([] if self.background is None else [self.background])]


def choose(found: Iterable[str], naming: Naming, path: Path) -> Chosen:
    """Which of the maps in a file are wanted.

    Args:
        found: what the file calls its maps. "background" is the background's own, unless `naming` has this class.
        naming: the classes wanted, in order, None for all; the file may call them as the table's data set does or
            as prompts do. A file with a single map that was given no name has any class.
        path: the file or folder.

    Raises:
        MaskError: if a wanted class has no map, or two maps are of one class.
        ClassNameError: for a name that the table does not have.
    """
    found = list(found)
    names = naming.names if naming.names is not None else [name for name in found if name != BACKGROUND]
    keys: dict[str, str] = {}
    for name in names:
        entry = None if naming.table is None else naming.table.named(name, str(path))
        spellings = (name,) if entry is None else (name, entry.name, entry.prompt)
        key = next((spelling for spelling in spellings if spelling in found), None)
        if key is None and (found != [UNNAMED] or len(names) > 1):
            raise MaskError(f"{path}: no class {name!r}, it holds {some(found)}")
        class_name = name if entry is None else entry.name
        if class_name in keys:
            raise MaskError(f"{path}: the class {class_name!r} has two masks")
        keys[class_name] = UNNAMED if key is None else key
    background = BACKGROUND if BACKGROUND in found and BACKGROUND not in keys.values() else None
    return Chosen(keys, background)


def named_maps(
    maps: Mapping[str, Floats] | Iterable[tuple[str, Floats]],
    chosen: Chosen,
    naming: Naming,
    path: Path,
    origin: Mapping[str, Any],
) -> CoarseMasks:
    """The maps of a file that names its classes.

    Args:
        maps: what the file calls it, and float32 [H,W] in [0,1]; those of `chosen.wanted()`. From an iterator one is
            taken after the other, and none is held beside the array of all.
        chosen: which is which.
        naming: its table gives the ids, its size is that which the maps must have.
        path: the file or folder.
        origin: for the format's writer.

    Raises:
        MaskError: if the sizes differ, there is too much to hold, or a map is missing.
    """
    names = tuple(chosen.keys)
    places = {key: place for place, key in enumerate(chosen.keys.values())}
    missing = chosen.wanted()
    first: str | None = None
    stacked, background = np.empty((0, 0, 0), np.float32), None
    for key, one in maps.items() if isinstance(maps, Mapping) else maps:
        if first is None:
            first = key
            check_count(len(names), (one.shape[0], one.shape[1]), str(path), naming.size)
            stacked = np.empty((len(names), *one.shape), np.float32)
        height, width = stacked.shape[1:]
        if one.shape != (height, width):
            raise MaskError(
                f"{path}: the map of {key!r} is {one.shape[1]}x{one.shape[0]} pixels, that of {first!r} "
                f"{width}x{height}: they must have the same size"
            )
        missing.remove(key)
        if key == chosen.background:
            background = one
        else:
            stacked[places[key]] = one
    if missing or first is None:
        raise MaskError(f"{path}: no map of {some(missing) or 'any class'}")
    return CoarseMasks(
        ids_of_names(names, naming, str(path)),
        names,
        stacked,
        background=background,
        rule=None if background is None else CHANNEL,
        origin=origin,
    )


def maps_by_key(masks: CoarseMasks, chosen: Chosen | None) -> dict[str, Floats]:
    """The maps under the names that their file had for them; without one under those of the classes."""
    keys = masks.names if chosen is None else [chosen.keys[name] for name in masks.names]
    maps = dict(zip(keys, masks.probabilities, strict=True))
    if masks.background is not None:
        maps[BACKGROUND] = masks.background
    return maps


def one_class(probability: Floats, naming: Naming, what: str, origin: Mapping[str, Any]) -> CoarseMasks:
    """The map of a file that holds one class and does not say which.

    Args:
        probability: float32 [H,W] in [0,1].
        naming: its one name; without names the only class of its table.
        what: the file, for the message.
        origin: for the format's writer.

    Raises:
        ClassNameError: if there is not exactly one class that it could be, or the table does not have it.
    """
    table, names = naming.table, naming.names
    if names is None and table is not None and len(table.classes) == 1:
        names = (table.classes[0].name,)
    if names is None:
        raise ClassNameError(f"{what} does not say its class; give --class-name or --classes")
    if len(names) != 1:
        raise ClassNameError(f"{what} holds one class, not {len(names)} ({some(names)})")
    if table is not None:
        names = (table.named(names[0], what).name,)
    return CoarseMasks(ids_of_names(names, naming, what), names, probability[None], origin=origin)
