"""PSA, SEAM, MCTformer and others of their line: one .npy file for each image, a pickled dict of class index -> map.

Two layouts look alike. From the code of jiwoon-ahn/psa (infer_cls.py): --out_cam writes index from 0 among the
foreground classes -> float32 [H,W], each divided by its maximum ("psa" here, id = key + 1); --out_la_crf and
--out_ha_crf write what the CRF gives, float32 [H,W] that sum to 1, with background under 0 and the classes
counted from 1 ("psa-crf", id = key). infer_aff.py and xulianuwa/MCTformer's evaluation.py read the first through
numpy.load(allow_pickle=True).item() and add 1 to every key; MCTformer takes its threshold as the background's
value, PSA 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from g4seg_trt.arrays import Array, Floats
from g4seg_trt.atomic import atomic_file
from g4seg_trt.errors import MaskError, OutputError
from g4seg_trt.masks.array import as_probabilities, as_probability, check_count
from g4seg_trt.masks.coarse import CoarseMasks, Naming, named_by_ids, selected
from g4seg_trt.masks.keyed import Kind
from g4seg_trt.masks.pickle_writer import write_npy_dict
from g4seg_trt.masks.pickles import listed, load_npy_dict
from g4seg_trt.masks.tensors import Tensor, as_array
from g4seg_trt.update import BackgroundRule

NAME = "psa"
CRF_NAME = "psa-crf"
RULE = BackgroundRule("constant", 0.2)
CRF_RULE = BackgroundRule("channel", 0.0)

_SUM_TOLERANCE = 5e-3
"""Of maps stored as float16."""
_KIND = Kind(np.dtype(np.float32), tensor=False)
"""What maps of another format are written in."""


@dataclass(frozen=True)
class IndexLayout:
    """How a dict was laid out.

    Attributes:
        keys: class index -> the key itself, an int of Python or numpy, in the order of the file.
        kinds: class index -> how its map was stored.
        others: class index -> map as stored, of classes that were not asked for.
    """

    keys: Mapping[int, Any]
    kinds: Mapping[int, Kind]
    others: Mapping[int, Array | Tensor]


_LAYOUT = IndexLayout({}, {}, {})
"""Of masks of another format."""


def read(path: Path, naming: Naming) -> CoarseMasks:
    """Read a dict of class activation maps.

    Returns:
        The masks, with the rule constant:0.2; id = key + 1.

    Raises:
        MaskError: if the file cannot be read as such a dict, a map is no probability, or it does not have a class
            asked for.
        ClassNameError: for a class id outside the table.
    """
    return _read(path, naming, crf=False)


def read_crf(path: Path, naming: Naming) -> CoarseMasks:
    """Read a dict of a CRF's probabilities.

    Returns:
        The masks, with the rule channel: the map of key 0 is `background`; id = key.

    Raises:
        MaskError: as `read`, and without a key 0 or if a class not asked for is no probability.
        ClassNameError: as `read`.
    """
    return _read(path, naming, crf=True)


def write(path: Path, masks: CoarseMasks) -> None:
    """Write a dict of class activation maps, atomically, keys and dtypes as they came.

    Classes that were not asked for stay as they were.

    Raises:
        OutputError: if the file cannot be written.
    """
    maps = {number - 1: one for number, one in zip(masks.ids, masks.probabilities, strict=True)}
    _write(path, maps, masks.origin.get(NAME, _LAYOUT))


def write_crf(path: Path, masks: CoarseMasks) -> None:
    """Write a dict of probabilities with background under 0, atomically, keys and dtypes as they came.

    They sum to 1 again where a refinement changed that, which is what tells this layout. Classes that were not asked
    for stay as they were, and the others share what those leave; the likeliest of these stays so.

    Raises:
        OutputError: if the masks come without the background's probability, or the file cannot be written.
    """
    if masks.background is None:
        raise OutputError(f"cannot write {path}: {CRF_NAME} needs the background's probability, these masks have none")
    layout: IndexLayout = masks.origin.get(CRF_NAME, _LAYOUT)
    left = np.ones(masks.size, np.float32)
    for index, other in layout.others.items():
        left -= as_array(other, f"{path}, key {index}").astype(np.float32)
    np.maximum(left, 0.0, out=left)
    whole = np.concatenate((masks.background[None], masks.probabilities))
    total = whole.sum(axis=0)
    empty = total == 0
    whole[0, empty] = total[empty] = left[empty]
    off = np.abs(total - left) > _SUM_TOLERANCE / 5
    whole[:, off] *= left[off] / total[off]
    _write(path, dict(zip((0, *masks.ids), whole, strict=True)), layout)


def recognise(path: Path) -> str | None:
    """What makes the file a dict of class activation maps, in words, or None; never raises MaskError."""
    entries = _entries(path)
    if entries is None or _is_crf(path, entries):
        return None
    return f"a dict of maps under the class indices {listed(entries)}, counted from 0"


def recognise_crf(path: Path) -> str | None:
    """What makes the file a dict of a CRF's probabilities, in words, or None; never raises MaskError."""
    entries = _entries(path)
    if entries is None or not _is_crf(path, entries):
        return None
    return f"a dict of maps under {listed(entries)} that sum to 1 in every pixel, so 0 is background"


