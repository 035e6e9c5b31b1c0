"""What the records of a folder run cost, and whether its memory grows: ``python -m g4seg_bench.bookkeeping``.

A run with its lock, checks, hashes and records takes turns with one that reads, refines and writes the same and keeps
no record. Then a run that finds all images done, which is bookkeeping and nothing else. Last the command itself over
more images, whose memory is read again and again while they are refined.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile
from time import perf_counter, sleep
from typing import Any

import numpy as np
from tqdm import tqdm

from g4seg_bench.inputs import write_scenes
from g4seg_bench.options import count
from g4seg_bench.record import write_record
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import read_manifest
from g4seg_export.tiny.scenes import SIZE
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.dataset.job import Job
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.names import read_classes
from g4seg_trt.dataset.record import Key
from g4seg_trt.dataset.result import REFINED, SKIPPED, Result
from g4seg_trt.dataset.run import make_plan, refine_jobs
from g4seg_trt.dataset.settings import RunOptions, run_settings
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.outputs import make_folders
from g4seg_trt.refiner import Refiner, engine_directory
from g4seg_trt.timing import STAGES

LIMIT_PERCENT = 5.0
"""Of the networks' time, at most."""

DISTINCT = 50
"""Scenes that differ; more images are the same files under other names."""

_COMMAND = "import sys; from g4seg_trt.cli.refine import main; sys.exit(main())"
_PAUSE = 0.1


class Unrecorded(Job):
    """A job that hashes nothing."""

    def _key(self, _source: object) -> Key:
        return Key(self.item.name, "", "", "", "")


@dataclass(frozen=True)
class Seconds:
    """One run over the images: in all, and those that the networks and the matching took."""

    total: float
    compute: float


