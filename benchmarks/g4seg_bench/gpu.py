"""Everything that needs a GPU, in one command: ``python -m g4seg_bench.gpu``, or ``make gpu``.

Says what is missing, runs the tests marked gpu and tensorrt, the correspondence kernels, and the whole chain at true
size on whatever is installed: TensorRT, ONNX Runtime on CUDA, torch modules in the chain, eager PyTorch in half. Needs
no network: the engine is built here from seeded random weights.
"""

from __future__ import annotations

import argparse
import gc
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from g4seg_bench.options import count, counts
from g4seg_bench.record import write_record
from g4seg_engine.cuda_device import cuda_device
from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import Manifest, load_engine
from g4seg_engine.spec import NETWORKS
from g4seg_trt.cli.common import DONE, new_parser, run, say
from g4seg_trt.diagnosis.packages import installed_version, package_versions

NEEDED = {
    "tensorrt": "TensorRT engines",
    "polygraphy": "TensorRT engines",
    "onnxruntime-gpu": "ONNX Runtime on CUDA",
    "diffusers": "building an engine, and the eager baseline",
    "transformers": "building an engine, and the eager baseline",
    "onnx": "building an engine",
    "onnxscript": "building an engine",
    "triton": "the correspondence kernels",
    "onnxruntime": "comparing a new engine with PyTorch",
    "pytest": "tests",
    "hypothesis": "tests",
    "tokenizers": "refining",
}
TEST_SECONDS = 400
PARTS = ("tests", "correspondence", "chain")
# Milliseconds at 790 TFLOP/s of dense half products, which an H200 reaches: UNet, VAE encoder and decoder, and the
# image encoder (ViT-B/16 at 512 pixels) twice.
ROOFLINE = {"H200": 6.0}
# What code that meets its first GPU may raise; the traceback is shown and the other sides go on.
FAILED_SIDE = (RuntimeError, G4SegError, TypeError, AttributeError, ValueError, AssertionError, ImportError, OSError)


def missing() -> list[str]:
    """One line for each package that is not installed: what does not run without it."""
    versions = package_versions()
    either = versions["onnxruntime"] or versions["onnxruntime-gpu"]
    found = {name: versions.get(name) or installed_version(name) for name in NEEDED} | {"onnxruntime": either}
    return [f"{name} is not installed: without it no {NEEDED[name]}" for name, version in found.items() if not version]


def tests(root: Path) -> dict[str, Any]:
    """Run the tests that need a GPU; their numbers by outcome and the last line of the summary."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "--continue-on-collection-errors", "-m", "gpu or tensorrt"]
    try:
        done = subprocess.run(
            [*command, str(root / "tests")], capture_output=True, text=True, cwd=root, check=False, timeout=TEST_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"returncode": None, "last": f"stopped after {TEST_SECONDS} s"}
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines() or [""]
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1])}
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"returncode": done.returncode, **found, "failures": failures, "last": lines[-1]}


def measured(sides: dict[str, Any], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run for one mask, the sides taking turns; two turns before do not count."""
    import torch

    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 2):
        for name, side in sides.items():
            torch.cuda.synchronize()
            start = perf_counter()
            side.run()
            torch.cuda.synchronize()
            if number >= 2:
                found[name].append(round((perf_counter() - start) * 1e3 / side.count, 4))
    return found


