"""The plots of a latency record, as SVG files without outside references."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from g4seg_bench.choices import AXES
from g4seg_bench.latency_record import STARTS, LatencyRecord
from g4seg_bench.sides import REST, STAGES, TOTAL
from g4seg_bench.tables import AXIS_NAMES, STAGE_NAMES, START_NAMES, seconds
from g4seg_engine.errors import MissingExtraError
from g4seg_trt.cli.common import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which also readers with a colour blindness tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442")
WIDTH = 8.0
_STYLE: Any = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.0,
    "svg.fonttype": "path",  # the reader needs no font
    "svg.hashsalt": "g4seg",  # the same record gives the same file
    "text.parse_math": False,  # a name may hold a dollar sign
}
_LONGEST_NAME = 32


@dataclass(frozen=True)
class Plot:
    """A plot, and what it shows in one line."""

    title: str
    svg: bytes


def all_plots(record: LatencyRecord) -> Iterator[Plot]:
    """Every plot that the record has figures for.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    for title, draw in PLOTS.items():
        figure = _drawn(draw, record)
        if figure is not None:
            yield Plot(title, _svg(figure))


def draw_stages(record: LatencyRecord, figure: Figure) -> bool:
    """One bar for each side, made of its stages' medians."""
    sides = list(record.sides.values())
    figure.set_size_inches(WIDTH, 1.5 + 0.45 * len(sides))
    axes = figure.add_subplot()
    ends = [0.0] * len(sides)
    for stage, colour in zip((*STAGES, REST), COLOURS, strict=False):
        lengths = [side.stages[stage].median if stage in side.stages else 0.0 for side in sides]
        if any(stage in side.stages for side in sides):
            axes.barh(range(len(sides)), lengths, left=ends, color=colour, height=0.6, label=STAGE_NAMES[stage])
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    for row, side in enumerate(sides):
        axes.annotate(f" {seconds(side.stages[TOTAL].median)} s", (ends[row], row), va="center")
    _rows(axes, [_short(side.name) for side in sides])
    axes.set_xlim(0, 1.12 * max(*ends, 1e-9))
    axes.set_xlabel("seconds, median")
    if axes.containers:
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return True


def draw_ratios(record: LatencyRecord, figure: Figure) -> bool:
    """A dot for each pair of runs, a line from the least to the largest, a mark at the median."""
    if not record.ratios:
        return False
    figure.set_size_inches(WIDTH, 1.2 + 0.45 * len(record.ratios))
    axes = figure.add_subplot()
    for row, ratio in enumerate(record.ratios.values()):
        axes.plot([ratio.min, ratio.max], [row, row], color=COLOURS[0], linewidth=2, alpha=0.4)
        axes.plot(ratio.pairs, [row] * len(ratio.pairs), "o", color=COLOURS[0], markersize=5, alpha=0.6)
        axes.plot([ratio.median], [row], "|", color="black", markersize=18, markeredgewidth=2)
        axes.annotate(f"{ratio.median:.2f}", (ratio.median, row), (0, 11), textcoords="offset points", ha="center")
    axes.axvline(1.0, color="black", linewidth=1, linestyle=":")
    _rows(axes, [f"{_short(name)}\nover {_short(one.baseline)}" for name, one in record.ratios.items()])
    axes.set_ylim(len(record.ratios) - 0.5, -0.7)
    axes.set_xlim(0, 1.08 * max(1.0, *(one.max for one in record.ratios.values())))
    axes.set_xlabel("times faster, pair by pair (dotted: as fast)")
    return True


