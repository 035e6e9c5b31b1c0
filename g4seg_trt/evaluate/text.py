"""The figures of a set as lines of text, the same wherever they are printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from g4seg_trt.evaluate.boundary import TOLERANCE

_OVER = {
    "present": "those with a true or predicted pixel",
    "ground-truth": "those with a true pixel",
    "all": "all, absent ones as 0",
}


def report_lines(summary: Mapping[str, Any]) -> list[str]:
    """The figures of a set for people.

    Args:
        summary: as from `SetEvaluation.summary`; with "sweep" beside, as from `SweepEvaluation.summary`.
    """
    figures, coarse = summary["figures"], summary["coarse"]
    counted = f"{summary['images']} images, {figures['pixels']} pixels that count"
    lines = [f"{_plain(summary['dataset'])}: {counted}; all shares in percent"]
    lines += _set_lines(summary)
    if summary.get("sweep") is not None:
        lines += _sweep_lines(summary["sweep"], figures["mean_iou"])
    if summary["gain"] is not None:
        lines += _gain_lines(summary["gain"])
    return [*lines, *_class_lines(figures["classes"], None if coarse is None else coarse["classes"])]


def without_objects(summary: Mapping[str, Any]) -> str:
    """Why the figures of a set mean nothing, if the ground truth has no object at all; else ""."""
    if not summary["images"] or any(one["true_pixels"] for one in summary["figures"]["classes"] if one["id"] != 0):
        return ""
    return "no pixel of the ground truth has a class: label pictures hold the data set's ids, and 255 does not count"


def comparison_lines(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Kinds of masks side by side, for people.

    Args:
        rows: what it is, such as "coarse" -> its summary, as from `SetEvaluation.summary` with the same coarse masks.
    """
    table: list[tuple[str, ...]] = []
    for name, summary in rows.items():
        strata = summary["gain"]["strata"]
        if not table:
            heads = [f"{100 * one['from']:.0f}-{100 * one['to']:.0f}" for one in strata[:-1]]
            table.append(("masks", "mean IoU", *heads, "all", "made worse"))
        gains = ["n/a" if one["gain"] is None else f"{100 * one['gain']:+.2f}" for one in strata]
        table.append((_plain(name), percent(summary["figures"]["mean_iou"]), *gains, percent(strata[-1]["worse"])))
    return ["compared (gain in points by the IoU of the coarse mask):", *_table(table, left=0)]


def _set_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    figures, coarse = summary["figures"], summary["coarse"]
    over = f"over {figures['counted_classes']} of {len(figures['classes'])} classes ({_OVER[summary['mean_over']]})"
    yield f"mean IoU: {_beside(figures, coarse, 'mean_iou')} {over}"
    yield f"pixel accuracy: {_beside(figures, coarse, 'pixel_accuracy')}"
    yield f"mean class accuracy: {_beside(figures, coarse, 'mean_accuracy')}"
    boundary = figures["boundary"]
    if boundary is not None:
        before = None if coarse is None else coarse["boundary"]
        masks = boundary["boundary_masks"]
        yield f"boundary accuracy (mBA): {_beside(boundary, before, 'boundary_accuracy')} of {masks} masks"
        yield (
            f"boundary F: {_beside(boundary, before, 'boundary_f')} of {masks} masks, "
            f"within {100 * TOLERANCE:g} % of the diagonal"
        )
    if figures["unlabelled_pixels"]:
        yield f"pixels without a label, counted as wrong: {figures['unlabelled_pixels']}"


def _sweep_lines(sweep: Mapping[str, Any], fixed: float | None) -> Iterator[str]:
    yield f"background rules tried on this ground truth{_decided(sweep)}:"
    rows = [("rule", "mean IoU")]
    rows += [(rule["background"], percent(rule["mean_iou"])) for rule in sweep["rules"]]
    yield from _table(rows, left=0)
    best = sweep["best"]
    if best is not None:
        yield (
            f"best of the sweep, chosen on the ground truth: {best['background']} with mean IoU "
            f"{percent(best['mean_iou'])} (the fixed rule: {percent(fixed)})"
        )


def _decided(sweep: Mapping[str, Any]) -> str:
    """Which of the images no rule of a sweep changes."""
    count, images = sweep["label_pictures"], sweep["images"]
    return f" ({count} of {images} images are label pictures, the same under every rule)" if count else ""


def _gain_lines(gain: Mapping[str, Any]) -> Iterator[str]:
    yield "gain by the IoU of the coarse mask (points, one mask is one class of one image):"
    rows: list[tuple[str, ...]] = [
        ("IoU before", "masks", "before", "after", "gain", "+- 2 s.e.", "made worse", "made better")
    ]
    *strata, everything = gain["strata"]
    for stratum in (*strata, everything):
        name = "all" if stratum is everything else f"{100 * stratum['from']:.0f}-{100 * stratum['to']:.0f}"
        change = "n/a" if stratum["gain"] is None else f"{100 * stratum['gain']:+.2f}"
        error = "n/a" if stratum["two_errors"] is None else f"{100 * stratum['two_errors']:.2f}"
        shares = [percent(stratum[key]) for key in ("worse", "better")]
        middle = [percent(stratum[key]) for key in ("before", "after")]
        rows.append((name, str(stratum["masks"]), *middle, change, error, *shares))
    yield from _table(rows, left=0)
    yield (
        f"not among them: {gain['missed']} true masks without a pixel before and after, "
        f"{gain['false']} coarse masks of classes that the ground truth of their image does not have"
    )


def _class_lines(classes: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] | None) -> Iterator[str]:
    yield "classes:"
    names = {"iou": "IoU", "accuracy": "accuracy", "boundary_accuracy": "mBA", "boundary_f": "F"}
    if all(one["boundary_masks"] == 0 for one in classes):
        names = {key: name for key, name in names.items() if not key.startswith("boundary")}
    coarse = {} if before is None else {"coarse IoU": [percent(one["iou"]) for one in before]}
    rows = [("id", "class", *coarse, *names.values())]
    for index, one in enumerate(classes):
        cells = [*(column[index] for column in coarse.values()), *(percent(one[key]) for key in names)]
        rows.append((str(one["id"]), _plain(one["name"]), *cells))
    yield from _table(rows, left=1)


def _beside(figures: Mapping[str, Any], coarse: Mapping[str, Any] | None, key: str) -> str:
    """A figure in percent, with that of the coarse masks before it."""
    if coarse is None:
        return percent(figures[key])
    before, after = coarse[key], figures[key]
    gained = "n/a" if before is None or after is None else f"{100 * (after - before):+.2f}"
    return f"{percent(before)} before, {percent(after)} after ({gained})"


def _plain(name: str) -> str:
    """A name or path that cannot break a line."""
    return "".join(character if character.isprintable() else " " for character in name)


def percent(value: float | None) -> str:
    """A share from 0 to 1 in percent, "n/a" for None."""
    return "n/a" if value is None else f"{100 * value:.2f}"


def _table(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Cells of one column under each other, to the right but for the column `left`."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if column == left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()