def compare(
    engine: Path, model: str, batch_sizes: Sequence[int], runs: int, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The whole chain on every backend that works here, at every batch size, against eager half at batch size 1.

    `keep` gets what is known after each side: what breaks later loses nothing.
    """
    import torch

    from g4seg_bench.gpu_sides import ChainSide, EagerSide, module_chain
    from g4seg_bench.sides import Prepared, Task
    from g4seg_export.sources import load_source
    from g4seg_trt.prompt import PromptEncoder
    from g4seg_trt.torch_chain import TorchChain

    manifest = load_engine(engine)
    task = Task.of(manifest)
    prepared = Prepared.of(task, 0, PromptEncoder.of_engine(engine, manifest), manifest.dims)
    source = load_source(model)
    name = torch.cuda.get_device_name()
    floor = next((ms for part, ms in ROOFLINE.items() if part in name), None)
    found: dict[str, Any] = {"device": name, "roofline_ms": floor, "rows": [], "not_run": {}}

    def opened(backend: str, batch: int, own_graphs: bool = False) -> ChainSide:
        chain = TorchChain.open(engine, manifest, backend=backend, batch_size=batch, own_graphs=own_graphs)
        return ChainSide(chain, task, prepared)

    with ExitStack() as stack:
        # Loaded once, for all batch sizes.
        modules = {name: stack.enter_context(half_module(source, manifest, name)) for name in NETWORKS}
        makers: dict[str, Callable[[int], ChainSide]] = {
            "torch modules, CUDA graph": lambda batch: ChainSide(
                module_chain(modules, manifest, batch), task, prepared
            ),
            "tensorrt": lambda batch: opened("tensorrt", batch),
            "onnxruntime": lambda batch: opened("onnxruntime", batch),
            "onnxruntime, its own graphs": lambda batch: opened("onnxruntime", batch, own_graphs=True),
        }
        eager = EagerSide(source, manifest, task, prepared)
        expected = eager.run()
        for batch in batch_sizes:
            for side, make in makers.items():
                if side not in found["not_run"]:
                    try:
                        found["rows"].append(_row(side, make, batch, eager, expected, runs))
                    except FAILED_SIDE as error:
                        say(traceback.format_exc())
                        found["not_run"][side] = next(iter(str(error).strip().splitlines()), type(error).__name__)
                    keep(found)
    return found


def _row(name: str, make: Callable[[int], Any], batch: int, eager: Any, expected: Any, runs: int) -> dict[str, Any]:
    """Measure one side in turns with eager, so that a clock that changes changes both; then let go of it."""
    import torch

    with held_memory() as taken:
        side = make(batch)
        matches = side.run()
    took = measured({name: side, "eager": eager}, runs)
    row = {
        "side": name,
        "batch_size": side.count,
        "ms": median(took[name]),
        "eager_ms": median(took["eager"]),
        "eager_over_side": round(median(took["eager"]) / median(took[name]), 3),
        "held_mb": taken[0],
        "matches_differing": int((matches != expected).sum()),
        "matches": int(matches.size),
        "runs_ms": took,
    }
    side.close()
    del side
    gc.collect()
    torch.cuda.empty_cache()
    return row


@contextmanager
def half_module(source: Any, manifest: Manifest, name: str) -> Iterator[Any]:
    """One network's module in half on the GPU, as it is exported."""
    from g4seg_export.networks import load_network
    from g4seg_export.precision import set_io, set_precision

    with load_network(source, name, manifest.injection.form, manifest.image_encoder.dense_mode) as network:
        set_precision(network, "fp16")
        set_io(network, "float32")
        yield network.cuda()


@contextmanager
def held_memory() -> Iterator[list[float]]:
    """What the device's memory holds more after the block, in 10^6 bytes, whoever allocated it; not a peak."""
    import torch

    torch.cuda.empty_cache()
    before, found = torch.cuda.mem_get_info()[0], [0.0]
    yield found
    torch.cuda.synchronize()
    found[0] = round((before - torch.cuda.mem_get_info()[0]) / 1e6, 1)


def tell(found: dict[str, Any]) -> None:
    """The comparison as Markdown."""
    floor = found["roofline_ms"]
    print(f"\n{found['device']}, one mask, whole chain, half; roofline {floor or 'unknown'} ms\n")
    print("| side | batch | ms a mask | eager, batch 1, ms | eager / side | memory held, MB | matches that differ |")
    print("|---|---|---|---|---|---|---|")
    for row in found["rows"]:
        print(
            f"| {row['side']} | {row['batch_size']} | {row['ms']:.2f} | {row['eager_ms']:.2f} | "
            f"{row['eager_over_side']:.2f} | {row['held_mb']:.0f} | {row['matches_differing']} of {row['matches']} |"
        )
    for name, reason in found["not_run"].items():
        print(f"{name}: not run: {reason}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.gpu", "Tests and benchmarks that need a GPU.")
    add = parser.add_argument
    add("--model", default="random:sd21-base", help="what to build and to compare with (default: %(default)s)")
    add("--engine", type=Path, metavar="DIR", help="an engine of that model; built here unless given")
    add("--batch-sizes", type=counts, default=(1, 2, 4, 8), metavar="N,N", help="masks in one run (default: 1,2,4,8)")
    add("--runs", type=count, default=20, help="runs of each side (default: %(default)s)")
    add("--only", choices=PARTS, action="append", help="this part, and others named so (default: all)")
    add("--results", type=Path, default=Path("benchmarks/results"), metavar="DIR", help="where the records go")
    return parser


def _execute(_parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    for line in missing():
        say(line)
    device = cuda_device()
    say(f"{device.name}, compute capability {device.compute_capability}, driver {device.driver}")
    facts = {"gpu": device.name, "compute_capability": device.compute_capability, "driver": device.driver}
    results: Path = options.results
    parts = options.only or PARTS
    if "tests" in parts:
        outcome = tests(Path(__file__).parents[2])
        say(f"tests: {outcome}")
        write_record(results / "gpu_tests.json", "gpu tests", {**facts, "tests": outcome})
    if "correspondence" in parts:
        from g4seg_bench.correspondence_cuda import measure_cuda

        kernels = measure_cuda(options.runs)
        print("\n".join(kernels["table"]))
        write_record(results / "gpu_correspondence.json", "correspondence", {**facts, "cuda": kernels})
    if "chain" in parts:

        def keep(found: dict[str, Any]) -> None:
            write_record(results / "gpu_chain.json", "chain", {**facts, "model": options.model, **found})

        with TemporaryDirectory(prefix="g4seg-gpu-") as folder:
            engine = options.engine or _build(options.model, Path(folder) / "engine", options.batch_sizes)
            tell(compare(engine, options.model, options.batch_sizes, options.runs, keep))
    return DONE


def _build(model: str, output: Path, batch_sizes: Sequence[int]) -> Path:
    """Build a half engine with the product's own command, with TensorRT plans where TensorRT is installed."""
    from g4seg_trt.cli.build_engines import main as build_engines

    command = ["--model", model, "--output", str(output), "--precision", "fp16"]
    versions = package_versions()
    if versions["tensorrt"] and versions["polygraphy"]:
        command += ["--backend", "tensorrt", "--batch-sizes", ",".join(map(str, batch_sizes))]
    if build_engines(command) != DONE:
        raise G4SegError(f"the engine of {model} could not be built, see above")
    return output


if __name__ == "__main__":
    sys.exit(main())
