"""IRN and its many successors: one .npy file for each image with a pickled dict that holds torch tensors.

From the code of jiwoon-ahn/irn: step/make_cam.py writes `keys`, a torch int64 tensor [K] of indices from 0 among
the foreground classes, `cam`, a torch float32 tensor [K,ceil(H/4),ceil(W/4)], and `high_res`, a numpy float32
array [K,H,W], each class divided by its maximum. step/eval_cam.py and step/cam_to_ir_label.py read `high_res` and
`keys` + 1 through numpy.load(allow_pickle=True).item(); step/make_sem_seg_labels.py and
step/make_ins_seg_labels.py read `cam`, on which they call .cuda(), and `keys`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from g4seg_trt.arrays import Array
from g4seg_trt.errors import MaskError
from g4seg_trt.geometry import resize_probability
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.keyed import KEYS, KeyedLayout, Kind, in_file_order, read_keyed, write_keyed
from g4seg_trt.masks.pickles import listed, load_npy_dict
from g4seg_trt.masks.tensors import as_array
from g4seg_trt.update import BackgroundRule

NAME = "irn"
RULE = BackgroundRule("constant", 0.15)
"""IRN's cam_eval_thres."""

_CAM = "cam"
_MAPS = "high_res"


@dataclass(frozen=True)
class IrnLayout:
    """How a dict was laid out.

    Attributes:
        dict: its keys and maps.
        cam: how the reduced maps were stored, None without them.
        cam_size: their (height, width), None for a quarter of the maps'.
        cam_others: class id -> its reduced map, of classes that were not asked for.
    """

    dict: KeyedLayout
    cam: Kind | None
    cam_size: tuple[int, int] | None
    cam_others: Mapping[int, Array]


_LAYOUT = IrnLayout(
    KeyedLayout(
        _MAPS,
        Kind(np.dtype(np.int64), tensor=True),
        Kind(np.dtype(np.float32), tensor=False),
        {KEYS: None, _CAM: None, _MAPS: None},
    ),
    Kind(np.dtype(np.float32), tensor=True),
    None,
    {},
)
"""What masks of another format are written in."""


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read an IRN dict; the maps are those of `high_res`.

    Returns:
        The masks, with the rule constant:0.15; id = key + 1.

    Raises:
        MaskError: if the file cannot be read as such a dict, or its maps are no probabilities.
        ClassNameError: for a class id outside the table.
    """
    entries = load_npy_dict(path)
    if not {KEYS, _MAPS} <= set(entries):
        raise MaskError(f"{path}: a dict with the entries {listed(entries)}, expected {KEYS!r} and {_MAPS!r} ({NAME})")
    masks, layout = read_keyed(path, naming, {name: value for name, value in entries.items() if name != _CAM}, _MAPS)
    kind = size = None
    others: dict[int, Array] = {}
    if _CAM in entries:
        cam = as_array(entries[_CAM], f"{path}, {_CAM!r}")
        if cam.ndim != 3 or len(cam) != len(layout.ids) or 0 in cam.shape[1:]:
            raise MaskError(f"{path}, {_CAM!r}: shape {list(cam.shape)}, expected [{len(layout.ids)}, height, width]")
        kind, size = Kind.of(entries[_CAM], cam), (cam.shape[1], cam.shape[2])
        others = {number: one for number, one in zip(layout.ids, cam, strict=True) if number in layout.others}
        # In the order of the file, the cam between the others.
        layout = replace(layout, entries={name: layout.entries.get(name) for name in entries})
    return replace(masks, rule=RULE, origin={NAME: IrnLayout(layout, kind, size, others)})


def write(path: Path, masks: CoarseMasks) -> None:
    """Write the dict, atomically: `high_res` is refined, and `cam` is the refined maps in the size that it had.

    Masks of another format are written as IRN does it, `cam` at a quarter of the size.

    Raises:
        OutputError: if the file cannot be written.
    """
    layout: IrnLayout = masks.origin.get(NAME, _LAYOUT)
    others: dict[str, object] = {}
    if layout.cam is not None:
        size = layout.cam_size or (-(-masks.size[0] // 4), -(-masks.size[1] // 4))
        cam = np.empty((len(masks.ids), *size), np.float32)
        for index, probability in enumerate(masks.probabilities):
            cam[index] = resize_probability(probability, size)
        others[_CAM] = in_file_order(masks, cam, layout.dict, layout.cam, layout.cam_others)
    write_keyed(path, masks, layout.dict, others)


def recognise(path: Path) -> str | None:
    """What makes the file one of IRN, in words, or None; never raises MaskError, and needs no torch."""
    if path.suffix.lower() != ".npy":
        return None
    try:
        entries = load_npy_dict(path)
    except MaskError:
        return None
    found = [name for name in (KEYS, _CAM, _MAPS) if name in entries]
    return f"a dict with {', '.join(found)}" if {KEYS, _MAPS} <= set(found) else None
