"""A record of the latency benchmark, read back: every value that a report shows is checked here, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from g4seg_bench.choices import AXES
from g4seg_bench.record import read_json, shown
from g4seg_bench.sides import REST, STAGES, TOTAL
from g4seg_bench.work import Work
from g4seg_engine.errors import G4SegError

BENCHMARK, SCHEMA = "latency", 3
ROWS = (*STAGES, REST, TOTAL)
STARTS = ("first", "second", "no_cache")

_LARGEST = 1e30

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Seconds of a stage over all runs."""

    min: float
    p20: float
    median: float
    p80: float


@dataclass(frozen=True)
class Repeated:
    """Seconds of something that was measured once or several times."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Start:
    """Seconds from the start of a process until the engine was ready, and until its first mask was."""

    ready: Repeated
    mask: Repeated


@dataclass(frozen=True)
class SideRecord:
    """One side.

    Attributes:
        name: what the record calls it.
        backend: such as "openvino", or what runs a baseline.
        precision: what it computed in.
        device: such as "cpu".
        role: "engine" or "baseline".
        stages: by name; those that this side has.
        masks_per_second: by the median.
        peak_mb: main memory of a process of its own, 10^6 bytes; None if it was not measured.
        device_mb: GPU memory likewise.
        floors: seconds by stage, {} without ceilings.
        shares: of the ceiling by stage, likewise.
        cold_start: by its kind (STARTS), {} if it was not measured.
    """

    name: str
    backend: str
    precision: str
    device: str
    role: str
    stages: Mapping[str, Spread]
    masks_per_second: float
    peak_mb: float | None
    device_mb: float | None
    floors: Mapping[str, float]
    shares: Mapping[str, float]
    cold_start: Mapping[str, Start]


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the baseline a side is, from runs that followed each other."""

    baseline: str
    pairs: tuple[float, ...]
    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Scaling:
    """Seconds of one refinement as one quantity grows.

    Attributes:
        points: side -> (value, seconds), by value.
        slopes: side -> seconds for each unit more; {} if unknown.
    """

    points: Mapping[str, tuple[tuple[int, Repeated], ...]]
    slopes: Mapping[str, float]


@dataclass(frozen=True)
class LatencyRecord:
    """What a report shows of one record; attributes as in the JSON file.

    Attributes:
        file: name of the file.
        environment, engine, settings: plain JSON.
        ceilings: lines about the machine's ceilings.
        work: by stage, {} without an ONNX graph.
        sides: by name, in the order of the file.
        ratios: by side.
        unsafe: why the sides must not be compared; None if they may be.
        noise: side -> (p80 - p20) / median of the total.
        scaling: by axis, see AXES.
    """

    file: str
    environment: Mapping[str, Any]
    engine: Mapping[str, Any]
    settings: Mapping[str, Any]
    ceilings: tuple[str, ...]
    work: Mapping[str, Work]
    sides: Mapping[str, SideRecord]
    ratios: Mapping[str, Ratio]
    unsafe: str | None
    noise: Mapping[str, float]
    scaling: Mapping[str, Scaling]


def read_latency_record(path: Path) -> LatencyRecord:
    """Read a record of the latency benchmark.

    Raises:
        G4SegError: if the file cannot be read, is of another benchmark or schema, or a value is missing or wrong.
    """
    data = read_json(path)
    found = (data.get("benchmark"), data.get("schema"))
    if found != (BENCHMARK, SCHEMA):
        raise G4SegError(
            f"record {path} is of benchmark {shown(found[0])} and schema {shown(found[1])}, expected {BENCHMARK!r} "
            f"and {SCHEMA}: measure again with g4seg-bench --engine DIR --json FILE"
        )
    try:
        return latency_record(path.name, data)
    except _Wrong as error:
        raise G4SegError(f"record {path}: {error}; measure again") from error


class _Wrong(Exception):
    """Something in the record is not what it should be."""


def latency_record(file: str, data: Mapping[str, Any]) -> LatencyRecord:
    """A record that is already in memory, of this benchmark and schema; see read_latency_record."""
    sides = _each(_need(data, "sides"), "sides", _side)
    if not sides:
        raise _Wrong("sides is empty, expected at least one")
    ratios = _each(data.get("ratios") or {}, "ratios", _ratio)
    noise = _each(data.get("noise") or {}, "noise", _number)
    scaling = _scaling(data.get("scaling"))
    named = [*ratios, *noise, *(one.baseline for one in ratios.values())]
    named += [side for one in scaling.values() for side in (*one.points, *one.slopes)]
    for name in named:
        if name not in sides:
            raise _Wrong(f"side {shown(name)} is named and not among the sides {', '.join(sides)}")
    safe = _need(data, "safe")
    if not isinstance(safe, bool):
        raise _Wrong(f"safe is {shown(safe)}, expected true or false")
    return LatencyRecord(
        file=file,
        environment=_object(_need(data, "environment"), "environment"),
        engine=_object(_need(data, "engine"), "engine"),
        settings=_object(_need(data, "settings"), "settings"),
        ceilings=_ceilings(data.get("ceilings")),
        work=_each(data.get("work") or {}, "work", _work),
        sides=sides,
        ratios=ratios,
        unsafe=None if safe else _text(data.get("unsafe_reason") or "no reason given", "unsafe_reason"),
        noise=noise,
        scaling=scaling,
    )


