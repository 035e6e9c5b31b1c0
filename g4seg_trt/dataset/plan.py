"""What all images of a run have in common, and what becomes of one of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from g4seg_trt.class_table import ClassTable
from g4seg_trt.config import RefineConfig
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.measures import ClassFigures
from g4seg_trt.dataset.record import Key, Record, settings_digest
from g4seg_trt.dataset.writing import Outputs
from g4seg_trt.errors import InputError
from g4seg_trt.evaluate.counts import NamedCounts
from g4seg_trt.evaluate.named import COARSE, RESULT
from g4seg_trt.postprocess import PostProcess
from g4seg_trt.update import BackgroundRule


@dataclass(frozen=True)
class Plan:
    """What is the same for all images of a run.

    Attributes:
        settings_sha256: of what the results depend on beside the image, its masks and the engine.
        engine_sha256: of the engine's manifest.
        config: the settings of the refinement.
        rule: the background rule asked for, None for the masks' own.
        table: the data set's classes, if it has them.
        layout: where the outputs go, None if nothing is written.
        post: post-processing of the refined masks.
        compare: another, whose figures are counted beside: of the coarse masks and of the refined ones.
    """

    settings_sha256: str
    engine_sha256: str
    config: RefineConfig
    rule: BackgroundRule | None
    table: ClassTable | None
    layout: Layout | None
    post: PostProcess | None = None
    compare: PostProcess | None = None

    @cached_property
    def compare_sha256(self) -> str | None:
        """Of the other post-processing, by its name and what its results depend on; raises ConfigError as those."""
        if self.compare is None:
            return None
        return settings_digest({"compare": self.compare.name, "parameters": self.compare.parameters()})


@dataclass(frozen=True)
class Finished:
    """What became of one image: small, so that it can be sent from one process to another.

    Attributes:
        key: what the outputs depend on.
        outputs: as in a Record.
        classes: figures of each class.
        counts: what it adds to the figures of the set, None without a ground truth.
        details: the rest of the Record.
    """

    key: Key
    outputs: Outputs
    classes: dict[str, ClassFigures]
    counts: dict[str, NamedCounts] | None
    details: dict[str, Any]

    def record(self, stem: str) -> Record:
        """The record of the image."""
        return Record(stem, self.key, self.outputs, self.details)


class DoneBefore(InputError):
    """No error: the image's outputs are there; its figures come along.

    Attributes:
        record: what the records say, or should: with new figures if it is remeasured.
        classes: figures of each class.
        counts: as in Finished.
        remeasured: whether the figures are those of another ground truth than the records know.
    """

    def __init__(
        self,
        record: Record,
        classes: dict[str, ClassFigures],
        counts: dict[str, NamedCounts] | None,
        *,
        remeasured: bool = False,
    ) -> None:
        super().__init__("done before")
        self.record = record
        self.classes = classes
        self.counts = counts
        self.remeasured = remeasured


class NothingToRefine(InputError):
    """No error: the image has masks of no class."""


def compared_rows(post: PostProcess) -> tuple[str, str]:
    """The rows that a comparison adds: the coarse masks after it, and the refined ones."""
    return f"{COARSE} + {post.name}", f"{RESULT} + {post.name}"
