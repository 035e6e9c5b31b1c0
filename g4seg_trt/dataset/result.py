"""What became of one image of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from g4seg_trt.dataset.measures import ClassFigures
from g4seg_trt.dataset.record import Record
from g4seg_trt.errors import G4SegError
from g4seg_trt.evaluate.counts import NamedCounts
from g4seg_trt.refinement import Refinement

REFINED, SKIPPED, FAILED = "refined", "skipped", "failed"


@dataclass(frozen=True)
class Result:
    """What became of one image.

    Attributes:
        stem: its stem.
        image: its file, relative to the folder of the images.
        refinement: with the names of the masks; None for images that were skipped or failed.
        error: why it failed.
        kept: whether an image that failed keeps outputs of an earlier run: what they were made from is still the same.
        classes: figures of each class, of skipped images those of the record.
        counts: what it adds to the figures of the set (g4seg_trt.evaluate.NamedEvaluation); None without a ground
            truth.
        record: what the output folder's records say; None if it failed or nothing is written.
        remeasured: whether the record is one with figures of another ground truth.
        redone: in what its inputs differ from those of the record that it had.
        taken_for: the format of its masks, and why.
        write_seconds: spent on its outputs.
    """

    stem: str
    image: str
    refinement: Refinement | None = None
    error: G4SegError | None = None
    kept: bool = False
    classes: Mapping[str, ClassFigures] = field(default_factory=dict)
    counts: Mapping[str, NamedCounts] | None = None
    record: Record | None = None
    remeasured: bool = False
    redone: tuple[str, ...] = ()
    taken_for: tuple[str, str] = ("", "")
    write_seconds: float = 0.0

    @property
    def state(self) -> str:
        """REFINED, SKIPPED (done before) or FAILED."""
        if self.error is not None:
            return FAILED
        return SKIPPED if self.refinement is None else REFINED
