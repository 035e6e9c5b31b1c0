"""How long g4seg-evaluate takes for a set of the size of VOC12's: ``python -m g4seg_bench.evaluation``.

Made-up label pictures of VOC's usual size and palette, objects with wavy outlines and an ignored rim, one to three of
them in a picture. The command itself is run, from reading the first file to the last figure.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g4seg_bench.options import count, counts
from g4seg_bench.record import write_record
from g4seg_engine.errors import G4SegError
from g4seg_engine.processor import usable_cpus
from g4seg_trt.cli import evaluate
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.masks import IGNORE, write_label_png

HEIGHT, WIDTH = 375, 500
IMAGES = 1449
"""The validation images of PASCAL VOC 2012."""

CLASSES = 20
LIMIT_S = 15.0
DISTINCT = 100
"""Pictures that differ; more are copies of their files, which take as long to read."""

_RIM = 3.0
_SIDES = ("predictions", "coarse", "truth")


def scene(generator: np.random.Generator) -> dict[str, NDArray[np.uint8]]:
    """Label pictures uint8 [HEIGHT,WIDTH] of one image: "predictions", the worse "coarse", and "truth"."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    pictures = {side: np.zeros((HEIGHT, WIDTH), dtype=np.uint8) for side in _SIDES}
    for _ in range(generator.integers(1, 4)):
        label = generator.integers(1, CLASSES + 1)
        row, column = generator.uniform(80, HEIGHT - 80), generator.uniform(80, WIDTH - 80)
        radius, phase = generator.uniform(30, 130), generator.uniform(0, 6)

        def away(noise: float, row: float = row, column: float = column, phase: float = phase) -> NDArray[Any]:
            """Distance from the object's middle over its waviness; `noise` in pixels moves it."""
            down, right = rows - row - generator.normal(0, noise), columns - column - generator.normal(0, noise)
            angle = np.arctan2(down, right)
            wavy: NDArray[Any] = np.hypot(down, right) / (
                1 + 0.2 * np.sin(5 * angle + phase) + 0.05 * np.sin(23 * angle)
            )
            return wavy

        exact = away(0)
        pictures["truth"][exact < radius + _RIM] = IGNORE
        pictures["truth"][exact < radius - _RIM] = label
        pictures["predictions"][away(3) < radius * generator.uniform(0.9, 1.1)] = label
        pictures["coarse"][away(6) < radius * generator.uniform(0.8, 1.2)] = label
    return pictures


def write_set(root: Path, number: int) -> None:
    """Write the folders predictions, coarse and truth with this many palette PNGs each."""
    generator = np.random.default_rng(1449)
    for side in _SIDES:
        (root / side).mkdir(parents=True)
    for index in range(number):
        if index < DISTINCT:
            for side, labels in scene(generator).items():
                write_label_png(_file(root, side, index), labels, CLASSES)
        else:
            for side in _SIDES:
                _file(root, side, index).write_bytes(_file(root, side, index % DISTINCT).read_bytes())


def timed(root: Path, workers: int, *, coarse: bool) -> dict[str, float]:
    """Run the command once.

    Args:
        root: as written by `write_set`.
        workers: threads.
        coarse: evaluate the coarse masks and the gain too.

    Returns:
        "seconds", those of the whole command, and "reported", those that it reports itself.

    Raises:
        G4SegError: if the command fails; what it wrote to stderr is passed on.
    """
    report, errors = root / "report.json", io.StringIO()
    arguments = ["--predictions", root / "predictions", "--ground-truth", root / "truth", "--dataset", "voc12"]
    arguments += ["--workers", workers, "--json", report, *(["--coarse", root / "coarse"] if coarse else [])]
    start = perf_counter()
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        code = evaluate.main([str(argument) for argument in arguments])
    spent = perf_counter() - start
    if code != DONE:
        sys.stderr.write(errors.getvalue())
        raise G4SegError(f"the evaluation with {workers} workers failed (exit code {code})")
    reported = json.loads(report.read_text(encoding="utf-8"))["seconds"]
    return {"seconds": round(spent, 3), "reported": reported}


def _file(root: Path, side: str, index: int) -> Path:
    return root / side / f"2007_{index:06d}.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.evaluation", "Seconds of g4seg-evaluate for a set like VOC12's.")
    add = parser.add_argument
    add("--count", type=count, default=IMAGES, help="images (default: %(default)s)")
    add("--workers", type=counts, default=None, metavar="N,...", help="threads (default: 1 and one for each CPU)")
    add("--runs", type=count, default=3, help="of each, in turns (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _execute(_parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    workers = options.workers or tuple(dict.fromkeys((1, usable_cpus())))
    cases = [(number, coarse) for coarse in (False, True) for number in workers]
    runs: dict[tuple[int, bool], list[dict[str, float]]] = {case: [] for case in cases}
    with TemporaryDirectory(prefix="g4seg-bench-") as folder:
        root = Path(folder) / "set"
        write_set(root, options.count)
        timed(root, workers[-1], coarse=True)  # from here on the files come from the page cache
        for _ in range(options.runs):
            for number, coarse in cases:
                runs[number, coarse].append(timed(root, number, coarse=coarse))
    results = [
        {
            "workers": number,
            "coarse": coarse,
            "runs": spent,
            "median_seconds": median(one["seconds"] for one in spent),
            "images_per_second": round(options.count / median(one["seconds"] for one in spent), 1),
        }
        for (number, coarse), spent in runs.items()
    ]
    print(f"{options.count} label pictures of {WIDTH}x{HEIGHT} pixels, median of {options.runs} runs in turns\n")
    rows = [["workers", "evaluated", "seconds", "images/s"], ["---"] * 4]
    for one in results:
        what = "predictions, coarse masks and gain" if one["coarse"] else "predictions"
        rows.append([str(one["workers"]), what, f"{one['median_seconds']:.2f}", f"{one['images_per_second']:.0f}"])
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    if options.json is not None:
        size = {"height": HEIGHT, "width": WIDTH}
        record = {"count": options.count, "size": size, "limit_seconds": LIMIT_S, "results": results}
        write_record(options.json, "evaluation", record)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
