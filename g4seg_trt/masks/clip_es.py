"""CLIP-ES: one .npy file for each image with a pickled dict.

From the code of linyq2117/CLIP-ES: generate_cams_voc12.py and generate_cams_coco14.py write `keys`, int64 [K],
indices from 0 among the foreground classes, and `attn_highres`, float16 [K,H,W] at the image's size, scaled to
0..1 for each class; lines that are commented out there wrote `highres` (the same size) and `strided_cam`
(reduced). eval_cam.py reads numpy.load(allow_pickle=True).item(), the entry that --cam_type names (by default
attn_highres) and `keys` + 1, with background (1 - max) ** p, p = 1 or 2; eval_cam_with_crf.py reads
`attn_highres` and `keys` with p = 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from g4seg_trt.errors import MaskError
from g4seg_trt.masks.coarse import CoarseMasks, Naming
from g4seg_trt.masks.keyed import KEYS, KeyedLayout, Kind, read_keyed, write_keyed
from g4seg_trt.masks.pickles import listed, load_npy_dict
from g4seg_trt.update import BackgroundRule

NAME = "clip-es"
RULE = BackgroundRule("power", 1.0)
"""What CLIP-ES decides its pseudo labels with."""

_MAPS = ("attn_highres", "highres", "strided_cam")
_LAYOUT = KeyedLayout(
    _MAPS[0],
    Kind(np.dtype(np.int64), tensor=False),
    Kind(np.dtype(np.float16), tensor=False),
    {KEYS: None, _MAPS[0]: None},
)
"""What masks of another format are written in."""


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read a CLIP-ES dict; of several entries with maps the first of attn_highres, highres, strided_cam.

    Returns:
        The masks, with the rule power:1; id = key + 1.

    Raises:
        MaskError: if the file cannot be read as such a dict, or its maps are no probabilities.
        ClassNameError: for a class id outside the table.
    """
    entries = load_npy_dict(path)
    maps = _maps(entries)
    if maps is None:
        found = listed(entries)
        raise MaskError(f"{path}: a dict with the entries {found}, expected {KEYS!r} and {_MAPS[0]!r} ({NAME})")
    masks, layout = read_keyed(path, naming, entries, maps)
    return replace(masks, rule=RULE, origin={NAME: layout})


def write(path: Path, masks: CoarseMasks) -> None:
    """Write the dict, atomically: the maps that were read are the refined ones, all else is as it was.

    Other entries with maps are kept as they came, so --cam_type has to name the one that was read. Masks of
    another format are written as `keys` and `attn_highres`.

    Raises:
        OutputError: if the file cannot be written.
    """
    write_keyed(path, masks, masks.origin.get(NAME, _LAYOUT), {})


def recognise(path: Path) -> str | None:
    """What makes the file one of CLIP-ES, in words, or None; never raises MaskError."""
    if path.suffix.lower() != ".npy":
        return None
    try:
        maps = _maps(load_npy_dict(path))
    except MaskError:
        return None
    return None if maps is None else f"a dict with {KEYS} and {maps}"


def _maps(entries: dict[object, object]) -> str | None:
    """The entry with the maps, None if this is no dict of CLIP-ES."""
    if KEYS not in entries:
        return None
    return next((name for name in _MAPS if name in entries), None)
