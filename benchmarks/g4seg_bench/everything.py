"""Every benchmark that this machine can run, one after the other: ``make bench``.

What it cannot run is named with the reason. Records go to benchmarks/results, from which the README's tables are made
(``python -m g4seg_bench.readme``). At true size engines are built first, unless they are there: two and a half hours in
all.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from g4seg_bench.options import count
from g4seg_bench.processes import available_mb
from g4seg_engine.cuda_device import driver_cuda
from g4seg_engine.processor import cpu_precisions
from g4seg_trt.cli.common import DONE, SOME_FAILED, new_parser, run, say

MODEL = "random:sd21-base"
TRUE_SIZE_MB = 19_000
"""Free memory for the sides of the comparisons at true size."""

SQUARES = (256, 384)
"""Beside the model's own, for the scaling."""


_BUILD = "import sys; from g4seg_trt.cli.build_engines import main; sys.exit(main())"


@dataclass(frozen=True)
class Step:
    """One benchmark.

    Attributes:
        name: of its record, without the ending.
        arguments: of Python.
        unable: why this machine cannot run it, or "".
        environment: variables that it needs.
    """

    name: str
    arguments: tuple[str, ...]
    unable: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def small_steps(results: Path) -> Iterator[Step]:
    """What needs no engine but the embedded one."""
    # As g4seg-refine sets it before it imports numpy, which the benchmark has done by then.
    one_thread = {"OPENBLAS_NUM_THREADS": "1"}
    for name in ("folder", "bookkeeping"):
        yield Step(name, _module(name, results), environment=one_thread)
    for name in ("commands", "correspondence", "quality", "evaluation"):
        yield Step(name, _module(name, results))
    baselines = {"baselines": ("--count", "300"), "baselines_256": ("--size", "256")}
    for name, arguments in baselines.items():
        yield Step(name, _module("baselines", results, *arguments, record=name), _without("pydensecrf", "crf"))
    ray_scaling = _module("ray_scaling", results, "--runs", "5")
    yield Step("ray_scaling", ray_scaling, _without("ray", "ray"), one_thread)
    yield Step("accuracy", _module("accuracy", results, "--sides", ",".join(_sides())), _without_openvino())
    yield Step("int8_tiny", _module("int8", results, "--engine", "tiny", record="int8_tiny"), _without_nncf())
    no_gpu = "" if driver_cuda() is not None else "no NVIDIA driver was found"
    yield Step("gpu", ("-m", "g4seg_bench.gpu", "--results", str(results)), no_gpu)


def true_size_steps(results: Path, engines: Path, runs: int) -> Iterator[Step]:
    """What needs engines of MODEL: with its own autoencoder, at other squares, and with a tiny autoencoder."""
    engine, tiny_vae = engines / "sd21", engines / "sd21-taesd"
    available = available_mb()
    unable = ""
    if available is not None and available < TRUE_SIZE_MB:
        unable = f"{available:.0f} MB of memory are free, {TRUE_SIZE_MB} are needed"
    repeated = ("--runs", str(runs), "--memory")
    yield from _build("engine", engine, unable)
    # Not all at once, which would take 26 GB.
    for record, sides in _compared().items():
        yield Step(record, _latency(results, record, engine, *sides, *repeated), unable)
    engine_sides = [argument for sides in _compared().values() for argument in sides]
    starts = (*engine_sides, "--baseline", "none", "--runs", "1", "--no-ceilings", "--cold-start", "2")
    yield Step("cold_start_sd21-base", _latency(results, "cold_start_sd21-base", engine, *starts), unable)
    fastest = ("--backend", _sides()[-1], "--baseline", "none", "--no-ceilings")
    squares = [engines / f"sd21-{square}" for square in SQUARES]
    for square, directory in zip(SQUARES, squares, strict=True):
        yield from _build(f"engine_{square}", directory, unable, "--square", str(square))
    others = [argument for directory in squares for argument in ("--square-engine", str(directory))]
    scaling = ("--classes", "1,2,4,8", "--scaling", "classes,batch,threads,square", *others)
    counts = ("--runs", str(runs), "--scaling-runs", str(runs))
    yield Step("scaling_sd21-base", _latency(results, "scaling_sd21-base", engine, *fastest, *scaling, *counts), unable)
    small = (*fastest, "--low-memory", "--memory", "--runs", "1")
    yield Step("low_memory_sd21-base", _latency(results, "low_memory_sd21-base", engine, *small), unable)
    vae = _module("vae_layouts", results, "--engine", str(engine), "--runs", str(runs))
    yield Step("vae_layouts", vae, unable)
    few = ("--calibration", "2", "--count", "0", "--runs", str(runs))  # masks of random weights say nothing
    int8 = _module("int8", results, "--engine", str(engine), *few, record="int8_sd21-base")
    yield Step("int8_sd21-base", int8, unable or _without_nncf())
    yield from _build("engine_taesd", tiny_vae, unable, "--vae", "random:taesd")
    both = ("--backend", _sides()[-1], "--baseline", "eager:own-vae", "--baseline", "eager", *repeated)
    own = _latency(results, "latency_sd21-base_taesd", tiny_vae, *both)
    yield Step("latency_sd21-base_taesd", own, unable)


