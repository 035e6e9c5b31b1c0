"""Whole-process seconds and memory of g4seg-refine, as a user meets them: ``python -m g4seg_bench.commands``."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

import g4seg_trt
from g4seg_bench.options import count
from g4seg_bench.processes import Usage, run_measured
from g4seg_bench.record import write_record
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import read_manifest
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.refiner import engine_directory

COMMAND = "g4seg-refine"
DEMO = Path(g4seg_trt.__file__).parent / "assets" / "demo"
DEMO_CLASS = "cross"


def commands(options: argparse.Namespace, output: Path) -> dict[str, list[str]]:
    """The commands to measure, by what they are called in the table.

    Raises:
        G4SegError: if g4seg-refine is not installed beside this Python.
    """
    program = shutil.which(COMMAND, path=str(Path(sys.executable).parent))
    if program is None:
        raise G4SegError(f"{COMMAND} is not installed beside {sys.executable}: pip install '.[cpu]'")
    inputs: Path = options.inputs
    one = [program, "--engine", options.engine, "--class-name", options.class_name]
    for name, file in (("image", "image"), ("mask", "mask"), ("ground-truth", "ground_truth")):
        one += [f"--{name}", str(inputs / f"{file}.png")]
    one += ["--output", str(output / "probability.png"), "--label", str(output / "label.png")]
    one += ["--overlay", str(output / "overlay.png")]
    return {"--help": [program, "--help"], "--version": [program, "--version"], "one image": one}


def measure(lines: Mapping[str, Sequence[str]], runs: int) -> dict[str, list[Usage]]:
    """Run the commands in turns, `runs` times, after one time that does not count (it fills the disk cache)."""
    found: dict[str, list[Usage]] = {name: [] for name in lines}
    with tqdm(total=len(lines) * (runs + 1), desc="run", file=sys.stderr) as bar:
        for number in range(runs + 1):
            for name, line in lines.items():
                usage = run_measured(line)
                if number > 0:
                    found[name].append(usage)
                bar.update()
    return found


def summary(runs: Sequence[Usage]) -> dict[str, Any]:
    """The runs themselves, their smallest, median and largest seconds, CPU seconds and peak memory."""
    seconds = [one.seconds for one in runs]
    return {
        "seconds": seconds,
        "cpu_seconds": [one.cpu_seconds for one in runs],
        "peak_mb": [one.peak_mb for one in runs],
        "min_seconds": min(seconds),
        "median_seconds": round(median(seconds), 4),
        "max_seconds": max(seconds),
        "median_cpu_seconds": round(median(one.cpu_seconds for one in runs), 4),
        "max_peak_mb": max(one.peak_mb for one in runs),
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row per command."""
    rows = [[COMMAND, "min, s", "median, s", "max, s", "CPU, s", "peak memory, MB"]]
    rows.append(["---"] * len(rows[0]))
    columns = ("min_seconds", "median_seconds", "max_seconds", "median_cpu_seconds")
    for name, one in found.items():
        rows.append([name, *(f"{one[column]:.2f}" for column in columns), f"{one['max_peak_mb']:.0f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.commands", f"Whole-process seconds and memory of {COMMAND}.")
    add = parser.add_argument
    add("--engine", default="tiny", metavar="DIR|tiny", help="engine directory (default: %(default)s)")
    add(
        "--inputs",
        type=Path,
        default=DEMO,
        metavar="DIR",
        help="folder of image.png, mask.png and ground_truth.png (default: the demo's)",
    )
    add("--class-name", default=DEMO_CLASS, metavar="NAME", help="what the mask shows (default: %(default)s)")
    add("--runs", type=count, default=7, help="runs of each command (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _execute(_parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    model = read_manifest(engine_directory(options.engine)).model.id
    with TemporaryDirectory(prefix="g4seg-bench-") as output:
        found = measure(commands(options, Path(output)), options.runs)
    record = {"model": model, "runs": options.runs, "commands": {name: summary(runs) for name, runs in found.items()}}
    print(table(record["commands"]))
    if options.json is not None:
        write_record(options.json, "commands", record)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
