"""Masks that came in one file for all images go back into one file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from g4seg_trt.atomic import reason
from g4seg_trt.dataset.job import Job
from g4seg_trt.dataset.layout import MASKS, PROBABILITY, Layout
from g4seg_trt.dataset.mask_files import MaskCollection
from g4seg_trt.dataset.plan import Plan
from g4seg_trt.dataset.record import Record, Records
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.errors import InputError, OutputError
from g4seg_trt.masks.array import npz_headers, read_npz
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.formats import FORMATS, CollectionFormat
from g4seg_trt.outputs import make_folders


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
    """The records of a run whose files of all images are removed before the first image that changes does.

    Only a run that comes to its end writes one: what is there else, whatever it is called, would be of other results
    than the rest of the folder.

    Args:
        records: of the output folder.
        layout: the output folder.
    """

    def __init__(self, records: Records, layout: Layout) -> None:
        self._records = records
        self._layout = layout
        self._removed = False

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
        if not self._removed:
            for path in collected_files(self._layout):
                self._layout.remove(path)
            self._removed = True


def collected_file(source: DatasetSource, layout: Layout) -> Path | None:
    """The file that the masks of all images go back into; None if they came one by one."""
    return layout.masks(source.masks.path.name) if isinstance(source.masks, MaskCollection) else None


def collected_files(layout: Layout) -> list[Path]:
    """The files of all images that runs have written, also from other files; raises OutputError."""
    formats = (one for one in FORMATS.values() if isinstance(one, CollectionFormat))
    suffixes = {suffix for one in formats for suffix in one.suffixes}
    folder = layout.root / MASKS
    try:
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        return [path for path in there if path.suffix.lower() in suffixes and path.is_file()]
    except OSError as error:
        raise OutputError(f"cannot read {folder}: {reason(error)}") from error


def write_collected(source: DatasetSource, plan: Plan, records: Records, failed: Collection[str]) -> Collected | None:
    """Write the refined masks of all images as one file, in the format they came in, if they came so.

    A run of a part of the images leaves that to the run of all of them. After a run of the images of a list, those
    beside it have what an earlier run with the same settings made of them. What nobody has refined stays as it came.

    Args:
        source: all images; each has its probabilities in the output folder, unless it failed.
        plan: of the run; says where the output folder is.
        records: of the output folder, as they were before the run.
        failed: stems of the images that failed and keep nothing of an earlier run.

    Returns:
        What was written, if anything.

    Raises:
        MaskError: if something that was readable is no longer.
        OutputError: if the file cannot be written.
    """
    whole, layout = source.masks, plan.layout
    if source.is_part or layout is None or not isinstance(whole, MaskCollection):
        return None
    path = layout.masks(whole.path.name)
    keys = whole.collection.stems()
    done = _done_before(source, plan, records)
    wanted = {entry.masks: entry.stem for entry in source.entries if isinstance(entry.masks, str)}
    done |= {key: stem for key, stem in wanted.items() if stem not in failed}

    def refined(stem: str, key: str) -> CoarseMasks:
        stored = layout.file(PROBABILITY, stem, 2)  # .npz for one class too: see keeps_names
        shape = next(iter(npz_headers(stored).values()))[0]
        size = (shape[0], shape[1]) if len(shape) == 2 else None
        maps = read_npz(stored, image=size)
        masks = whole.collection.read(key, replace(source.naming(stem), size=size, rules=(plan.rule,)))
        if masks.names:
            masks = masks.with_probabilities(np.stack([maps[name] for name in masks.names]))
        return replace(masks, rule=plan.rule or masks.rule)

    def results() -> Iterator[tuple[str, CoarseMasks | None]]:
        for key in keys:
            yield key, refined(done[key], key) if key in done else None

    make_folders([path.parent])
    whole.format.write(path, results(), whole.collection)
    return Collected(path, tuple(key for key in keys if key not in done))


def _done_before(source: DatasetSource, plan: Plan, records: Records) -> dict[str, str]:
    """Images beside the source's that have outputs of the inputs and settings of now: their keys -> their stems."""
    done = {}
    for entry, item in zip(source.beside, source.items_beside(), strict=True):
        before = records.find(item.stem)
        if before is None or not isinstance(entry.masks, str):
            continue
        job = Job(item, plan, before)
        try:
            job.look()
        except InputError:  # it cannot be read any more
            continue
        if job.keeps_outputs():
            done[entry.masks] = item.stem
    return done
