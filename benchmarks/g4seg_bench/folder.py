"""A folder run against one refinement after the other: ``python -m g4seg_bench.folder``.

Both read every image and mask from the disk and write probability and label; the engine is opened once for all images,
and opening it is not counted. The folder run is the command itself. They take turns, and ratios are taken pair by pair.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

from tqdm import tqdm

from g4seg_bench.inputs import write_scenes
from g4seg_bench.options import count, counts
from g4seg_bench.record import write_record
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import read_manifest
from g4seg_export.tiny.scenes import SIZE
from g4seg_trt.cli import refine
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.dataset.job import Job
from g4seg_trt.dataset.layout import Layout
from g4seg_trt.dataset.names import read_classes
from g4seg_trt.dataset.plan import Plan
from g4seg_trt.dataset.source import DatasetSource
from g4seg_trt.outputs import make_folders
from g4seg_trt.refiner import Refiner, engine_directory
from g4seg_trt.timing import STAGES, Timings

PREPARE = "resize"
"""The stage that a folder run does beside the networks, in the thread that reads."""

WARM_UP = 2


def one_by_one(engine: str, scenes: Path, output: Path) -> dict[str, float]:
    """Refine a folder's images with the functions of the one-image command, each done before the next is read.

    Returns:
        Seconds in all and for decode, prepare, compute and write, and the cores that were busy on average.
    """
    classes = read_classes(scenes / "classes.json")
    source = DatasetSource.from_folders(scenes / "images", scenes / "masks", classes=classes)
    layout = Layout(output)
    make_folders(layout.folders())
    spent = Timings()
    with Refiner.from_engine(engine) as refiner:
        start, busy = perf_counter(), process_time()
        plan = Plan("", "", refiner.config, None, None, layout)
        for item in source:
            job = Job(item, plan, None)
            with spent.stage("decode"):
                image, masks, rule = job.load()
            with spent.stage("compute"):
                refiner.set_image(image)
                refinement = refiner.refine(masks, background=rule)
            with spent.stage("write"):
                job.finish(job.work(refinement))
            spent.add({"prepare": refinement.timings[PREPARE]})
        total, busy = perf_counter() - start, process_time() - busy
    spent["compute"] -= spent["prepare"]
    parts = {name: round(spent[name], 6) for name in ("decode", "prepare", "compute", "write")}
    return {"total": round(total, 6), **parts, "busy_cores": round(busy / total, 2)}


def as_folder(engine: str, scenes: Path, output: Path, batch_size: int) -> dict[str, float]:
    """The folder command on the same images.

    Returns:
        Seconds in all without opening the engine, and for prepare and write (in threads of their own) and compute.

    Raises:
        G4SegError: if the command fails; what it wrote to stderr is passed on.
    """
    output.mkdir()
    report, errors = output / "report.json", io.StringIO()
    arguments = ["--engine", engine, "--images", scenes / "images", "--masks", scenes / "masks"]
    arguments += ["--classes", scenes / "classes.json", "--output", output / "refined"]
    arguments += ["--batch-size", batch_size, "--json", report]
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        code = refine.main([str(argument) for argument in arguments])
    if code != DONE:
        sys.stderr.write(errors.getvalue())
        raise G4SegError(f"the folder run with batch size {batch_size} failed (exit code {code})")
    spent = json.loads(report.read_text(encoding="utf-8"))["timings"]
    return {
        "total": round(spent["total"] - spent["open"], 6),
        "prepare": spent[PREPARE],
        "compute": round(sum(spent.get(stage, 0.0) for stage in STAGES if stage != PREPARE), 6),
        "write": spent["write"],
    }


def compare(engine: str, scenes: Path, batch_sizes: Sequence[int], runs: int, bar: tqdm[Any]) -> dict[str, Any]:
    """Take turns: one by one, then the folder command with each batch size; `runs` times."""
    single: list[dict[str, float]] = []
    folder: dict[int, list[dict[str, float]]] = {size: [] for size in batch_sizes}
    for _ in range(runs):
        # Finished outputs would be skipped: every run writes to a folder of its own.
        with TemporaryDirectory(prefix="g4seg-bench-") as output:
            single.append(one_by_one(engine, scenes, Path(output) / "single"))
            bar.update()
            for size in batch_sizes:
                folder[size].append(as_folder(engine, scenes, Path(output) / f"folder{size}", size))
                bar.update()
    return {
        "single": {"runs": single, "median": _medians(single)},
        "folder": {str(size): against(single, found) for size, found in folder.items()},
        # If reading and writing cost nothing and the networks took what they take one by one.
        "overlap_limit": round(median(one["total"] / one["compute"] for one in single), 4),
    }


def against(single: Sequence[Mapping[str, float]], folder: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Folder runs beside the runs one by one: ratios of the seconds, and which part of the folder run bounds it.

    Reading (decode and prepare), compute and write go on beside each other: no folder run is faster than the longest
    of the three, and "bound_percent" says how near to that it comes. Decoding is taken to last as long as one by one.
    """
    ratios = [round(one["total"] / other["total"], 4) for one, other in zip(single, folder, strict=True)]
    spent = _medians(folder)
    parts = {
        "read": median(one["decode"] for one in single) + spent["prepare"],
        "compute": spent["compute"],
        "write": spent["write"],
    }
    longest = max(parts, key=lambda name: parts[name])
    return {
        "runs": list(folder),
        "median": spent,
        "ratios": ratios,
        "ratio": round(median(ratios), 4),
        "bound_by": longest,
        "bound_percent": round(100 * parts[longest] / spent["total"], 1),
    }


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(median(one[name] for one in runs), 6) for name in runs[0]}