def write_many(root: Path, number: int) -> DatasetSource:
    """Write scenes as `write_scenes` does, from DISTINCT on the same files again under other names."""
    write_scenes(root, min(number, DISTINCT), SIZE)
    classes = read_classes(root / "classes.json")
    for index, stem in zip(range(DISTINCT, number), list(classes) * (number // DISTINCT + 1), strict=False):
        copy = f"{stem}_{index}"
        for folder in ("images", "masks"):
            (root / folder / f"{copy}.png").hardlink_to(root / folder / f"{stem}.png")
        classes[copy] = classes[stem]
    (root / "classes.json").write_text(json.dumps({name: list(each) for name, each in classes.items()}), "utf-8")
    return DatasetSource.from_folders(root / "images", root / "masks", classes=classes)


def recorded(refiner: Refiner, source: DatasetSource, output: Path) -> Iterable[Result]:
    """A run as users have it."""
    return refiner.refine_dataset(source, output, resume=True)


def unrecorded(refiner: Refiner, source: DatasetSource, output: Path) -> Iterable[Result]:
    """The same work and files without lock, hashes and records."""
    layout, options = Layout(output), RunOptions(refiner.config)
    make_folders([output, *layout.folders()])
    plan = make_plan(source, run_settings(refiner.fingerprint(), refiner.config, None, None), options, layout)
    return refine_jobs(refiner, (Unrecorded(item, plan, None) for item in source), plan, options, None)


def timed(results: Callable[[], Iterable[Result]], state: str) -> Seconds:
    """Take all results of a run; raises G4SegError if one is not in this state."""
    start, compute = perf_counter(), 0.0
    for result in results():
        if result.state != state:
            raise G4SegError(f"{result.stem} is {result.state}, expected {state}: {result.error}")
        if result.refinement is not None:
            compute += sum(result.refinement.timings.get(stage, 0.0) for stage in STAGES)
    return Seconds(round(perf_counter() - start, 4), round(compute, 4))


def overhead(refiner: Refiner, source: DatasetSource, runs: int, done: Callable[[], object]) -> dict[str, Any]:
    """Both ways in turns, and a run that finds everything done after each recorded one.

    Returns:
        The runs; "overhead_percent", the median over pairs of what the recorded run takes longer, in percent of its
        compute; "again_ms", of each image that is done, the median.
    """
    found: dict[str, list[Seconds]] = {"unrecorded": [], "recorded": [], "again": []}
    for _ in range(runs):
        with TemporaryDirectory(prefix="g4seg-bench-") as folder:
            bare, whole = Path(folder) / "bare", Path(folder) / "whole"
            found["unrecorded"].append(timed(partial(unrecorded, refiner, source, bare), REFINED))
            found["recorded"].append(timed(partial(recorded, refiner, source, whole), REFINED))
            found["again"].append(timed(partial(recorded, refiner, source, whole), SKIPPED))
        done()
    pairs = zip(found["unrecorded"], found["recorded"], strict=True)
    return {
        "runs": {name: [vars(one) for one in each] for name, each in found.items()},
        "overhead_percent": round(median(100 * (b.total - a.total) / b.compute for a, b in pairs), 2),
        "again_ms": round(1000 * median(one.total for one in found["again"]) / len(source), 3),
    }


def watched(engine: str, root: Path, output: Path, number: int) -> list[tuple[int, float]]:
    """Run g4seg-refine over the images below `root`; returns (images done, MB of physical memory) again and again.

    Raises:
        G4SegError: if the system does not tell the memory of processes, or the command fails.
    """
    if not Path("/proc/self/statm").exists():
        raise G4SegError("the memory of a process is read from /proc, which this system does not have")
    arguments = ["--engine", engine, "--images", root / "images", "--masks", root / "masks"]
    arguments += ["--classes", root / "classes.json", "--output", output]  # a JSON report would hold every image
    page = os.sysconf("SC_PAGE_SIZE")
    seen: list[tuple[int, float]] = []
    with TemporaryFile() as errors, tqdm(total=number, desc="image", file=sys.stderr) as bar:
        command = [sys.executable, "-c", _COMMAND, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        memory = Path(f"/proc/{process.pid}/statm")
        while process.poll() is None:
            pages = memory.read_bytes().split()
            images = len(list((output / "label").iterdir())) if (output / "label").is_dir() else 0
            if len(pages) > 1 and images > bar.n:
                seen.append((images, int(pages[1]) * page / 1e6))
                bar.update(images - bar.n)
            sleep(_PAUSE)
        if process.returncode != DONE:
            errors.seek(0)
            shutil.copyfileobj(errors, sys.stderr.buffer)
            raise G4SegError(f"g4seg-refine failed (exit code {process.returncode})")
    return seen


def growth(seen: Sequence[tuple[int, float]]) -> dict[str, float]:
    """How the memory changes from a fifth of the images on, where buffers have their size.

    Returns:
        "first_mb" and "last_mb", the medians of the first and last tenth of what is left, "kb_an_image", the slope of
        a straight line, and "peak_mb".
    """
    images, memory = np.array(seen, dtype=np.float64).T
    late = images >= images[-1] / 5
    images, memory = images[late], memory[late]
    tenth = max(1, len(memory) // 10)
    slope = np.polyfit(images, memory, 1)[0] if len(memory) > 1 else 0.0
    return {
        "first_mb": round(float(np.median(memory[:tenth])), 1),
        "last_mb": round(float(np.median(memory[-tenth:])), 1),
        "kb_an_image": round(1000 * float(slope), 3),
        "peak_mb": round(float(memory.max()), 1),
    }


def tell(number: int, cost: dict[str, Any], many: int, memory: dict[str, float] | None) -> None:
    """Print the figures."""
    middle = {name: median(one["total"] for one in each) for name, each in cost["runs"].items()}
    compute = median(one["compute"] for one in cost["runs"]["recorded"])
    print(f"{number} images: {middle['unrecorded']:.2f} s without records, {middle['recorded']:.2f} s with them")
    print(
        f"(compute {compute:.2f} s): overhead {cost['overhead_percent']:.1f} % of compute, at most {LIMIT_PERCENT:g}."
    )
    share = f"{100 * middle['again'] / compute:.1f} % of compute"
    print(f"A run that finds all of them done: {middle['again']:.2f} s, {cost['again_ms']:.2f} ms an image, {share}.")
    if memory is not None:
        print(
            f"Memory of g4seg-refine over {many} images: {memory['first_mb']:.0f} MB after a fifth of them, "
            f"{memory['last_mb']:.0f} MB at the end ({memory['kb_an_image']:+.2f} kB an image), "
            f"peak {memory['peak_mb']:.0f} MB."
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.bookkeeping", "What the records of a folder run cost; its memory.")
    add = parser.add_argument
    add("--engine", default="tiny", metavar="DIR|tiny", help="engine directory (default: %(default)s)")
    add("--count", type=count, default=1000, help="images with and without records (default: %(default)s)")
    add("--memory-count", type=count, default=5000, help="images of the run that is watched (default: %(default)s)")
    add("--runs", type=count, default=3, help="of each, in turns (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _execute(_parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    model = read_manifest(engine_directory(options.engine)).model.id
    with TemporaryDirectory(prefix="g4seg-bench-") as folder:
        root = Path(folder)
        source = write_many(root / "few", options.count)
        with (
            Refiner.from_engine(options.engine) as refiner,
            tqdm(total=options.runs, desc="run", file=sys.stderr) as bar,
        ):
            cost = overhead(refiner, source, options.runs, bar.update)
        write_many(root / "many", options.memory_count)
        seen = watched(options.engine, root / "many", root / "refined", options.memory_count)
    memory = growth(seen) if seen else None
    print(f"{model}, median of {options.runs} runs in turns")
    tell(options.count, cost, options.memory_count, memory)
    if options.json is not None:
        record = {"model": model, "count": options.count, "limit_percent": LIMIT_PERCENT, **cost}
        record["memory"] = {"count": options.memory_count, "growth": memory, "seen": _thinned(seen)}
        write_record(options.json, "bookkeeping", record)
    return DONE


def _thinned(seen: Sequence[tuple[int, float]], most: int = 50) -> list[list[float]]:
    """At most so many of them, evenly spaced, the last among them."""
    if not seen:
        return []
    places = np.unique(np.linspace(0, len(seen) - 1, min(most, len(seen))).round().astype(int))
    return [[seen[place][0], round(seen[place][1], 1)] for place in places]


if __name__ == "__main__":
    sys.exit(main())
