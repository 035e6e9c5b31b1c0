"""mmsegmentation's predictions of a whole data set in one pickle, as mmengine's DumpResults metric writes them.

From open-mmlab/mmengine (evaluator/metric.py): a pickled list with a dict for each image, tensors on the CPU.
From open-mmlab/mmsegmentation (models/segmentors/base.py, evaluation/metrics/iou_metric.py): the dict has the
image's meta data, img_path among them, `seg_logits` {"data": torch float32 [C,H,W]} and `pred_sem_seg` {"data":
torch int64 [1,H,W]}, the argmax over the channels, both at the image's size; IoUMetric reads pred_sem_seg.data,
gt_sem_seg.data, img_path and reduce_zero_label. SCLIP's segmentor leaves probabilities in seg_logits.

The list stays as it is in the file: tensors are opened one image at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from g4seg_trt.arrays import Array, Bools, Floats
from g4seg_trt.atomic import atomic_file
from g4seg_trt.class_table import ClassTable
from g4seg_trt.errors import ClassNameError, MaskError
from g4seg_trt.masks.array import as_probabilities, as_probability, as_stored, check_count
from g4seg_trt.masks.channels import decided, log_sum, present, relabelled
from g4seg_trt.masks.coarse import CoarseMasks, Naming, named_by_ids, selected
from g4seg_trt.masks.keyed import Kind
from g4seg_trt.masks.pickle_writer import digest, write_pickled_list
from g4seg_trt.masks.pickles import listed, load_pickle, peek_pickled_list
from g4seg_trt.masks.tensors import as_array, open_tensors
from g4seg_trt.update import BackgroundRule

NAME = "mmseg"
RULE = BackgroundRule("channel", 0.0)
"""Where channel 0 is background."""

_PATH = "img_path"
_LOGITS = "seg_logits"
_LABELS = "pred_sem_seg"
_DATA = "data"
_SUFFIXES = (".pkl", ".pickle")
_LEAST = np.float32(1e-12)
"""Below it a probability's logarithm is not written."""


@dataclass(frozen=True)
class PredictionLayout:
    """What `write_collection` gives back.

    Attributes:
        stem: the image.
        first: the class id of label 0; 0 where that is background.
        hidden: ids of the classes that were not read because no rule gives them a pixel.
    """

    stem: str
    first: int
    hidden: tuple[int, ...] = ()


