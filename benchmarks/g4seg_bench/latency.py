"""Seconds and memory of a refinement: an engine on its backends, and PyTorch, in turns.

All sides refine the same masks of the same image in one process, one after the other, round by round; the first rounds
do not count. Nothing is kept between runs. Memory and cold starts have processes of their own, see `cold`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from g4seg_bench.assembly import Figures, Turns, assemble, stage_work
from g4seg_bench.baseline import baseline_source
from g4seg_bench.calibration import Calibration
from g4seg_bench.ceilings import measure_ceilings
from g4seg_bench.choices import BaselineChoice, Choice
from g4seg_bench.cold import PROCESSES, cold_starts, side_memory
from g4seg_bench.memory import check_memory, weights_mb
from g4seg_bench.plans import Plan, Setup
from g4seg_bench.processes import available_mb
from g4seg_bench.scaling import Axis, axes_of, measure_scaling, steps
from g4seg_bench.sides import TOTAL, Outcome, Side, Task
from g4seg_engine.errors import G4SegError, MissingExtraError

Found = TypeVar("Found")

WAITED = 0.01
"""Waiting for networks to be opened is worth a note from this share of a run on."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        setup: what the sides share.
        choices: the sides in the order of their turns; the first baseline, or else the first side, is what the others
            are compared with.
        warmup: rounds that do not count, 1 or more.
        runs: rounds that do.
        axes: of the scaling, by name.
        counts: of classes, and batch sizes, for the scaling.
        squares: engines like the one of the setup but for their square, for the scaling.
        scaling_runs: of each of its points.
        memory: whether to measure the peak memory of each side.
        cold_starts: how often to measure each start, 0 for not at all.
        ceilings: whether to measure what the machine can do at best.
    """

    setup: Setup
    choices: tuple[Choice, ...]
    warmup: int
    runs: int
    axes: tuple[str, ...]
    counts: tuple[int, ...]
    squares: tuple[str, ...]
    scaling_runs: int
    memory: bool
    cold_starts: int
    ceilings: bool


def measure(request: Request) -> dict[str, Any]:
    """Measure everything that was asked for.

    Returns:
        The record without "benchmark" and "environment".

    Raises:
        G4SegError: if a side cannot be opened here, or there is not enough memory: before anything is measured, where
            that can be known.
    """
    setup = request.setup
    plans = setup.plans(request.choices)
    engines = [plan for plan in plans if not plan.is_baseline]
    task = Task.of(setup.manifest, setup.classes)
    for chosen in request.choices:
        if isinstance(chosen, BaselineChoice):
            baseline_source(chosen, setup.manifest, setup.model, setup.vae)
            task.eager_settings()
    least = {plan.name: _least_mb(setup, plan) for plan in plans}
    for name, needed in least.items():
        check_memory({name: needed}, _available(plans[0]))
    memory = _each(plans, 1, "memory", lambda plan, _: side_memory(setup, plan)) if request.memory else {}
    starts = (
        _each(engines, PROCESSES * rounds, "starts", lambda plan, done: cold_starts(setup, plan, rounds, done))
        if (rounds := request.cold_starts)
        else {}
    )
    figures = Figures(memory=memory, starts=starts)
    if request.ceilings:
        figures.ceilings = _unless_missing(lambda: measure_ceilings(_kind(plans[0]), setup.threads), figures.notes)
        figures.work = _unless_missing(lambda: stage_work(setup), figures.notes)
    held = {plan.name: memory[plan.name][0] if _on_cpu(plan) and memory else least[plan.name] for plan in plans}
    check_memory(held, _available(plans[0]))
    with ExitStack() as stack:
        # Engines first: what is wrong with one is known before a baseline takes its time to load.
        order = [*engines, *(plan for plan in plans if plan.is_baseline)]
        opened = {plan.name: stack.enter_context(closing(setup.open(plan))) for plan in order}
        turns = take_turns({plan.name: opened[plan.name] for plan in plans}, task, request.warmup, request.runs)
    gc.collect()
    for name, seconds in turns.opening.items():
        if seconds > WAITED * min(one[TOTAL] for one in turns.seconds[name]):
            figures.notes.append(f"{name}: up to {seconds:.3f} s of the rest are waiting for networks to be opened")
    if request.axes:
        axes = axes_of(request.axes, request.counts, request.squares, setup, engines)
        try:
            figures.scaling = _scaling(setup, engines, axes, request.scaling_runs)
        except G4SegError as error:
            # What was measured before is worth a record.
            figures.notes.append(f"no scaling: {error}")
    return assemble(setup, plans, turns, task, figures, warmup=request.warmup)


def take_turns(sides: Mapping[str, Side], task: Task, warmup: int, runs: int) -> Turns:
    """Refine with one side after the other, round by round, and look at the machine before each round and after all.

    Args:
        sides: opened, by name.
        task: for all of them.
        warmup: rounds that do not count, 1 or more.
        runs: rounds that do.
    """
    outcomes: dict[str, Outcome] = {}
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    opening = dict.fromkeys(sides, 0.0)
    calibration = Calibration()
    with tqdm(total=len(sides) * (warmup + runs), desc="refine", file=sys.stderr) as bar:
        for turn in range(warmup + runs):
            if turn >= warmup:
                calibration.measure()
            for name, side in sides.items():
                outcome = side.refine(task, turn * task.classes)
                outcomes.setdefault(name, outcome)
                if turn >= warmup:
                    seconds[name].append(outcome.seconds)
                    opening[name] = max(opening[name], outcome.opening)
                bar.update()
    calibration.measure()
    return Turns(seconds, outcomes, opening, calibration.drift)


def _each(
    plans: Sequence[Plan], processes: int, what: str, one: Callable[[Plan, Callable[[], object]], Found]
) -> dict[str, Found]:
    with tqdm(total=len(plans) * processes, desc=what, file=sys.stderr) as bar:
        found = {}
        for plan in plans:
            found[plan.name] = one(plan, bar.update)
            if processes == 1:
                bar.update()
    return found


def _scaling(setup: Setup, engines: Sequence[Plan], axes: Sequence[Axis], runs: int) -> dict[str, Any]:
    with tqdm(total=steps(axes, len(engines), runs), desc="scaling", file=sys.stderr) as bar:
        return measure_scaling(setup, engines, axes, runs, bar.update)


def _unless_missing(make: Callable[[], Found], notes: list[str]) -> Found | None:
    """What needs a package that is not installed is left out of the record, which says so."""
    try:
        return make()
    except MissingExtraError as error:
        notes.append(f"no ceilings: {error}")
        return None


def _least_mb(setup: Setup, plan: Plan) -> float:
    """What a side takes at the very least: its weights. An autoencoder of another size is not taken into account."""
    return weights_mb(setup.manifest, plan.precision, one_network=setup.low_memory and not plan.is_baseline)


def _available(plan: Plan) -> float | None:
    """Free memory where a side runs, in MB."""
    if _on_cpu(plan):
        return available_mb()
    import torch

    free: int = torch.cuda.mem_get_info(plan.device)[0]
    return free / 1e6


def _on_cpu(plan: Plan) -> bool:
    return plan.device == "cpu"


def _kind(plan: Plan) -> str:
    return plan.device.partition(":")[0]
