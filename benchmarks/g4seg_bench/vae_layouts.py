"""What the autoencoder's speed depends on: ``python -m g4seg_bench.vae_layouts --engine DIR``.

Both halves in eager PyTorch with channels first and last, in float32 and bfloat16; on ONNX Runtime, whose convolutions
work on blocks of channels; and on OpenVINO with group norms as they are exported, and as a scale and a shift per
channel, so that no tensor has to change its layout. All take turns in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from g4seg_bench.options import count
from g4seg_bench.record import write_record
from g4seg_engine import openvino_runner
from g4seg_engine.manifest import Manifest, load_engine
from g4seg_engine.onnxruntime_runner import OnnxRuntimeRunner
from g4seg_engine.openvino_runner import OpenVinoRunner
from g4seg_engine.processor import cpu_precisions, usable_cpus
from g4seg_export.requirements import require_export_packages
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.refiner import engine_directory

HALVES = {"vae_encoder": ("image", "latent"), "vae_decoder": ("latent", "image")}
"""The networks, their input and their output."""

Arrays = NDArray[np.float32]
Side = Callable[[], Arrays]


def sides(
    network: str, engine: Path, manifest: Manifest, model: str, threads: int, stack: ExitStack
) -> dict[str, Side]:
    """Every way to run one half, by name, the reference first; the stack closes them."""
    spec = manifest.spec(network)
    shape = [1 if isinstance(size, str) else size for size in spec.inputs[0].shape]
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    graph = engine / manifest.networks[network].files[0].file
    found: dict[str, Side] = {}

    def of_runner(runner: Any) -> Side:
        stack.enter_context(runner)
        name, output = HALVES[network]
        return lambda: runner.run({name: values})[output]

    precisions = cpu_precisions()
    found["onnxruntime"] = of_runner(OnnxRuntimeRunner(graph, spec, threads=threads))
    for precision in precisions:
        with patch.object(openvino_runner, "norm_by_channel", lambda _: 0):
            found[f"openvino {precision}, norms as exported"] = of_runner(
                OpenVinoRunner(graph, spec, precision, threads)
            )
        found[f"openvino {precision}, norms by channel"] = of_runner(OpenVinoRunner(graph, spec, precision, threads))
    return {**_eager(network, model, values, precisions), **found}


def _eager(network: str, model: str, values: Arrays, precisions: Sequence[str]) -> dict[str, Side]:
    import torch

    from g4seg_export.networks import load_network
    from g4seg_export.sources import load_source

    source = load_source(model)
    found: dict[str, Side] = {}
    for precision in precisions:
        for layout in ("first", "last"):
            with load_network(source, network, "folded", source.dense_mode) as module:
                dtype = torch.float32 if precision == "fp32" else torch.bfloat16
                form = torch.channels_last if layout == "last" else torch.contiguous_format
                # The wrapper's own arithmetic stays float32, as in the graphs.
                module.compute = dtype
                module.to(dtype=dtype, memory_format=form)  # type: ignore[call-overload]
                given = torch.from_numpy(values).to(memory_format=form)

            def side(module: Any = module, given: Any = given) -> Arrays:
                with torch.inference_mode():
                    result: Arrays = module(given).float().numpy()
                return result

            found[f"eager {precision}, channels {layout}"] = side
    return found


def measure(found: Mapping[str, Side], runs: int) -> dict[str, dict[str, Any]]:
    """Run every side once to warm up, then in turns; seconds, their median and the distance to the first side."""
    first = next(iter(found))
    seconds: dict[str, list[float]] = {name: [] for name in found}
    outputs: dict[str, Arrays] = {}
    for number in tqdm(range(runs + 1), desc="round", file=sys.stderr):
        for name, side in found.items():
            start = perf_counter()
            output = side()
            if number:
                seconds[name].append(round(perf_counter() - start, 4))
            else:
                outputs[name] = output
    scale = float(np.abs(outputs[first]).max())
    return {
        name: {
            "seconds": seconds[name],
            "median": round(median(seconds[name]), 4),
            "ratio": round(median(a / b for a, b in zip(seconds[first], seconds[name], strict=True)), 3),
            "difference": float(np.abs(outputs[name] - outputs[first]).max()) / scale,
        }
        for name in found
    }


def table(record: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row per side."""
    rows = [["", *(f"{network}, s | ratio | difference" for network in record)]]
    rows.append(["---"] * (1 + 3 * len(record)))
    for name in next(iter(record.values())):
        row = [name]
        for found in record.values():
            one = found[name]
            row += [f"{one['median']:.2f}", f"{one['ratio']:.2f}", f"{one['difference']:.1e}"]
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.vae_layouts", "What the autoencoder's speed depends on.")
    add = parser.add_argument
    add("--engine", default="tiny", metavar="DIR|tiny", help="engine directory (default: %(default)s)")
    add("--model", help="the model it was made from (default: as the engine says)")
    add("--runs", type=count, default=3, help="of each side, in turns (default: %(default)s)")
    add("--threads", type=count, default=usable_cpus(), help="CPU threads (default: all, %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _execute(_parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    require_export_packages()
    import torch

    torch.set_num_threads(options.threads)
    engine = engine_directory(options.engine)
    manifest = load_engine(engine)
    record: dict[str, dict[str, dict[str, Any]]] = {}
    for network in HALVES:
        with ExitStack() as stack:
            model = options.model or manifest.model.id
            record[network] = measure(sides(network, engine, manifest, model, options.threads, stack), options.runs)
    print(table(record))
    if options.json is not None:
        facts = {"model": manifest.model.id, "threads": options.threads, "runs": options.runs}
        write_record(options.json, "vae layouts", {**facts, "networks": record})
    return DONE


if __name__ == "__main__":
    sys.exit(main())
