"""What became of the images of a folder run: sums, so that a large data set needs no more memory than a small one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from pathlib import Path
from typing import Any

from g4seg_trt.dataset.measures import MeanIou
from g4seg_trt.dataset.result import SKIPPED, Result
from g4seg_trt.evaluate import NamedEvaluation
from g4seg_trt.timing import Timings

MOST_IMAGES = 10_000
"""A report lists the images of runs up to this size; those of larger ones are in the records."""

MOST_WARNINGS = 1_000
"""Warnings about images that a report has; all of them are in the records."""


@dataclass
class Tally:
    """Sums over the results.

    Attributes:
        images: stem -> what a report says about it; None if there is no report, or the run is too large for it.
        places: stem -> its place in the source, for many workers finish the images in any order.
        refined: how many.
        skipped: how many were done before.
        failures: stem -> why.
        lost: stems of those failures that have no outputs of an earlier run either.
        redone: what differed from the records -> how many images were refined again for it.
        formats: format of masks -> how many images.
        remarks: warnings about the run as a whole.
        more_warnings: warnings about images that `warnings` leaves out.
        softened: masks that were softened.
        iou: running means over masks.
        evaluation: the figures of the set, where there is a ground truth.
        timings: seconds by stage.
    """

    images: dict[str, dict[str, Any]] | None
    places: Mapping[str, int]
    refined: int = 0
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    redone: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    more_warnings: int = 0
    softened: int = 0
    iou: MeanIou = field(default_factory=MeanIou)
    evaluation: NamedEvaluation = field(default_factory=NamedEvaluation)
    timings: Timings = field(default_factory=Timings)
    _first: list[tuple[int, int, str]] = field(default_factory=list)
    """A heap of warnings with the place of their image and their number there, both negative: the last comes first."""

    @property
    def done(self) -> int:
        """Images whose outputs are there."""
        return self.refined + self.skipped

    @property
    def warnings(self) -> list[str]:
        """The remarks, and the warnings about the first images that have any, in order."""
        return [*self.remarks, *(text for _, _, text in sorted(self._first, reverse=True))]

    def sort(self) -> None:
        """Bring failures and images into the order of the source, and what was counted into that of the names."""
        self.failures = dict(sorted(self.failures.items(), key=lambda pair: self.places[pair[0]]))
        if self.images is not None:
            self.images = dict(sorted(self.images.items(), key=lambda pair: self.places[pair[0]]))
        self.redone, self.formats = (Counter(dict(sorted(one.items()))) for one in (self.redone, self.formats))

    def add(self, result: Result, images: Path) -> None:
        """Count one in; `images` is the folder of the images."""
        if result.taken_for[0]:
            self.formats[result.taken_for[0]] += 1
        if result.error is not None:
            self.failures[result.stem] = str(result.error)
            if not result.kept:
                self.lost.add(result.stem)
            return
        skipped = result.state == SKIPPED
        self.skipped += skipped
        self.refined += not skipped
        self.iou.add(result.classes.values())
        if result.counts is not None:
            self.evaluation.add(result.counts)
        if result.refinement is not None:
            self.redone.update(result.redone)
            self.softened += sum(share > 0 for share in result.refinement.softened.values())
            self.timings.add({**result.refinement.timings, "write": result.write_seconds})
            for number, warning in enumerate(result.refinement.warnings):
                self._warn(-self.places[result.stem], -number, f"{result.stem}: {warning}")
        if self.images is not None:
            self.images[result.stem] = _report(result, images, skipped)

    def _warn(self, place: int, number: int, text: str) -> None:
        if len(self._first) < MOST_WARNINGS:
            heappush(self._first, (place, number, text))
        else:
            heappushpop(self._first, (place, number, text))
            self.more_warnings += 1


def _report(result: Result, images: Path, skipped: bool) -> dict[str, Any]:
    details = result.record.details if result.record is not None else {}
    recorded = details.get("classes", {})
    classes = {
        name: {**one.to_mapping(), "softened": recorded.get(name, {}).get("softened")}
        for name, one in result.classes.items()
    }
    report: dict[str, Any] = {"image": str(images / result.image), "skipped": skipped, "classes": classes}
    report["background"] = details.get("background")
    if not skipped:
        report |= {"timings": details.get("timings"), "warnings": details.get("warnings")}
    return report
