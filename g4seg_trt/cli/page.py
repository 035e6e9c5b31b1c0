"""The report of a folder run: which images it shows, their figures, and what stands above them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g4seg_trt.dataset.done import draw_done
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.measures import mean_iou
from g4seg_trt.dataset.result import SKIPPED, Result
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.report import ReportRow, ReportRows, write_report
from g4seg_trt.report.html import percent
from g4seg_trt.update import BackgroundRule


class Page:
    """Takes every result once; pictures are drawn from the files, and only of images that are shown.

    Args:
        path: where the page goes.
        source: the images.
        layout: their outputs.
        rule: the background rule asked for.
    """

    def __init__(self, path: Path, source: DatasetSource, layout: Layout, rule: BackgroundRule | None) -> None:
        self.path = path
        self._source, self._layout, self._rule = source, layout, rule
        self._places = {entry.stem: place for place, entry in enumerate(source.entries)}
        self._rows = ReportRows()

    def add(self, result: Result) -> None:
        """Take a result; one that failed has no row."""
        if result.error is not None or result.record is None:
            return
        details, mean = result.record.details, mean_iou(result.classes.values())
        height, width = details["size"]
        row = ReportRow(
            result.stem,
            tuple(result.classes or details["classes"]),
            details["changed_pixels"] / (height * width),
            mean["before"],
            mean["after"],
            None if result.state == SKIPPED else sum(details["timings"].values()),
            tuple(details["warnings"]),
        )
        item = self._source.item(self._places[result.stem])
        self._rows.add(row, lambda: draw_done(item, self._layout, self._rule, self._source.table))

    def write(
        self,
        title: str,
        summary: Mapping[str, Any],
        facts: Mapping[str, Any],
        failures: Mapping[str, str],
        timings: Mapping[str, float],
    ) -> None:
        """Write the page; raises OutputError."""
        write_report(
            self.path, title, summary=summary, facts=facts, rows=self._rows, failures=failures, timings=timings
        )


def summary_of(
    counts: Mapping[str, int],
    evaluation: Mapping[str, Any] | None,
    compared: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What the page shows first.

    Args:
        counts: numbers of images.
        evaluation: as from `NamedEvaluation.summary`, or None.
        compared: row -> such a summary.
    """
    summary: dict[str, Any] = dict(counts)
    if evaluation is not None:
        for name, one in (("before", evaluation["coarse"]), ("after", evaluation["figures"])):
            summary[f"mean IoU {name}"] = percent(one["mean_iou"], 2)
        summary["Gain by the IoU of the coarse mask"] = [
            {
                "IoU before": f"{100 * stratum['from']:.0f} to {100 * stratum['to']:.0f} %",
                "masks": stratum["masks"],
                "before": percent(stratum["before"], 2),
                "after": percent(stratum["after"], 2),
                "made worse": percent(stratum["worse"], 2),
            }
            for stratum in evaluation["gain"]["strata"]
        ]
    if compared:
        summary["Compared"] = [
            {
                "masks": name,
                "mean IoU": percent(one["figures"]["mean_iou"], 2),
                "made worse": percent(one["gain"]["strata"][-1]["worse"], 2),
            }
            for name, one in compared.items()
        ]
    return summary
