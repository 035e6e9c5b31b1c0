"""How an engine's seconds grow: with the classes of an image, the batch size, the threads, and the model's square."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from g4seg_bench.choices import AXES
from g4seg_bench.figures import slope
from g4seg_bench.plans import Plan, Setup
from g4seg_bench.sides import TOTAL, Side, Task
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import load_engine
from g4seg_engine.spec import NETWORKS
from g4seg_trt.refiner import engine_directory

Done = Callable[[], object]


@dataclass(frozen=True)
class Axis:
    """One quantity to vary.

    Attributes:
        name: one of AXES.
        values: of it.
        engines: along "square", the engine of each value.
    """

    name: str
    values: tuple[int, ...]
    engines: Mapping[int, Path] = field(default_factory=dict)


def axes_of(
    names: Iterable[str], counts: Sequence[int], squares: Iterable[str], setup: Setup, plans: Sequence[Plan]
) -> list[Axis]:
    """The axes to measure.

    Args:
        names: of AXES.
        counts: of classes, and batch sizes: those that the engine was built for.
        squares: engines of the same model at other squares.
        setup: its threads are the most, its engine is one of the squares.
        plans: the engine's sides.

    Raises:
        G4SegError: if one of the squares is of another model, or two are of one size.
    """
    manifest, most = setup.manifest, setup.threads
    largest = min(manifest.networks[name].max_batch for name in NETWORKS if name != "vae_encoder")
    built = [
        set(artefact.batch_sizes)
        for artefact in manifest.artefacts
        if artefact.network == "unet" and artefact.backend in [plan.backend for plan in plans]
    ]
    engines = _by_square(setup, squares)
    values = {
        "square": tuple(sorted(engines)),
        "classes": tuple(counts),
        "batch": tuple(size for size in counts if size <= largest and all(size in sizes for sizes in built)),
        "threads": tuple(sorted({most, *(2**exponent for exponent in range(most.bit_length()))})),
    }
    return [Axis(name, values[name], engines if name == "square" else {}) for name in AXES if name in names]


def steps(axes: Iterable[Axis], sides: int, runs: int) -> int:
    """How often `measure_scaling` calls `done`."""
    return sides * (runs + 1) * sum(len(axis.values) for axis in axes)


def measure_scaling(setup: Setup, plans: Sequence[Plan], axes: Sequence[Axis], runs: int, done: Done) -> dict[str, Any]:
    """Vary one quantity at a time, each side by itself; `runs` after one that does not count.

    Along "classes" an image has so many masks, which run one by one: seconds are the image's. Along "batch" it has as
    many masks as go through the networks together: seconds are one mask's. Along the others it has one mask.

    Args:
        setup: what the sides share; its classes, batch size and threads are what is varied.
        plans: the engine's sides.
        axes: what to vary.
        runs: of each value.
        done: called after every run.

    Returns:
        By axis, a list of {"side", AXES[axis], "runs": seconds of each}; and "slopes": along "classes", by side, the
        seconds for each class more.
    """
    found: dict[str, Any] = {}
    slopes: dict[str, dict[str, float]] = {}
    for axis in axes:
        points = {plan.name: _points(setup, plan, axis, runs, done) for plan in plans}
        found[axis.name] = [
            {"side": name, AXES[axis.name]: value, "runs": [round(seconds, 6) for seconds in runs_of]}
            for name, one in points.items()
            for value, runs_of in one.items()
        ]
        if axis.name == "classes":
            fits = {name: slope({value: median(many) for value, many in one.items()}) for name, one in points.items()}
            slopes[axis.name] = {name: fit for name, fit in fits.items() if fit is not None}
    return {**found, "slopes": slopes}


def growth(points: Iterable[Mapping[str, Any]], side: str) -> str:
    """What more classes cost a side, in words: four against one, and whether masks get dearer.

    Args:
        points: of the axis "classes".
        side: whose.
    """
    runs = {one["classes"]: one["runs"] for one in points if one["side"] == side}
    seconds = {count: median(many) for count, many in runs.items()}
    counts = sorted(seconds)
    more = [(seconds[last] - seconds[first]) / (last - first) for first, last in pairwise(counts)]
    parts = [f"each class more costs {', '.join(f'{one:.3f}' for one in more)} s between {_listed(counts)} classes"]
    if {1, 4} <= set(counts):
        turns = sorted(four / one for four, one in zip(runs[4], runs[1], strict=True))
        parts.append(f"four cost {median(turns):.2f} times one ({turns[0]:.2f} to {turns[-1]:.2f}, turn by turn)")
    return "; ".join(parts)


def _by_square(setup: Setup, squares: Iterable[str]) -> dict[int, Path]:
    """The setup's engine and the others, by their square."""
    found = {setup.manifest.dims.square: setup.directory}
    for other in squares:
        directory = engine_directory(other)
        manifest = load_engine(directory)
        square = manifest.dims.square
        if manifest.model.id != setup.manifest.model.id:
            raise G4SegError(f"engine {other} is of the model {manifest.model.id}, expected {setup.manifest.model.id}")
        if square in found:
            raise G4SegError(f"engine {other} has the square {square}, as {found[square]} has: give each size once")
        found[square] = directory
    return found


def _points(setup: Setup, plan: Plan, axis: Axis, runs: int, done: Done) -> dict[int, list[float]]:
    """Seconds by the value of the axis, of an image or, along "batch", of one of its masks."""
    if axis.name == "classes":
        with closing(setup.open(plan, batch_size=1)) as side:
            return _timed(side, {count: Task.of(setup.manifest, count) for count in axis.values}, runs, done)
    found: dict[int, list[float]] = {}
    for value in axis.values:
        there = setup.at(axis.engines[value]) if axis.name == "square" else setup
        masks = value if axis.name == "batch" else 1
        threads = value if axis.name == "threads" else None
        with closing(there.open(plan, batch_size=masks, threads=threads)) as side:
            timed = _timed(side, {value: Task.of(there.manifest, masks)}, runs, done)
        found[value] = [seconds / masks for seconds in timed[value]]
    return found


def _timed(side: Side, tasks: Mapping[int, Task], runs: int, done: Done) -> dict[int, list[float]]:
    """The seconds of each task; the tasks take turns."""
    taken: dict[int, list[float]] = {value: [] for value in tasks}
    names = 0
    for turn in range(runs + 1):
        for value, task in tasks.items():
            seconds = side.refine(task, names).seconds[TOTAL]
            names += task.classes
            if turn > 0:
                taken[value].append(seconds)
            done()
    return taken


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