def _side(value: object, where: str) -> SideRecord:
    side = _object(value, where)

    def text(key: str) -> str:
        return _text(_need(side, key, where), f"{where}.{key}")

    def optional(key: str) -> float | None:
        return None if side.get(key) is None else _number(side[key], f"{where}.{key}")

    stages = _each(_need(side, "stages", where), f"{where}.stages", _spread)
    if TOTAL not in stages:
        raise _Wrong(f"{where}.stages.{TOTAL} is missing")
    return SideRecord(
        name=where.partition(".")[2],
        backend=text("backend"),
        precision=text("compute_precision"),
        device=text("device"),
        role=text("role"),
        stages=stages,
        masks_per_second=_number(_need(side, "masks_per_second", where), f"{where}.masks_per_second"),
        peak_mb=optional("peak_mb"),
        device_mb=optional("device_mb"),
        floors=_known(side.get("floors"), f"{where}.floors"),
        shares=_known(side.get("shares"), f"{where}.shares"),
        cold_start=_each(side.get("cold_start") or {}, f"{where}.cold_start", _start),
    )


def _spread(value: object, where: str) -> Spread:
    return Spread(*_numbers(value, where, "min", "p20", "median", "p80"))


def _start(value: object, where: str) -> Start:
    start = _object(value, where)
    return Start(*(_repeated(_need(start, key, where), f"{where}.{key}") for key in ("ready", "mask")))


def _repeated(value: object, where: str) -> Repeated:
    runs = [_number(one, f"{where}[{i}]") for i, one in enumerate(_list(value, where))]
    if not runs:
        raise _Wrong(f"{where} is empty, expected the seconds of at least one run")
    return Repeated(median(runs), min(runs), max(runs))


def _work(value: object, where: str) -> Work:
    *flop, weights, activations = _numbers(
        value, where, "convolution", "product", "attention", "weight_bytes", "activation_bytes"
    )
    return Work(flop[0], flop[1], flop[2], int(weights), int(activations))


def _ratio(value: object, where: str) -> Ratio:
    ratio = _object(value, where)
    pairs = _list(_need(ratio, "pairs", where), f"{where}.pairs")
    return Ratio(
        _text(_need(ratio, "baseline", where), f"{where}.baseline"),
        tuple(_number(one, f"{where}.pairs[{i}]") for i, one in enumerate(pairs)),
        *_numbers(ratio, where, "median", "min", "max"),
    )


def _scaling(value: object) -> dict[str, Scaling]:
    if value is None:
        return {}
    data = _object(value, "scaling")
    slopes = _object(data.get("slopes") or {}, "scaling.slopes")
    found = {}
    for axis, key in AXES.items():
        where = f"scaling.{axis}"
        points: dict[str, dict[int, Repeated]] = {}
        for i, item in enumerate(_list(data.get(axis) or [], where)):
            here = f"{where}[{i}]"
            one = _object(item, here)
            (size,) = _numbers(one, here, key)
            side = _text(_need(one, "side", here), f"{here}.side")
            points.setdefault(side, {})[int(size)] = _repeated(_need(one, "runs", here), f"{here}.runs")
        if points:
            by_size = {side: tuple((size, many[size]) for size in sorted(many)) for side, many in points.items()}
            found[axis] = Scaling(by_size, _known(slopes.get(axis), f"scaling.slopes.{axis}"))
    return found


def _ceilings(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    ceilings = _object(value, "ceilings")
    rates = _each(_need(ceilings, "gflops", "ceilings"), "ceilings.gflops", _number)
    copy = _number(_need(ceilings, "copy_gb_s", "ceilings"), "ceilings.copy_gb_s")
    notes = _list(ceilings.get("notes") or [], "ceilings.notes")
    return (
        ", ".join([*(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()), f"copy {copy:.1f} GB/s"]),
        *(_text(note, f"ceilings.notes[{i}]") for i, note in enumerate(notes)),
    )


def _known(value: object, where: str) -> dict[str, float]:
    """Numbers by name; those that are null are left out."""
    items = _object(value if value is not None else {}, where)
    return {name: _number(one, f"{where}.{name}") for name, one in items.items() if one is not None}


def _each(value: object, where: str, read: Callable[[object, str], T]) -> dict[str, T]:
    return {name: read(one, f"{where}.{name}") for name, one in _object(value, where).items()}


def _numbers(value: object, where: str, *keys: str) -> list[float]:
    items = _object(value, where)
    return [_number(_need(items, key, where), f"{where}.{key}") for key in keys]


def _need(items: Mapping[str, Any], key: str, where: str = "") -> Any:
    if key not in items:
        raise _Wrong(f"{where}{'.' if where else ''}{key} is missing")
    return items[key]


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(f"{where} is {shown(value)}, expected an object")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Wrong(f"{where} is {shown(value)}, expected a list")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Wrong(f"{where} is {shown(value)}, expected a number")
    if not abs(value) < _LARGEST:
        raise _Wrong(f"{where} is {shown(value)}, expected a number below {_LARGEST:.0e}")
    return float(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"{where} is {shown(value)}, expected text")
    return value