class PredictionCollection:
    """The predictions of all images in a file, opened image by image.

    Attributes:
        remark: what is done with values that are no probabilities, in words; None if nothing is.
    """

    def __init__(self, path: Path, naming: Naming, table: ClassTable, entries: Mapping[str, dict[Any, Any]]) -> None:
        self._path = path
        self._naming = naming
        self._table = table
        self._entries = entries
        self._softmax = self._has_logits()
        self.remark = f"{_LOGITS} are no probabilities: softmax over the channels" if self._softmax else None

    @classmethod
    def open(cls, path: Path, naming: Naming) -> PredictionCollection:
        """Read the file. It takes as much memory as it is long, twice that while it is read.

        Args:
            path: a pickled list of dicts with img_path and seg_logits or pred_sem_seg.
            naming: its table says which class a channel is, and whether 0 is background; its names, if any, are the
                classes to read where `read` is not told others.

        Raises:
            MaskError: if the file cannot be read as such a list, or two images have one stem.
            ClassNameError: without a table.
        """
        if naming.table is None:
            raise ClassNameError(f"{path} has channels without names: say whose with --dataset or --class-table")
        content = load_pickle(path)
        if not isinstance(content, list) or not content:
            raise MaskError(f"{path}: a {type(content).__name__}, expected a list with a dict for each image ({NAME})")
        entries: dict[str, dict[Any, Any]] = {}
        for place, entry in enumerate(content):
            what = f"{path}, entry {place}"
            if not isinstance(entry, dict) or not isinstance(entry.get(_PATH), str):
                raise MaskError(f"{what}: expected a dict with {_PATH!r} ({NAME})")
            if not any(isinstance(entry.get(part), dict) and _DATA in entry[part] for part in (_LOGITS, _LABELS)):
                raise MaskError(f"{what}: neither {_LOGITS!r} nor {_LABELS!r} among {listed(entry)}")
            for part in (_LOGITS, _LABELS):
                if part in entry and (not isinstance(entry[part], dict) or _DATA not in entry[part]):
                    raise MaskError(f"{what}: {part!r} without {_DATA!r}")
            name = PureWindowsPath(entry[_PATH]).stem  # which takes both kinds of slashes
            if name in entries:
                raise MaskError(f"{what}: a second image with the stem {name!r}")
            entries[name] = entry
        return cls(path, naming, naming.table, entries)

    @staticmethod
    def key_of(stem: str) -> str:
        """The stem that `stems` has for the same image: itself."""
        return stem

    def stems(self) -> tuple[str, ...]:
        """The images' file names without folder and suffix, in the order of the file."""
        return tuple(self._entries)

    def digest(self, stem: str) -> str:
        """sha256 of what the file says about an image; raises MaskError if that is nothing."""
        return digest(self._of(stem))

    def read(self, stem: str, naming: Naming | None = None) -> CoarseMasks:
        """The masks of one image.

        Without names, the classes that one of the rules gives a pixel, without rules those that any rule could: the
        likeliest beside the background somewhere. The others are left as they are. From pred_sem_seg alone come
        masks of 0 and 1, without a rule.

        Args:
            stem: the image's.
            naming: names, size and rules for this image, in place of those that the file was opened with.

        Returns:
            The masks; with a channel for the background it is `background` and the rule is channel.

        Raises:
            MaskError: if the file has nothing about the image, shape or values are not what they have to be, or
                pred_sem_seg does not have a class asked for.
            ClassNameError: for a label or name that the table does not have.
        """
        entry = self._of(stem)
        asked = self._naming if naming is None else replace(naming, table=self._table)
        return self._of_logits(stem, asked) if _LOGITS in entry else self._of_labels(stem, entry, asked)

    def updated(self, masks: CoarseMasks) -> dict[Any, Any]:
        """The dict of the image that `masks` were read from, with refined channels and their labels.

        seg_logits change where a probability does. Those that were none get logarithms of the refined ones, moved by
        what makes those of the unrefined ones what the file has. Channels that were not asked for stay; one that was
        not read since no rule gave it a pixel gets none of those that refined ones give up: it is 0 there. A label
        changes where the argmax over the channels does: what gave the file its labels may have done more, as SCLIP's
        threshold of probability does. If the masks have been given a rule other than channel (and there is a channel
        for the background), the labels of all pixels are those of this rule.
        """
        layout: PredictionLayout = masks.origin[NAME]
        entry = self.opened(layout.stem)
        what = f"{self._path}, image {layout.stem}"
        changed = dict(entry)
        given = as_array(entry[_LABELS][_DATA], what) if _LABELS in entry else None
        labels: Array | None = None
        rule = masks.rule if layout.first == 0 and masks.rule != RULE else None
        if _LOGITS in entry:
            logits = as_array(entry[_LOGITS][_DATA], what)
            values = self._probabilities(logits, what, masks.size)
            before = decided(values, rule)
            stored = logits.copy()
            level = log_sum(logits) if self._softmax else None

            def put(channel: int, probability: Floats, where: Bools) -> None:
                values[channel][where] = probability[where]
                one = probability if level is None else np.log(np.maximum(probability, _LEAST)) + level
                stored[channel][where] = as_stored(one, logits.dtype)[where]

            for number, probability in zip(masks.ids, masks.probabilities, strict=True):
                channel = number - layout.first
                put(channel, probability, probability != values[channel].clip(0.0, 1.0))
            after = decided(values, rule)
            hidden = [number - layout.first for number in layout.hidden]
            given_up = np.isin(after, hidden) & (after != before)
            if given_up.any():
                for channel in hidden:
                    put(channel, np.zeros(masks.size, np.float32), given_up)
                after = decided(values, rule)
            numbers = Kind.of(entry[_LOGITS][_DATA], logits).numbers(stored)
            changed[_LOGITS] = {**entry[_LOGITS], _DATA: numbers}
            if rule is not None:
                labels = after
            elif given is not None:
                labels = np.where(after != before, after, given.reshape(after.shape))
        elif given is not None and len(masks.probabilities):
            labels = relabelled(given.reshape(masks.size), masks, layout.first, rule)
        if given is not None and labels is not None:
            numbers = Kind.of(entry[_LABELS][_DATA], given).numbers(labels.reshape(given.shape))
            changed[_LABELS] = {**entry[_LABELS], _DATA: numbers}
        return changed

    def opened(self, stem: str) -> dict[Any, Any]:
        """The dict of an image as it is in the file, once all of its tensors have been opened; raises MaskError."""
        entry = self._of(stem)
        open_tensors(entry, f"{self._path}, image {stem}")
        return entry

    def _has_logits(self) -> bool:
        """Whether the first image with seg_logits has values that are no probabilities: a set is of one kind."""
        for stem, entry in self._entries.items():
            if _LOGITS in entry:
                values = as_array(entry[_LOGITS][_DATA], f"{self._path}, image {stem}")
                return values.dtype.kind == "f" and bool(((values < -0.001) | (values > 1.001)).any())
        return False

    def _of(self, stem: str) -> dict[Any, Any]:
        entry = self._entries.get(stem)
        if entry is None:
            raise MaskError(f"{self._path}: has nothing about the image {stem!r}")
        return entry

    def _of_logits(self, stem: str, naming: Naming) -> CoarseMasks:
        what = f"{self._path}, image {stem}"
        values = self._probabilities(as_array(self._of(stem)[_LOGITS][_DATA], what), what, naming.size)
        classes = len(self._table.classes)
        if len(values) not in (classes, classes + self._table.background):
            allowed = f"{classes + 1} or {classes}" if self._table.background else str(classes)
            raise MaskError(f"{what}: {len(values)} channels, the class table {self._table.dataset} has {allowed}")
        # Data sets leave the background out by a table of their own (VOC20): then there is a channel less.
        first = 0 if len(values) > classes else 1
        if [entry.id for entry in self._table.classes] != list(range(1, classes + 1)):
            raise MaskError(f"{what}: channels need the class ids 1 to {classes}, {self._table.dataset} has others")
        rules = None if naming.rules is None else [rule or RULE for rule in naming.rules]
        chosen = tuple(range(1, classes + 1)) if naming.names is not None else present(values, first, rules)
        names = named_by_ids(chosen, naming, what)
        places = selected(names, naming, what)
        chosen, names = tuple(chosen[place] for place in places), tuple(names[place] for place in places)
        hidden = () if naming.names is not None else tuple({*range(1, classes + 1)}.difference(chosen))
        size = values.shape[1], values.shape[2]
        if _LABELS in self._of(stem):
            labels = _labels(self._of(stem), what)
            if labels.shape != size:
                raise MaskError(f"{what}: {_LABELS} {list(labels.shape)} beside {_LOGITS} {list(values.shape)}")
        background = as_probability(values[0], f"{what}, background") if first == 0 else None
        return CoarseMasks(
            chosen,
            names,
            as_probabilities((values[number - first] for number in chosen), names, size, what),
            background=background,
            rule=RULE if first == 0 else None,
            origin={NAME: PredictionLayout(stem, first, hidden)},
        )

    def _of_labels(self, stem: str, entry: Mapping[Any, Any], naming: Naming) -> CoarseMasks:
        what = f"{self._path}, image {stem}"
        labels = _labels(entry, what)
        reduced = entry.get("reduce_zero_label", False)
        if reduced is not None and not isinstance(reduced, (bool, np.bool_)):
            raise MaskError(f"{what}: reduce_zero_label is a {type(reduced).__name__}, expected True or False")
        first = 0 if self._table.background and not reduced else 1
        present = tuple(number for label in np.unique(labels) if (number := int(label) + first) != 0)
        names = named_by_ids(present, naming, what)
        places = selected(names, naming, what)
        chosen = tuple(present[place] for place in places)
        check_count(len(chosen), (labels.shape[0], labels.shape[1]), what, naming.size)
        maps = np.zeros((len(chosen), *labels.shape), np.float32)
        for one, number in zip(maps, chosen, strict=True):
            one[labels == number - first] = 1.0
        return CoarseMasks(
            chosen,
            tuple(names[place] for place in places),
            maps,
            origin={NAME: PredictionLayout(stem, first)},
        )

    def _probabilities(self, values: Array, what: str, image: tuple[int, int] | None = None) -> Floats:
        """seg_logits as probabilities, a copy float32 [C,H,W]."""
        if values.ndim != 3 or 0 in values.shape or values.dtype.kind != "f":
            raise MaskError(f"{what}: {_LOGITS} {values.dtype} {list(values.shape)}, expected [classes, height, width]")
        check_count(len(values), (values.shape[1], values.shape[2]), what, image)
        with np.errstate(over="ignore"):  # told below
            maps: Floats = values.astype(np.float32)
        if not np.isfinite(maps).all():
            raise MaskError(f"{what}: {_LOGITS} has values that are NaN or infinite")
        if self._softmax:
            maps -= maps.max(axis=0)
            np.exp(maps, out=maps)
            maps /= maps.sum(axis=0)
        return maps