def tell(size: str, number: int, found: Mapping[str, Any]) -> None:
    """Print one size's figures."""
    single = found["single"]["median"]
    parts = ", ".join(f"{name} {single[name]:.2f}" for name in ("decode", "prepare", "compute", "write"))
    print(
        f"\n{number} images of {size} px one by one: {single['total']:.2f} s, {number / single['total']:.1f} images/s "
        f"({parts}; {single['busy_cores']:.2f} cores busy)\n"
    )
    rows = [["batch size", "folder, s", "images/s", "ratio", "compute, s", "prepare, s", "write, s", "bound by"]]
    rows.append(["---"] * len(rows[0]))
    for batch_size, one in found["folder"].items():
        spent = one["median"]
        row = [batch_size, f"{spent['total']:.2f}", f"{number / spent['total']:.1f}", f"{one['ratio']:.2f}"]
        row += [f"{spent[name]:.2f}" for name in ("compute", "prepare", "write")]
        rows.append([*row, f"{one['bound_by']} ({one['bound_percent']:.0f} % of the time)"])
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    print(f"\nIf only the networks' time one by one were left, the ratio would be {found['overlap_limit']:.2f}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.folder", "A folder run against one refinement after the other.")
    add = parser.add_argument
    add("--engine", default="tiny", metavar="DIR|tiny", help="engine directory (default: %(default)s)")
    add("--count", type=count, default=50, help="images (default: %(default)s)")
    add("--batch-sizes", type=counts, default=(1, 2, 4), metavar="N,...", help="of the folder runs (default: 1,2,4)")
    add(
        "--size",
        type=count,
        default=512,
        help=f"side of the enlarged images, measured beside the scenes' own {SIZE} pixels (default: %(default)s)",
    )
    add("--runs", type=count, default=3, help="of each, in turns (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _execute(_parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    model = read_manifest(engine_directory(options.engine)).model.id
    sizes: dict[str, Any] = {}
    total = (1 + len(options.batch_sizes)) * (1 + options.runs * len({SIZE, options.size}))
    with (
        TemporaryDirectory(prefix="g4seg-bench-") as folder,
        tqdm(total=total, desc="run", file=sys.stderr) as bar,
    ):
        root = Path(folder)
        write_scenes(root / "warm-up", min(WARM_UP, options.count), SIZE)
        compare(options.engine, root / "warm-up", options.batch_sizes, 1, bar)
        for size in dict.fromkeys((SIZE, options.size)):
            write_scenes(root / str(size), options.count, size)
            sizes[str(size)] = compare(options.engine, root / str(size), options.batch_sizes, options.runs, bar)
    print(f"{model}, {options.count} images, median of {options.runs} runs in turns")
    for name, found in sizes.items():
        tell(name, options.count, found)
    if options.json is not None:
        record = {"model": model, "count": options.count, "runs": options.runs, "sizes": sizes}
        write_record(options.json, "folder", record)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
