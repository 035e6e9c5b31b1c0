"""Writing the outputs of one image, and what its record says about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from g4seg_trt.arrays import Bytes, Floats, Labels
from g4seg_trt.atomic import reason
from g4seg_trt.class_table import ClassTable
from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.layout import LABEL, MASKS, MATCHES, OVERLAY, PROBABILITY, Layout
from g4seg_trt.dataset.mask_files import MaskSource
from g4seg_trt.dataset.measures import ClassFigures
from g4seg_trt.errors import OutputError
from g4seg_trt.evaluate.counts import NamedCounts
from g4seg_trt.masks import IGNORE, write_label_png, write_probabilities
from g4seg_trt.masks.coarse import CoarseMasks
from g4seg_trt.masks.labels import without
from g4seg_trt.matches import class_matches, draw_matches
from g4seg_trt.outputs import bytes_of
from g4seg_trt.overlay import draw_overlay, write_overlay
from g4seg_trt.refinement import Refinement
from g4seg_trt.update import BACKGROUND, BackgroundRule

Outputs: TypeAlias = dict[str, tuple[str, int] | None]
"""Kind -> name of the file or folder relative to the output folder, and its bytes; None where there is none."""


@dataclass(frozen=True)
class Work:
    """A refined image.

    Attributes:
        stem: its stem.
        image: uint8 RGB [H,W,3].
        masks: the coarse masks.
        rule: the background rule that decides.
        refinement: of these masks, by their names.
        refined: the refined maps, float32 [K,H,W].
        before: places of the coarse masks' classes, unsigned [H,W] (g4seg_trt.masks.labels).
        after: places of the refined ones.
        ids: class ids of the refined ones.
        figures: of each class.
        counts: what it adds to the figures of the set, None without a ground truth.
    """

    stem: str
    image: Bytes
    masks: CoarseMasks
    rule: BackgroundRule
    refinement: Refinement
    refined: Floats
    before: Labels
    after: Labels
    ids: Labels
    figures: dict[str, ClassFigures]
    counts: dict[str, NamedCounts] | None

    @property
    def changed_pixels(self) -> int:
        """Pixels with another label, of those that the source gives one."""
        before, after = (without(place, self.masks.ignored) for place in (self.before, self.after))
        return int((before != after).sum())

    @property
    def refined_masks(self) -> CoarseMasks:
        """The coarse masks with the refined maps and the rule, for the writer of their format."""
        return replace(self.masks, probabilities=self.refined, rule=self.rule)


def write_outputs(
    work: Work,
    layout: Layout,
    source: MaskSource,
    config: RefineConfig,
    table: ClassTable | None,
    older: Outputs,
) -> Outputs:
    """Write the files of one image.

    Args:
        work: the image.
        layout: which files.
        source: where the masks came from; writes the refined ones in the same layout.
        config: the settings of the refinement.
        table: the data set's classes; label pictures then hold its ids, also for a single class.
        older: files of an earlier run of the same inputs, kept beside the new ones.

    Raises:
        OutputError: if a file cannot be written.
    """
    masks, names = work.masks, work.masks.names
    files = {kind: layout.file(kind, work.stem, len(names)) for kind in layout.kinds()}
    nothing = {BACKGROUND: np.ones(work.image.shape[:2], dtype=np.float32)}  # an empty archive would have no size
    write_probabilities(files[PROBABILITY], work.refinement.probabilities if names else nothing)
    write_label(files[LABEL], masks, work.ids, table)
    if OVERLAY in files:
        write_overlay(files[OVERLAY], draw_overlay(work.image, work.before, work.after, names))
    if MATCHES in files and names:
        given = dict(zip(names, masks.probabilities, strict=True))
        write_overlay(files[MATCHES], draw_matches(work.image, class_matches(given, work.refinement, config)))
    back = source.back()
    if back is not None:
        files[MASKS] = layout.masks(back.name)
        source.write(files[MASKS], work.refined_masks)
    outputs: Outputs = dict(older)
    try:
        for kind, path in files.items():
            there = kind != MATCHES or bool(names)
            outputs[kind] = (path.relative_to(layout.root).as_posix(), bytes_of(path)) if there else None
    except OSError as error:
        raise OutputError(f"cannot write the outputs of {work.stem}: {reason(error)}") from error
    return outputs


def write_label(path: Path, masks: CoarseMasks, ids: Labels, table: ClassTable | None) -> None:
    """Write the label picture of an image, class ids unsigned [H,W]; raises OutputError."""
    if is_binary(masks, table):  # which has no value for pixels without a label
        write_label_png(path, np.where(ids == IGNORE, 0, ids), 1)
    else:
        write_label_png(path, ids, max(2, *masks.ids, 2))


def is_binary(masks: CoarseMasks, table: ClassTable | None) -> bool:
    """Whether the label picture is 0/255: a single class without an id of its own."""
    return table is None and masks.ids == (1,)
