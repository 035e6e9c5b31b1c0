"""The latency benchmark's record, put together from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

from g4seg_bench.ceilings import Ceilings, floor_seconds
from g4seg_bench.figures import by_stage, ratios, spread, unsafe_reason
from g4seg_bench.latency_record import SCHEMA
from g4seg_bench.plans import Plan, Setup
from g4seg_bench.processes import wait_without_spinning
from g4seg_bench.sides import TOTAL, Outcome, Task, difference
from g4seg_bench.work import Work, engine_work
from g4seg_engine.manifest import MANIFEST_FILE, Manifest, file_sha256


@dataclass(frozen=True)
class Turns:
    """What the rounds gave.

    Attributes:
        seconds: of every run that counts, by side.
        outcomes: of the first round, by side.
        opening: the most that a run waited for networks to be opened, in seconds, by side.
        drift: of the calibration.
    """

    seconds: dict[str, list[dict[str, float]]]
    outcomes: dict[str, Outcome]
    opening: dict[str, float]
    drift: float


@dataclass
class Figures:
    """What was measured beside the rounds.

    Attributes:
        memory: peak of main memory, and what is held of a GPU's or None, in MB, by side; {} if not asked for.
        starts: see cold.cold_starts, by side; likewise.
        ceilings: of the machine, or None.
        work: by stage, or None.
        scaling: see scaling.measure_scaling, or None.
        notes: one line each.
    """

    memory: Mapping[str, tuple[float, float | None]]
    starts: Mapping[str, Mapping[str, Mapping[str, float]]]
    ceilings: Ceilings | None = None
    work: Mapping[str, Work] | None = None
    scaling: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def stage_work(setup: Setup) -> dict[str, Work]:
    """What each stage does for the task: the work of its network, as often as the network runs.

    Raises:
        MissingExtraError: if onnx is not installed.
        G4SegError: see work.engine_work.
    """
    one = engine_work(setup.directory, setup.manifest, 1)
    whole = one if setup.batch_size == 1 else engine_work(setup.directory, setup.manifest, setup.batch_size)
    batches = ceil(setup.classes / setup.batch_size)
    return {
        "text": one["text_encoder"].times(setup.classes),
        "vae_encoder": one["vae_encoder"],
        "unet": whole["unet"].times(batches),
        "vae_decoder": whole["vae_decoder"].times(batches),
        "image_encoder": one["image_encoder"] + whole["image_encoder"].times(batches),
    }


def assemble(
    setup: Setup, plans: Sequence[Plan], turns: Turns, task: Task, figures: Figures, *, warmup: int
) -> dict[str, Any]:
    """The record without "benchmark" and "environment".

    Args:
        setup: what the sides share.
        plans: the sides in the order of their turns.
        turns: what the rounds gave.
        task: what was refined.
        figures: what was measured beside.
        warmup: rounds that do not count.
    """
    manifest = setup.manifest
    runs = len(next(iter(turns.seconds.values())))
    noise = {name: spread(one) for name, one in turns.seconds.items()}
    reason = unsafe_reason(noise, turns.drift, runs)
    reference = next((plan for plan in plans if plan.is_baseline), plans[0])
    return {
        "schema": SCHEMA,
        "engine": _engine(setup, manifest),
        "settings": {
            "classes": setup.classes,
            "batch_size": setup.batch_size,
            "threads": setup.threads,
            "warmup": warmup,
            "runs": runs,
            "low_memory": setup.low_memory,
            "baseline_model": (setup.model or manifest.model.id) if reference.is_baseline else None,
            "config": task.config.to_mapping(),
            "waiting_threads": wait_without_spinning(),
            "calibration_drift": round(turns.drift, 4),
            "notes": figures.notes,
        },
        "ceilings": _ceilings(figures.ceilings),
        "work": None if figures.work is None else {stage: asdict(work) for stage, work in figures.work.items()},
        "sides": {plan.name: _side(plan, reference, manifest, turns, task, figures) for plan in plans},
        "ratios": ratios(turns.seconds, reference.name),
        "safe": reason is None,
        "unsafe_reason": reason,
        "noise": noise,
        "scaling": figures.scaling,
    }


def _ceilings(ceilings: Ceilings | None) -> dict[str, Any] | None:
    if ceilings is None:
        return None
    return {"gflops": dict(ceilings.gflops), "copy_gb_s": ceilings.copy_gb_s, "notes": list(ceilings.notes)}


def _engine(setup: Setup, manifest: Manifest) -> dict[str, Any]:
    vae = {half: id for half, id in asdict(manifest.autoencoder).items() if id}
    return {
        "model": manifest.model.id,
        "manifest_sha256": file_sha256(setup.directory / MANIFEST_FILE),
        "precision": manifest.networks["unet"].precision,
        "square": manifest.dims.square,
        "form": manifest.injection.form,
        "vae": vae or None,
    }


def _side(
    plan: Plan, reference: Plan, manifest: Manifest, turns: Turns, task: Task, figures: Figures
) -> dict[str, Any]:
    runs = turns.seconds[plan.name]
    stages = by_stage(runs)
    peak, device = figures.memory.get(plan.name, (None, None))
    floors = None if plan.own_vae else _floors(plan, manifest, figures)
    shares = None if floors is None else _shares(floors, stages)
    compared = plan is not reference and plan.own_vae == reference.own_vae
    outcomes = turns.outcomes
    return {
        "backend": plan.backend,
        "compute_precision": plan.precision,
        "device": plan.device,
        "role": "baseline" if plan.is_baseline else "engine",
        "runs": runs,
        "stages": stages,
        "masks_per_second": round(task.classes / stages[TOTAL]["median"], 6),
        "peak_mb": peak,
        "device_mb": device,
        "floors": floors,
        "shares": shares,
        "cold_start": figures.starts.get(plan.name),
        "difference": difference(outcomes[plan.name], outcomes[reference.name]) if compared else None,
    }


def _floors(plan: Plan, manifest: Manifest, figures: Figures) -> dict[str, float] | None:
    """Seconds by stage at the machine's ceilings, and of all of them; None where there are no ceilings."""
    ceilings, work = figures.ceilings, figures.work
    if ceilings is None or work is None:
        return None
    stored = manifest.networks["unet"].precision
    found = {stage: floor_seconds(one, ceilings, plan.precision, stored) for stage, one in work.items()}
    known = {stage: seconds for stage, seconds in found.items() if seconds is not None}
    if not known:
        return None
    return {stage: round(seconds, 6) for stage, seconds in (*known.items(), (TOTAL, sum(known.values())))}


def _shares(floors: Mapping[str, float], stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Floor over median, where there are both."""
    return {
        stage: round(floor / stages[stage]["median"], 4)
        for stage, floor in floors.items()
        if stage in stages and stages[stage]["median"] > 0
    }
