"""Dicts of `keys` (class indices) and maps [K,H,W] in .npy files: what CLIP-ES and IRN have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from g4seg_trt.arrays import Array, Floats
from g4seg_trt.atomic import atomic_file
from g4seg_trt.errors import MaskError
from g4seg_trt.masks.array import as_probabilities, as_stored, check_count
from g4seg_trt.masks.coarse import CoarseMasks, Naming, named_by_ids, selected
from g4seg_trt.masks.pickle_writer import write_npy_dict
from g4seg_trt.masks.tensors import Tensor, as_array, open_tensors

KEYS = "keys"


@dataclass(frozen=True)
class Kind:
    """How numbers were stored, to store others in the same way.

    Attributes:
        dtype: numpy's, in the machine's byte order.
        tensor: whether it was a torch tensor.
    """

    dtype: np.dtype[Any]
    tensor: bool

    @classmethod
    def of(cls, value: object, array: Array) -> Kind:
        """The kind of a value whose numbers are `array`."""
        return cls(array.dtype.newbyteorder("="), isinstance(value, Tensor))

    def numbers(self, values: object) -> Array | Tensor:
        """Numbers in this dtype, as what these were."""
        array = np.asarray(values, self.dtype)
        return Tensor.of(array) if self.tensor else array

    def probabilities(self, values: Floats) -> Array | Tensor:
        """Probabilities in this dtype (`as_stored`), as what these were."""
        return self.numbers(as_stored(values, self.dtype))


@dataclass(frozen=True)
class KeyedLayout:
    """How a dict was laid out.

    Attributes:
        maps: the entry that holds the maps.
        keys: how the class indices were stored.
        values: how the maps were stored.
        entries: the dict in its order, its keys and maps left out (None).
        ids: the class ids of all its maps, in its order; empty where there was no file.
        others: class id -> map as stored, of classes that were not asked for.
    """

    maps: str
    keys: Kind
    values: Kind
    entries: Mapping[Any, Any]
    ids: tuple[int, ...] = ()
    others: Mapping[int, Array] = field(default_factory=dict)


def read_keyed(path: Path, naming: Naming, entries: Mapping[Any, Any], maps: str) -> tuple[CoarseMasks, KeyedLayout]:
    """The masks of a dict: index k of `keys` is the class id k + 1.

    Args:
        path: the file that `entries` come from.
        naming: whose ids they are.
        entries: what the file holds.
        maps: the entry that holds the maps.

    Returns:
        The masks, without rule and origin, and how the dict was laid out.

    Raises:
        MaskError: if the keys or maps are not what they have to be, or a class asked for is not among them.
        ClassNameError: for a class id outside the table.
    """
    keys = as_array(entries[KEYS], f"{path}, {KEYS!r}")
    ids = tuple(index + 1 for index in _class_indices(keys, f"{path}, {KEYS!r}"))
    stored = as_array(entries[maps], f"{path}, {maps!r}")
    what = f"{path}, {maps!r}"
    if stored.ndim != 3 or 0 in stored.shape[1:]:
        raise MaskError(f"{what}: an array of shape {list(stored.shape)}, expected [{len(ids)}, height, width]")
    if len(stored) != len(ids):
        raise MaskError(f"{path}: {len(ids)} classes in {KEYS!r} and {len(stored)} maps in {maps!r}")
    size = stored.shape[1], stored.shape[2]
    check_count(len(stored), size, what, naming.size)
    names = named_by_ids(ids, naming, str(path))
    places = selected(names, naming, str(path))
    chosen = tuple(names[place] for place in places)
    probabilities = as_probabilities((stored[place] for place in places), chosen, size, what)
    rest = {name: None if name in (KEYS, maps) else value for name, value in entries.items()}
    open_tensors(rest, str(path))
    others = {ids[place]: stored[place] for place in range(len(ids)) if place not in places}
    layout = KeyedLayout(maps, Kind.of(entries[KEYS], keys), Kind.of(entries[maps], stored), rest, ids, others)
    return CoarseMasks(tuple(ids[place] for place in places), chosen, probabilities), layout


def written_ids(masks: CoarseMasks, layout: KeyedLayout) -> tuple[int, ...]:
    """The class ids that a dict is written with, in the file's order: those refined and those not asked for."""
    known = {*masks.ids, *layout.others}
    kept = [number for number in layout.ids if number in known]
    return (*kept, *(number for number in masks.ids if number not in kept))


def in_file_order(
    masks: CoarseMasks, maps: Floats, layout: KeyedLayout, kind: Kind, others: Mapping[int, Array]
) -> Array | Tensor:
    """The maps of `written_ids` as they are stored.

    Args:
        masks: what was refined.
        maps: float32 [K,..] in [0,1], in their order.
        layout: how the file was laid out.
        kind: how its maps were stored.
        others: class id -> map of the same shape as it was stored, of the classes that were not asked for.
    """
    ids = written_ids(masks, layout)
    refined = dict(zip(masks.ids, maps, strict=True))
    stored = np.empty((len(ids), *maps.shape[1:]), kind.dtype)
    for one, number in zip(stored, ids, strict=True):
        one[:] = as_stored(refined[number], kind.dtype) if number in refined else others[number]
    return kind.numbers(stored)


def write_keyed(path: Path, masks: CoarseMasks, layout: KeyedLayout, others: Mapping[str, object]) -> None:
    """Write masks as a dict, atomically; classes that were not asked for stay as they were.

    Args:
        path: where to.
        masks: what to write.
        layout: how.
        others: entries in place of the layout's own.

    Raises:
        OutputError: if the file cannot be written.
    """
    entries = {
        **layout.entries,
        KEYS: layout.keys.numbers([number - 1 for number in written_ids(masks, layout)]),
        layout.maps: in_file_order(masks, masks.probabilities, layout, layout.values, layout.others),
        **others,
    }
    with atomic_file(path) as file:
        write_npy_dict(file, entries)


def _class_indices(keys: Array, what: str) -> list[int]:
    """Indices from 0 on, each there once."""
    if keys.ndim != 1 or (keys.dtype.kind not in "iu" and keys.size):
        raise MaskError(f"{what}: {keys.dtype} {list(keys.shape)}, expected an integer for each class")
    indices = [int(key) for key in keys]
    wrong = [index for index in indices if index < 0 or indices.count(index) > 1]
    if wrong:
        raise MaskError(f"{what}: the class index {wrong[0]} is negative or there twice")
    return indices
