"""What became of the images of a folder run: sums, so that a large data set needs no more memory than a small one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from g4seg_trt.dataset.measures import MeanIou
from g4seg_trt.dataset.run import FAILED, SKIPPED, Result
from g4seg_trt.evaluate import NamedEvaluation
from g4seg_trt.timing import Timings

MOST_IMAGES = 10_000
"""A report lists the images of runs up to this size; those of larger ones are in the records."""

MOST_WARNINGS = 1_000
"""Warnings that are said again at the end of a run; all of them are in the records."""


@dataclass
class Tally:
    """Sums over the results.

    Attributes:
        images: stem -> what a report says about it; None if there is no report, or the run is too large for it.
        refined: how many.
        skipped: how many were done before.
        failures: stem -> why.
        redone: what differed from the records -> how many images were refined again for it.
        formats: format of masks -> how many images.
        warnings: the first ones.
        more_warnings: how many followed.
        softened: masks that were softened.
        iou: running means over masks.
        evaluation: the figures of the set, where there is a ground truth.
        timings: seconds by stage.
    """

    images: dict[str, dict[str, Any]] | None
    refined: int = 0
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    redone: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    more_warnings: int = 0
    softened: int = 0
    iou: MeanIou = field(default_factory=MeanIou)
    evaluation: NamedEvaluation = field(default_factory=NamedEvaluation)
    timings: Timings = field(default_factory=Timings)

    @property
    def done(self) -> int:
        """Images whose outputs are there."""
        return self.refined + self.skipped

    def sort(self, stems: Iterable[str]) -> None:
        """Bring failures and images into this order: many workers finish them in any."""
        places = {stem: place for place, stem in enumerate(stems)}
        self.failures = dict(sorted(self.failures.items(), key=lambda pair: places[pair[0]]))
        if self.images is not None:
            self.images = dict(sorted(self.images.items(), key=lambda pair: places[pair[0]]))

    def add(self, result: Result, images: Path) -> None:
        """Count one in; `images` is the folder of the images."""
        if result.taken_for[0]:
            self.formats[result.taken_for[0]] += 1
        if result.error is not None or result.state == FAILED:
            self.failures[result.stem] = str(result.error)
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
            for warning in result.refinement.warnings:
                if len(self.warnings) < MOST_WARNINGS:
                    self.warnings.append(f"{result.stem}: {warning}")
                else:
                    self.more_warnings += 1
        if self.images is not None:
            self.images[result.stem] = _report(result, images, skipped)


def _report(result: Result, images: Path, skipped: bool) -> dict[str, Any]:
    details = result.record.details if result.record is not None else {}
    recorded = details.get("classes", {})
    classes = {
        name: {**one.to_mapping(), "softened": recorded.get(name, {}).get("softened")}
        for name, one in result.classes.items()
    }
    report: dict[str, Any] = {"image": str(images / result.image), "skipped": skipped, "classes": classes}
    if not skipped:
        report |= {"timings": details.get("timings"), "warnings": details.get("warnings")}
    return report
