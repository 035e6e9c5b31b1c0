"""How an engine's seconds grow: with the classes of an image, with the batch size, with the threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from g4seg_bench.choices import AXES
from g4seg_bench.figures import slope
from g4seg_bench.plans import Plan, Setup
from g4seg_bench.sides import TOTAL, Side, Task
from g4seg_engine.spec import NETWORKS

KEYS = {"classes": "classes", "batch": "batch_size", "threads": "threads"}

Done = Callable[[], object]


@dataclass(frozen=True)
class Axis:
    """One quantity to vary.

    Attributes:
        name: one of AXES.
        values: of it.
    """

    name: str
    values: tuple[int, ...]


def axes_of(names: Iterable[str], counts: Sequence[int], setup: Setup, plans: Sequence[Plan]) -> list[Axis]:
    """The axes to measure.

    Args:
        names: of AXES.
        counts: of classes, and batch sizes: those that the engine was built for.
        setup: its threads are the most.
        plans: the engine's sides.
    """
    manifest, most = setup.manifest, setup.threads
    largest = min(manifest.networks[name].max_batch for name in NETWORKS if name != "vae_encoder")
    built = [
        set(artefact.batch_sizes)
        for artefact in manifest.artefacts
        if artefact.network == "unet" and artefact.backend in [plan.backend for plan in plans]
    ]
    values = {
        "classes": tuple(counts),
        "batch": tuple(size for size in counts if size <= largest and all(size in sizes for sizes in built)),
        "threads": tuple(sorted({most, *(2**exponent for exponent in range(most.bit_length()))})),
    }
    return [Axis(name, values[name]) for name in AXES if name in names]


def steps(axes: Iterable[Axis], sides: int, runs: int) -> int:
    """How often `measure_scaling` calls `done`."""
    return sides * (runs + 1) * sum(len(axis.values) for axis in axes)


def measure_scaling(setup: Setup, plans: Sequence[Plan], axes: Sequence[Axis], runs: int, done: Done) -> dict[str, Any]:
    """Vary one quantity at a time, each side by itself; the median of `runs` after one that does not count.

    Along "classes" an image has so many masks, which run one by one: seconds are the image's. Along "batch" it has as
    many masks as go through the networks together: seconds are one mask's. Along "threads" it has one mask.

    Args:
        setup: what the sides share; its classes, batch size and threads are what is varied.
        plans: the engine's sides.
        axes: what to vary.
        runs: of each value.
        done: called after every run.

    Returns:
        By axis, a list of {"side", KEYS[axis], "seconds"}; and "slopes": by axis but "threads" and by side, the seconds
        for each class more, and for each mask more in a batch.
    """
    found: dict[str, Any] = {}
    slopes: dict[str, dict[str, float]] = {}
    for axis in axes:
        points = {plan.name: _points(setup, plan, axis, runs, done) for plan in plans}
        found[axis.name] = [
            {"side": name, KEYS[axis.name]: value, "seconds": round(seconds / _share(axis, value), 6)}
            for name, one in points.items()
            for value, seconds in one.items()
        ]
        if axis.name != "threads":
            fits = {name: slope(one) for name, one in points.items()}
            slopes[axis.name] = {name: fit for name, fit in fits.items() if fit is not None}
    return {**found, "slopes": slopes}


def growth(points: Iterable[Mapping[str, Any]], side: str) -> str:
    """What more classes cost a side, in words: four against one, and whether masks get dearer.

    Args:
        points: of the axis "classes".
        side: whose.
    """
    seconds = {one["classes"]: one["seconds"] for one in points if one["side"] == side}
    counts = sorted(seconds)
    more = [(seconds[last] - seconds[first]) / (last - first) for first, last in pairwise(counts)]
    parts = [f"each class more costs {', '.join(f'{one:.3f}' for one in more)} s between {_listed(counts)} classes"]
    if {1, 4} <= set(counts):
        parts.append(f"four cost {seconds[4] / seconds[1]:.2f} times one")
    return "; ".join(parts)


def _points(setup: Setup, plan: Plan, axis: Axis, runs: int, done: Done) -> dict[int, float]:
    """Seconds of an image by the value of the axis."""
    if axis.name == "classes":
        with closing(setup.open(plan, batch_size=1)) as side:
            return _timed(side, {count: Task.of(setup.manifest, count) for count in axis.values}, runs, done)
    found: dict[int, float] = {}
    for value in axis.values:
        batch = axis.name == "batch"
        opened = setup.open(plan, batch_size=value) if batch else setup.open(plan, batch_size=1, threads=value)
        with closing(opened) as side:
            found |= _timed(side, {value: Task.of(setup.manifest, value if batch else 1)}, runs, done)
    return found


def _timed(side: Side, tasks: Mapping[int, Task], runs: int, done: Done) -> dict[int, float]:
    """The median seconds of each task; the tasks take turns."""
    taken: dict[int, list[float]] = {value: [] for value in tasks}
    names = 0
    for turn in range(runs + 1):
        for value, task in tasks.items():
            seconds = side.refine(task, names).seconds[TOTAL]
            names += task.classes
            if turn > 0:
                taken[value].append(seconds)
            done()
    return {value: median(many) for value, many in taken.items()}


def _share(axis: Axis, value: int) -> int:
    """Masks among which an image's seconds are shared out."""
    return value if axis.name == "batch" else 1


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
