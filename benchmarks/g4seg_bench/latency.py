"""Seconds and memory of one refinement, against eager PyTorch: ``python -m g4seg_bench.latency --engine DIR``.

Both sides refine the same mask in turns in one process, after one refinement each that does not count, on the same
number of threads. The peak memory of each side is that of a process of its own that refines once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from g4seg_bench.options import count
from g4seg_bench.processes import available_mb, run_measured
from g4seg_bench.record import write_record
from g4seg_bench.sides import REST, STAGES, TOTAL, BaselineSide, EngineSide, Outcome, Side, Task, difference
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import Manifest, load_engine
from g4seg_trt.cli.common import DONE, new_parser, run, say
from g4seg_trt.refiner import engine_directory

ENGINE, BASELINE = "engine", "baseline"
NONE = "none"


def take_turns(sides: Mapping[str, Side], task: Task, runs: int) -> tuple[dict[str, list[dict[str, float]]], list[Any]]:
    """Warm each side up once, then refine with one after the other, `runs` times.

    Returns:
        Seconds of the runs by side, and the warm-ups' outcomes in the order of the sides.
    """
    outcomes: list[Outcome] = []
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with tqdm(total=len(sides) * (runs + 1), desc="refine", file=sys.stderr) as bar:
        for number in range(runs + 1):
            for name, side in sides.items():
                outcome = side.refine(task, number)
                if number == 0:
                    outcomes.append(outcome)
                else:
                    seconds[name].append(outcome.seconds)
                bar.update()
    return seconds, outcomes


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of every stage."""
    return {stage: round(median(one[stage] for one in runs), 6) for stage in (*STAGES, REST, TOTAL)}


def ratios(seconds: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Baseline over engine, of each pair of neighbouring runs, and the median of that."""
    both = zip(seconds[ENGINE], seconds[BASELINE], strict=True)
    pairs = [round(baseline[TOTAL] / engine[TOTAL], 4) for engine, baseline in both]
    return {"pairs": pairs, "median": round(median(pairs), 4)}


def check_memory(peaks: Mapping[str, float], available: float | None) -> None:
    """Raise G4SegError if the sides' peaks together are more than what is available (None: unknown), all in MB."""
    needed = sum(peaks.values())
    if available is not None and needed > available:
        raise G4SegError(
            f"both sides at once may need {needed:.0f} MB and {available:.0f} MB are available: "
            f"make room, or measure the engine alone with --baseline {NONE}"
        )


def table(record: Mapping[str, Any]) -> str:
    """Markdown: a row per stage, median seconds of each side, and peak memory."""
    found: Mapping[str, Mapping[str, float]] = record["median_seconds"]
    ratio = "ratio" in record
    rows = [["stage", *(f"{name}, s" for name in found), *(["baseline / engine"] if ratio else [])]]
    rows.append(["---"] * len(rows[0]))
    for stage in (*STAGES, REST, TOTAL):
        row = [stage, *(f"{one[stage]:.3f}" for one in found.values())]
        if ratio:
            engine, baseline = found[ENGINE][stage], found[BASELINE][stage]
            quotient = record["ratio"]["median"] if stage == TOTAL else baseline / engine if engine else 0.0
            row.append(f"{quotient:.2f}" if quotient else "")
        rows.append(row)
    rows.append(["peak memory, MB", *(f"{record['peak_mb'][name]:.0f}" for name in found), *([""] if ratio else [])])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def tell(record: Mapping[str, Any]) -> None:
    """Print the record."""
    print(
        f"{record['model']}, {record['square']} px, {record['threads']} threads, median of {record['runs']} runs"
        + (" in turns" if record["baseline"] else "")
    )
    print("\n" + table(record))
    if "ratio" in record:
        pairs = ", ".join(f"{pair:.2f}" for pair in record["ratio"]["pairs"])
        print(f"\nbaseline / engine, pair by pair: {pairs}; median {record['ratio']['median']:.2f}")
    if "difference" in record:
        found = record["difference"]
        print(
            f"engine against baseline: denoised latent {found['denoised_relative']:.1e} (relative), probabilities at "
            f"most {found['probability_max']:.1e}; of {found['matches']} matches {found['matches_differing']} differ, "
            f"{found['clear_matches_differing']} where the best stands out"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.latency", "Seconds and memory of one refinement.")
    add = parser.add_argument
    add("--engine", required=True, metavar="DIR|tiny", help="engine directory, or tiny")
    add(
        "--baseline",
        required=True,
        metavar=f"MODEL|{NONE}",
        help="the model that the engine was made from, to run in eager PyTorch (as --model of g4seg-build-engines)",
    )
    add("--runs", type=count, default=3, help="refinements of each side (default: %(default)s)")
    add("--threads", type=count, default=_cores(), help="CPU threads of each side (default: all, %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    add("--alone", choices=(ENGINE, BASELINE), help="only refine once with this side, to look at its process")
    return parser


def _execute(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    directory = engine_directory(options.engine)
    manifest = load_engine(directory)
    task = Task.of(manifest)
    if options.alone is not None:
        if options.alone == BASELINE and options.baseline == NONE:
            parser.error(f"--alone {BASELINE} needs a --baseline")
        _side(options.alone, options, directory, manifest).refine(task, 0)
        return DONE
    names = (ENGINE,) if options.baseline == NONE else (ENGINE, BASELINE)
    if options.baseline not in (NONE, manifest.model.id):
        say(f"note: the engine says it was made from {manifest.model.id}, the baseline is {options.baseline}")
    peaks = {name: run_measured(_alone(name, options)).peak_mb for name in names}
    check_memory(peaks, available_mb())
    sides = {name: _side(name, options, directory, manifest) for name in names}
    seconds, outcomes = take_turns(sides, task, options.runs)
    record: dict[str, Any] = {
        "model": manifest.model.id,
        "baseline": None if options.baseline == NONE else options.baseline,
        "square": manifest.dims.square,
        "form": manifest.injection.form,
        "config": task.config.to_mapping(),
        "threads": options.threads,
        "runs": options.runs,
        "seconds": seconds,
        "median_seconds": {name: medians(runs) for name, runs in seconds.items()},
        "peak_mb": peaks,
    }
    if len(names) > 1:
        record["ratio"] = ratios(seconds)
        record["difference"] = difference(*outcomes)
    tell(record)
    if options.json is not None:
        write_record(options.json, "latency", record)
    return DONE


def _side(name: str, options: argparse.Namespace, directory: Path, manifest: Manifest) -> Side:
    if name == ENGINE:
        return EngineSide(directory, options.threads)
    return BaselineSide(options.baseline, directory, manifest, options.threads)


def _alone(name: str, options: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "g4seg_bench.latency", "--engine", options.engine, "--baseline", options.baseline]
    return [*command, "--threads", str(options.threads), "--alone", name]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
