"""The tables of a latency record, as plain cells: the Markdown and the HTML report show the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from g4seg_bench.choices import AXES
from g4seg_bench.latency_record import ROWS, STARTS, LatencyRecord, Repeated, SideRecord
from g4seg_bench.sides import REST, TOTAL
from g4seg_trt.cli.common import one_line

BASELINE = "baseline"
"""The role of a side that the others are compared with."""
STAGE_NAMES: Mapping[str, str] = {
    "text": "text",
    "vae_encoder": "VAE encode",
    "unet": "UNet",
    "vae_decoder": "VAE decode",
    "image_encoder": "image encoder",
    "correspondence": "correspondence",
    REST: "the rest",
    TOTAL: "total",
}
AXIS_NAMES: Mapping[str, str] = {
    "classes": "classes of one image",
    "batch": "batch size, s for each mask",
    "threads": "threads",
    "square": "side of the square, pixels",
}
START_NAMES: Mapping[str, str] = {
    "first": "first start",
    "second": "second start",
    "no_cache": "without caches",
}


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first column is what a row is about, the others are figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table alone, without its title."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "\n".join("| " + " | ".join(escaped(cell) for cell in line) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for special in "\\`|<":
        text = text.replace(special, "\\" + special)
    return one_line(text)


def seconds(value: float) -> str:
    """Seconds with three significant digits, at most to the microsecond."""
    if abs(value) < 1e-6:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.6f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) < 100 else f"{value:.0f}"


def ranged(value: Repeated) -> str:
    """The median, and between what the runs lie if there are several."""
    if value.min == value.max:
        return seconds(value.median)
    return f"{seconds(value.median)} ({seconds(value.min)} to {seconds(value.max)})"


def headline(record: LatencyRecord) -> str:
    """What was measured, in one line."""
    engine, settings = record.engine, record.settings
    vae = engine.get("vae")
    classes = settings.get("classes", "?")
    parts = [
        plain(engine.get("model", "unknown model")),
        f"{plain(engine.get('square', '?'))} px",
        f"graphs in {plain(engine.get('precision', '?'))}, {plain(engine.get('form', '?'))}",
        *([f"VAE {plain(vae)}"] if vae else []),
        f"{plain(classes)} class{'' if classes == 1 else 'es'} in batches of {plain(settings.get('batch_size', '?'))}",
        f"{plain(settings.get('threads', '?'))} threads",
        f"{plain(settings.get('runs', '?'))} runs in turns, after {plain(settings.get('warmup', '?'))} not counted",
    ]
    return ", ".join(parts)


def plain(value: Any) -> str:
    """A value of plain JSON in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(map(plain, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def all_tables(record: LatencyRecord) -> Iterator[Table]:
    """Every table that the record has figures for."""
    yield median_table(record)
    for side in record.sides.values():
        yield side_table(record, side)
    if record.ratios:
        yield ratio_table(record)
    if any(side.peak_mb is not None for side in record.sides.values()):
        yield memory_table(record)
    if any(side.cold_start for side in record.sides.values()):
        yield cold_start_table(record)
    if record.scaling:
        yield scaling_table(record)
    yield machine_table(record)


def median_table(record: LatencyRecord) -> Table:
    """Stages as rows, sides as columns, then masks a second, the ratio to the baseline, and peak memory."""
    sides = record.sides.values()
    rows = []
    for stage in ROWS:
        found = [side.stages.get(stage) for side in sides]
        if any(found):
            rows.append((STAGE_NAMES[stage], *("" if one is None else seconds(one.median) for one in found)))
    rows.append(("masks a second", *(f"{side.masks_per_second:.3g}" for side in sides)))
    if record.ratios:
        doubt = "" if record.unsafe is None else " (unsafe to compare)"
        rows.append((f"times faster, pair by pair{doubt}", *(_ratio_cell(record, side.name) for side in sides)))
    if any(side.peak_mb is not None for side in sides):
        rows.append(("peak memory, GB", *(_gigabytes(side.peak_mb) for side in sides)))
    if any(side.device_mb is not None for side in sides):
        rows.append(("GPU memory, GB", *(_gigabytes(side.device_mb) for side in sides)))
    return Table("Median seconds", ("stage", *(f"{side.name}, s" for side in sides)), tuple(rows))


def side_table(record: LatencyRecord, side: SideRecord) -> Table:
    """One side: the spread of every stage, its work, its floor and its share of the ceiling."""
    rows = []
    for stage in ROWS:
        if stage not in side.stages:
            continue
        one, work = side.stages[stage], record.work.get(stage)
        floor, share = side.floors.get(stage), side.shares.get(stage)
        rows.append(
            (
                STAGE_NAMES[stage],
                *(seconds(value) for value in (one.min, one.p20, one.median, one.p80)),
                "" if work is None else f"{work.flop / 1e12:.3f}",
                "" if work is None else f"{work.bytes / 1e9:.2f}",
                "" if floor is None else seconds(floor),
                "" if share is None else f"{100 * share:.0f} %",
            )
        )
    head = ("stage", "min, s", "p20, s", "median, s", "p80, s", "TFLOP", "GB", "floor, s", "share of the ceiling")
    notes = [side.backend, side.precision, side.device]
    if side.name in record.noise:
        notes.append(f"the total spreads by {100 * record.noise[side.name]:.1f} %")
    if side.role == BASELINE and record.work:
        notes.append("work as the engine's graphs do it")
    return Table(f"{side.name}: {', '.join(notes)}", head, tuple(rows))


def ratio_table(record: LatencyRecord) -> Table:
    """How many times faster than its baseline each side is, from neighbouring runs."""
    rows = [
        (
            name,
            ratio.baseline,
            *(f"{value:.2f}" for value in (ratio.median, ratio.min, ratio.max)),
            ", ".join(f"{pair:.2f}" for pair in ratio.pairs),
        )
        for name, ratio in record.ratios.items()
    ]
    head = ("side", "times faster than", "median", "min", "max", "pairs")
    return Table("Ratio, pair by pair", head, tuple(rows))


def memory_table(record: LatencyRecord) -> Table:
    """Peak memory of every side, each in a process of its own."""
    rows = [(side.name, _gigabytes(side.peak_mb), _gigabytes(side.device_mb)) for side in record.sides.values()]
    return Table("Peak memory, each in a process of its own", ("side", "main, GB", "GPU, GB"), tuple(rows))


def cold_start_table(record: LatencyRecord) -> Table:
    """Seconds from the start of a process until it is ready, and until its first mask."""
    rows = [
        (side.name, START_NAMES[kind], ranged(side.cold_start[kind].ready), ranged(side.cold_start[kind].mask))
        for side in record.sides.values()
        for kind in STARTS
        if kind in side.cold_start
    ]
    head = ("side", "start", "ready, s", "first mask, s")
    return Table("Cold start, from the start of the process", head, tuple(rows))


def scaling_table(record: LatencyRecord) -> Table:
    """Seconds of one refinement as one quantity grows; of classes also the slope: seconds for each one more."""
    names = list(record.sides)
    rows = []
    for axis in AXES:
        if axis not in record.scaling:
            continue
        one = record.scaling[axis]
        by_side = {name: dict(points) for name, points in one.points.items()}
        for value in sorted({value for points in by_side.values() for value in points}):
            cells = (by_side.get(name, {}).get(value) for name in names)
            rows.append((f"{AXIS_NAMES[axis]}: {value}", *("" if cell is None else ranged(cell) for cell in cells)))
        if one.slopes:
            slopes = (one.slopes.get(name) for name in names)
            rows.append((f"{AXIS_NAMES[axis]}: slope", *("" if slope is None else seconds(slope) for slope in slopes)))
    return Table("Scaling", ("", *(f"{name}, s" for name in names)), tuple(rows))


def machine_table(record: LatencyRecord) -> Table:
    """The machine, its ceilings, versions, and the settings."""
    told: list[tuple[str, str]] = [
        *((_words(key), plain(value)) for key, value in record.environment.items()),
        *((f"engine: {_words(key)}", plain(value)) for key, value in record.engine.items()),
        *((f"setting: {_words(key)}", plain(value)) for key, value in record.settings.items()),
        *(("ceiling", line) for line in record.ceilings),
    ]
    return Table("Machine, versions and settings", ("", ""), tuple(told))


def overview_table(records: Sequence[LatencyRecord]) -> Table:
    """One row for each side of each record."""
    rows = []
    for record in records:
        for side in record.sides.values():
            total = side.stages[TOTAL]
            rows.append(
                (
                    record.file,
                    plain(record.engine.get("model", "")),
                    f"{plain(record.engine.get('square', '?'))} px",
                    side.name,
                    side.precision,
                    seconds(total.median),
                    f"{side.masks_per_second:.3g}",
                    _ratio_cell(record, side.name),
                    "no" if record.unsafe is not None else "yes",
                )
            )
    head = (
        "record",
        "model",
        "square",
        "side",
        "precision",
        "total, s",
        "masks a second",
        "times faster",
        "safe to compare",
    )
    return Table("Overview", head, tuple(rows))


def _ratio_cell(record: LatencyRecord, side: str) -> str:
    ratio = record.ratios.get(side)
    if ratio is None:
        return "1" if any(one.baseline == side for one in record.ratios.values()) else ""
    return f"{ratio.median:.2f} ({ratio.min:.2f} to {ratio.max:.2f})"


def _words(key: str) -> str:
    return f"{key.removesuffix('_mb')}, MB" if key.endswith("_mb") else key.replace("_", " ")


def _gigabytes(megabytes: float | None) -> str:
    return "" if megabytes is None else f"{megabytes / 1e3:.2f}"