def write_collection(
    path: Path, results: Iterable[tuple[str, CoarseMasks | None]], source: PredictionCollection
) -> None:
    """Write refined masks as a file of predictions, atomically: the images in the order given, no others.

    Each dict is as it was but for seg_logits and pred_sem_seg (`PredictionCollection.updated`). One image at a time
    is held.

    Args:
        path: where to.
        results: stem and refined masks, read from `source`; None for an image that stays as it came.
        source: the file that they came from.

    Raises:
        MaskError: if a tensor of `source` that is passed on cannot be opened.
        OutputError: if the file cannot be written.
    """
    with atomic_file(path) as file:
        dicts = (source.opened(stem) if masks is None else source.updated(masks) for stem, masks in results)
        write_pickled_list(file, dicts)


def recognise(path: Path) -> str | None:
    """What makes the file one of predictions, in words, or None; opens no tensor, never raises MaskError."""
    if path.suffix.lower() not in _SUFFIXES:
        return None
    strings = peek_pickled_list(path)
    found = [name for name in (_PATH, _LOGITS, _LABELS) if name in strings]
    return f"a pickled list of dicts with {', '.join(found)}" if _PATH in found and len(found) > 1 else None


def _labels(entry: Mapping[Any, Any], what: str) -> Array:
    """pred_sem_seg, integers [H,W]; raises MaskError."""
    labels = as_array(entry[_LABELS][_DATA], what)
    labels = labels[0] if labels.ndim == 3 and len(labels) == 1 else labels
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise MaskError(f"{what}: labels {labels.dtype} {list(labels.shape)}, expected integers [1, height, width]")
    return labels