def draw_scaling(record: LatencyRecord, figure: Figure) -> bool:
    """Seconds over classes, batch size, threads and square; the legend gives the slopes."""
    found = [axis for axis in AXES if axis in record.scaling]
    if not found:
        return False
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    figure.set_size_inches(WIDTH, 3.2 * rows)
    colours = dict(zip(record.sides, COLOURS * len(record.sides), strict=False))
    for place, axis in enumerate(found):
        axes = figure.add_subplot(rows, columns, place + 1)
        one = record.scaling[axis]
        for name, points in one.points.items():
            slope = one.slopes.get(name)
            label = _short(name) if slope is None else f"{_short(name)}: {seconds(slope)} s each"
            medians = [seconds_of.median for _, seconds_of in points]
            bars = [[one.median - one.min for _, one in points], [one.max - one.median for _, one in points]]
            sizes = [size for size, _ in points]
            axes.errorbar(sizes, medians, bars, fmt="o-", color=colours[name], markersize=4, capsize=2, label=label)
        axes.set_xticks(sorted({size for points in one.points.values() for size, _ in points}))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(AXIS_NAMES[axis])
        axes.set_ylabel("seconds")
        axes.legend(frameon=False, fontsize=8)
    return True


def draw_cold_start(record: LatencyRecord, figure: Figure) -> bool:
    """Seconds from the start of the process, until ready (dark) and until the first mask (light)."""
    bars = [
        (side.name, kind, side.cold_start[kind])
        for side in record.sides.values()
        for kind in STARTS
        if kind in side.cold_start
    ]
    if not bars:
        return False
    figure.set_size_inches(WIDTH, 1.4 + 0.34 * len(bars))
    axes = figure.add_subplot()
    places = range(len(bars))
    axes.barh(places, [start.mask.median for *_, start in bars], color=COLOURS[4], height=0.7, label="first mask")
    axes.barh(places, [start.ready.median for *_, start in bars], color=COLOURS[0], height=0.7, label="ready")
    for row, (*_, start) in enumerate(bars):
        text = f" {seconds(start.ready.median)} s, {seconds(start.mask.median)} s"
        axes.annotate(text, (max(start.ready.median, start.mask.median), row), va="center")
    _rows(axes, [f"{_short(name)}, {START_NAMES[kind]}" for name, kind, _ in bars])
    axes.set_xlim(0, 1.25 * max(1e-9, *(max(start.ready.median, start.mask.median) for *_, start in bars)))
    axes.set_xlabel("seconds from the start of the process")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return True


def draw_memory(record: LatencyRecord, figure: Figure) -> bool:
    """Peak memory of every side."""
    bars = [
        (f"{_short(side.name)}{label}", megabytes / 1e3, colour)
        for side in record.sides.values()
        for label, megabytes, colour in (("", side.peak_mb, COLOURS[0]), (", GPU", side.device_mb, COLOURS[2]))
        if megabytes is not None
    ]
    if not bars:
        return False
    figure.set_size_inches(WIDTH, 1.0 + 0.4 * len(bars))
    axes = figure.add_subplot()
    axes.barh(range(len(bars)), [size for _, size, _ in bars], color=[colour for *_, colour in bars], height=0.6)
    for row, (_, size, _) in enumerate(bars):
        axes.annotate(f" {size:.2f} GB", (size, row), va="center")
    _rows(axes, [name for name, *_ in bars])
    axes.set_xlim(0, 1.15 * max(1e-9, *(size for _, size, _ in bars)))
    axes.set_xlabel("peak memory, GB")
    return True


Draw = Callable[[LatencyRecord, "Figure"], bool]

PLOTS: dict[str, Draw] = {
    "Where the time goes": draw_stages,
    "Times faster than the baseline": draw_ratios,
    "Scaling": draw_scaling,
    "Cold start": draw_cold_start,
    "Peak memory": draw_memory,
}
"""Title -> what draws into an empty figure; False where the record has no figures for it."""


def _drawn(draw: Draw, record: LatencyRecord) -> Figure | None:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise MissingExtraError.for_package("matplotlib", "bench") from error
    with rc_context(_STYLE):
        figure = Figure(layout="constrained")
        return figure if draw(record, figure) else None


def _svg(figure: Figure) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _rows(axes: Axes, names: list[str]) -> None:
    """Names of horizontal bars, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