def _read(path: Path, naming: Naming, *, crf: bool) -> CoarseMasks:
    name = CRF_NAME if crf else NAME
    entries = load_npy_dict(path)
    if not entries or not _has_indices(entries):
        raise MaskError(f"{path}: a dict with the entries {listed(entries)}, expected class indices ({name})")
    arrays = {int(key): as_array(value, f"{path}, key {key}") for key, value in entries.items()}
    kinds = {int(key): Kind.of(value, arrays[int(key)]) for key, value in entries.items()}
    first = next(iter(arrays.values()))
    for key, array in arrays.items():
        if array.ndim != 2 or array.size == 0 or array.shape != first.shape:
            raise MaskError(f"{path}, key {key}: shape {list(array.shape)}, expected [height, width], all the same")
    size = first.shape[0], first.shape[1]
    check_count(len(arrays), size, str(path), naming.size)
    background = None
    if crf:
        if 0 not in arrays:
            raise MaskError(f"{path}: no key 0 for the background ({name}), the keys are {listed(entries)}")
        background = as_probability(arrays.pop(0), f"{path}, background")
    indices = tuple(arrays)
    ids = tuple(index + (not crf) for index in indices)
    names = named_by_ids(ids, naming, str(path))
    places = selected(names, naming, str(path))
    chosen = tuple(names[place] for place in places)
    probabilities = as_probabilities((arrays[indices[place]] for place in places), chosen, size, str(path))
    others = {index for place, index in enumerate(indices) if place not in places}
    for index in others if crf else ():  # together with those asked for they are 1
        as_probability(arrays[index], f"{path}, key {index}")
    layout = IndexLayout(
        {int(key): key for key in entries},
        kinds,
        {int(key): value for key, value in entries.items() if int(key) in others},
    )
    return CoarseMasks(
        tuple(ids[place] for place in places),
        chosen,
        probabilities,
        background=background,
        rule=CRF_RULE if crf else RULE,
        origin={name: layout},
    )


def _write(path: Path, maps: Mapping[int, Floats], layout: IndexLayout) -> None:
    stored = {index: layout.kinds.get(index, _KIND).probabilities(one) for index, one in maps.items()}
    known = {**layout.others, **stored}
    order = [index for index in layout.keys if index in known] or known
    with atomic_file(path) as file:
        write_npy_dict(file, {layout.keys.get(index, index): known[index] for index in order})


def _entries(path: Path) -> dict[Any, Any] | None:
    """The dict if it can be of either layout: class indices with a map each."""
    if path.suffix.lower() != ".npy":
        return None
    try:
        entries = load_npy_dict(path)
    except MaskError:
        return None
    return entries if entries and _has_indices(entries) and all(map(_is_map, entries.values())) else None


def _has_indices(entries: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, (int, np.integer)) and not isinstance(key, bool) and key >= 0 for key in entries)


def _is_map(value: object) -> bool:
    return len(value.size) == 2 if isinstance(value, Tensor) else isinstance(value, np.ndarray) and value.ndim == 2


def _is_crf(path: Path, entries: Mapping[Any, Any]) -> bool:
    """Key 0 among several, and probabilities that leave nothing over."""
    if 0 not in entries or len(entries) < 2:
        return False
    total: Array = np.zeros(())
    for key, value in entries.items():
        try:
            array = as_array(value, f"{path}, key {key}")
        except MaskError:
            return False
        if array.dtype.kind not in "fbiu" or (total.ndim and array.shape != total.shape):
            return False
        with np.errstate(over="ignore", invalid="ignore"):  # of what is no probability
            total = total + array.astype(np.float32)
    return bool((np.abs(total - 1.0) <= _SUM_TOLERANCE).all())