def _sides() -> tuple[str, ...]:
    """Every backend and precision of this processor, the fastest last."""
    found = ["onnxruntime"]
    if find_spec("openvino"):
        found += [f"openvino:{precision}" for precision in cpu_precisions()]
    return tuple(found)


def _compared() -> dict[str, list[str]]:
    """Records of comparisons with eager, by name, and their sides: the fastest beside ONNX Runtime, then the others."""
    onnxruntime, *others = _sides()
    first = [onnxruntime, *others[-1:]]
    found = {"latency_sd21-base": first, "latency_sd21-base_openvino-fp32": others[:-1]}
    return {
        name: [argument for side in sides for argument in ("--backend", side)] for name, sides in found.items() if sides
    }


def _without(module: str, extra: str) -> str:
    return "" if find_spec(module) else f"{module} is not installed: pip install 'g4seg-trt[{extra}]'"


def _without_openvino() -> str:
    return _without("openvino", "openvino")


def _without_nncf() -> str:
    return _without_openvino() or ("" if find_spec("nncf") else "nncf is not installed: pip install nncf")


def _module(name: str, results: Path, *arguments: str, record: str = "") -> tuple[str, ...]:
    return ("-m", f"g4seg_bench.{name}", *arguments, "--json", str(results / f"{record or name}.json"))


def _latency(results: Path, record: str, engine: Path, *arguments: str) -> tuple[str, ...]:
    return ("-m", "g4seg_bench", "--engine", str(engine), *arguments, "--json", str(results / f"{record}.json"))


def _build(name: str, engine: Path, unable: str, *arguments: str) -> Iterator[Step]:
    if not engine.exists():
        yield Step(name, ("-c", _BUILD, "--model", MODEL, "--output", str(engine), *arguments), unable)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns the exit code: SOME_FAILED if one failed."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("make bench ARGS=...", "Every benchmark that this machine can run.")
    add = parser.add_argument
    add("--results", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="where the records go")
    add("--engines", type=Path, metavar="DIR", help="keep the engines of true size there, and use those that are there")
    add("--runs", type=count, default=3, help="of each side at true size (default: %(default)s)")
    add("--only", action="append", metavar="NAME", help="this benchmark, and others named so (default: all)")
    add("--small", action="store_true", help="only those with the embedded engine: half an hour")
    return parser


def _execute(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    with TemporaryDirectory(prefix="g4seg-bench-") as temporary:
        engines: Path = options.engines or Path(temporary)
        engines.mkdir(parents=True, exist_ok=True)
        steps = list(small_steps(options.results))
        if not options.small:
            steps += true_size_steps(options.results, engines, options.runs)
        names = [step.name for step in steps]
        if unknown := [name for name in options.only or () if name not in names]:
            parser.error(f"--only {unknown[0]}: choose from {', '.join(names)}")
        chosen = [step for step in steps if options.only is None or step.name in options.only]
        failed = [step.name for step in chosen if not _run(step)]
    for name in failed:
        say(f"failed: {name}, see above")
    return SOME_FAILED if failed else DONE


def _run(step: Step) -> bool:
    """Whether it did not fail."""
    if step.unable:
        say(f"not run: {step.name}: {step.unable}")
        return True
    say(f"== {step.name}: python {shlex.join(step.arguments)}")
    start = perf_counter()
    environment = {**os.environ, **step.environment}
    code = subprocess.run([sys.executable, *step.arguments], env=environment, check=False).returncode
    say(f"== {step.name}: {perf_counter() - start:.0f} s")
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
