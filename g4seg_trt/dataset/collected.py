"""Masks that came in one file for all images go back into one file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from g4seg_trt.dataset.layout import MASKS, PROBABILITY, Layout
from g4seg_trt.dataset.mask_files import MaskCollection
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.masks import read_masks
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


def write_collected(
    source: DatasetSource, layout: Layout, failed: Collection[str], rule: BackgroundRule | None
) -> Collected | None:
    """Write the refined masks of all images as one file, in the format they came in, if they came so.

    A run of a part of the images leaves that to the run of all of them.

    Args:
        source: all images; each has its probabilities in the output folder, unless it failed.
        layout: the output folder.
        failed: stems of the images that failed.
        rule: the background rule asked for, None for the masks' own.

    Returns:
        What was written, if anything.

    Raises:
        MaskError: if something that was readable is no longer.
        OutputError: if the file cannot be written.
    """
    whole = source.masks
    if source.is_part or not isinstance(whole, MaskCollection):
        return None
    stems = {entry.masks: entry.stem for entry in source.entries if isinstance(entry.masks, str)}
    done = {key: stem for key, stem in stems.items() if stem not in failed}
    keys = whole.collection.stems()

    def refined() -> Iterator[tuple[str, CoarseMasks]]:
        for key in keys:
            if key not in done:
                yield key, whole.collection.read(key)
                continue
            masks = whole.collection.read(key, source.naming(done[key]))
            if masks.names:
                maps = read_masks(layout.file(PROBABILITY, done[key], len(masks.names)))
                masks = masks.with_probabilities(np.stack([maps[name] for name in masks.names]))
            yield key, replace(masks, rule=rule or masks.rule)

    path = layout.root / MASKS / whole.path.name
    make_folders([path.parent])
    whole.format.write(path, refined(), whole.collection)
    return Collected(path, tuple(key for key in keys if key not in done))
