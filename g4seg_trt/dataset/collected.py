"""Masks that came in one file for all images go back into one file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from g4seg_trt.dataset.layout import PROBABILITY, Layout
from g4seg_trt.dataset.mask_files import MaskCollection
from g4seg_trt.dataset.record import Record, Records
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.masks.array import npz_headers, read_npz
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.outputs import make_folders
from g4seg_trt.update import BackgroundRule


@dataclass(frozen=True)
class Collected:
    """The file that was written.

    Attributes:
        path: where.
        unrefined: what it calls the images whose masks are there as they came, since none was refined.
    """

    path: Path
    unrefined: tuple[str, ...]


class CollectedRecords:
    """The records of a run whose file of all images is removed before the first image that changes does.

    Only a whole run that comes to its end writes the file: what it held else would be of other results than the rest
    of the folder.

    Args:
        records: of the output folder.
        layout: the output folder.
        path: the file, from `collected_file`; None if there is none.
    """

    def __init__(self, records: Records, layout: Layout, path: Path | None) -> None:
        self._records = records
        self._layout = layout
        self._path = path

    def withdraw(self, stem: str) -> None:
        """See Records."""
        self._remove()
        self._records.withdraw(stem)

    def add(self, record: Record) -> None:
        """See Records."""
        if record.stem not in self._records:  # or its outputs are the same again, if it was not withdrawn
            self._remove()
        self._records.add(record)

    def _remove(self) -> None:
        if self._path is not None:
            self._layout.remove(self._path)
            self._path = None


def collected_file(source: DatasetSource, layout: Layout) -> Path | None:
    """The file that the masks of all images go back into; None if they came one by one."""
    return layout.masks(source.masks.path.name) if isinstance(source.masks, MaskCollection) else None


def write_collected(
    source: DatasetSource, layout: Layout, failed: Collection[str], rule: BackgroundRule | None
) -> Collected | None:
    """Write the refined masks of all images as one file, in the format they came in, if they came so.

    A run of a part of the images leaves that to the run of all of them.

    Args:
        source: all images; each has its probabilities in the output folder, unless it failed.
        layout: the output folder.
        failed: stems of the images that failed and keep nothing of an earlier run.
        rule: the background rule asked for, None for the masks' own.

    Returns:
        What was written, if anything.

    Raises:
        MaskError: if something that was readable is no longer.
        OutputError: if the file cannot be written.
    """
    whole, path = source.masks, collected_file(source, layout)
    if source.is_part or path is None or not isinstance(whole, MaskCollection):
        return None
    stems = {entry.masks: entry.stem for entry in source.entries if isinstance(entry.masks, str)}
    done = {key: stem for key, stem in stems.items() if stem not in failed}
    keys = whole.collection.stems()

    def results() -> Iterator[tuple[str, CoarseMasks]]:
        for key in keys:
            if key not in done:
                yield key, whole.collection.read(key)
                continue
            refined = layout.file(PROBABILITY, done[key], 2)  # .npz for one class too: see keeps_names
            shape = next(iter(npz_headers(refined).values()))[0]
            size = (shape[0], shape[1]) if len(shape) == 2 else None
            maps = read_npz(refined, image=size)
            naming = replace(source.naming(done[key]), size=size, rules=(rule,))
            masks = whole.collection.read(key, naming)
            if masks.names:
                masks = masks.with_probabilities(np.stack([maps[name] for name in masks.names]))
            yield key, replace(masks, rule=rule or masks.rule)

    make_folders([path.parent])
    whole.format.write(path, results(), whole.collection)
    return Collected(path, tuple(key for key in keys if key not in done))
