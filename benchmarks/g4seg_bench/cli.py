"""``g4seg-bench``: seconds and memory of an engine beside PyTorch, and reports of the records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from g4seg_bench.choices import AXES, EAGER, EngineChoice, baseline_choice, engine_choice
from g4seg_bench.options import count, counts
from g4seg_bench.processes import wait_without_spinning
from g4seg_engine.errors import G4SegError
from g4seg_engine.processor import usable_cpus
from g4seg_trt.atomic import check_writable, reason
from g4seg_trt.cli.common import DONE, new_parser, run

PROGRAM = "g4seg-bench"
REPORT = "report"
SCALING_COUNTS = (1, 2, 4, 8)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or report records; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == [REPORT]:
        from g4seg_bench.report import add_report_arguments, run_report

        parser = new_parser(f"{PROGRAM} {REPORT}", "Tables and plots of the records of g4seg-bench.")
        add_report_arguments(parser)
        return run(parser, lambda _, options: run_report(options), arguments[1:])
    return run(_parser(), _execute, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(
        PROGRAM,
        "Seconds and memory of a refinement: an engine on its backends, and PyTorch, in turns. "
        f"'{PROGRAM} {REPORT} RECORD...' makes tables and plots of the records.",
    )
    add = parser.add_argument
    add("--engine", required=True, metavar="DIR|tiny", help="engine directory, or tiny")
    add(
        "--backend",
        type=engine_choice,
        action="append",
        metavar="NAME[:PRECISION]",
        help="a side: onnxruntime, openvino:bf16, openvino:fp32, tensorrt, auto; may be given several times "
        "(default: onnxruntime)",
    )
    add(
        "--baseline",
        type=baseline_choice,
        action="append",
        metavar="eager|compile|none",
        help="PyTorch with the diffusers modules, as they are or through torch.compile; also with :bf16 or :fp16, and "
        "with :own-vae for the model's own autoencoder where the engine has another; may be given several times, the "
        f"first is compared with (default: {EAGER})",
    )
    add("--model", metavar="ID|DIR|NAME", help="the baseline's weights (default: what the engine was made from)")
    add("--vae", metavar="ID|DIR|NAME", help="the baseline's autoencoder, where the engine has another than its model")
    add("--device", metavar="cpu|cuda", help="where all sides run (default: the backend's first choice)")
    add(
        "--classes",
        type=counts,
        metavar="N[,N...]",
        help="masks of the image; several: the first in turns, all of them for --scaling (default: 1)",
    )
    add("--batch-size", type=count, default=1, metavar="N", help="masks in one run of a network (default: %(default)s)")
    add("--threads", type=count, default=usable_cpus(), metavar="N", help="CPU threads (default: all, %(default)s)")
    add("--warmup", type=count, default=1, metavar="N", help="rounds that do not count (default: %(default)s)")
    add("--runs", type=count, default=5, metavar="N", help="rounds that do (default: %(default)s)")
    add(
        "--scaling",
        type=_axes,
        default=(),
        metavar="AXIS[,AXIS...]",
        help=f"how seconds grow with {', '.join(AXES)}; classes and batch sizes are those of --classes "
        f"(default there: {','.join(map(str, SCALING_COUNTS))})",
    )
    add("--scaling-runs", type=count, default=3, metavar="N", help="runs of each of its points (default: %(default)s)")
    add(
        "--square-engine",
        action="append",
        default=[],
        metavar="DIR",
        help="the engine at another --square, for --scaling square; may be given several times",
    )
    add(
        "--cold-start",
        type=count,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="measure starts, each in a process of its own, N times (default: once)",
    )
    add("--memory", action="store_true", help="measure peak memory, each side in a process of its own")
    add("--low-memory", action="store_true", help="engines keep one network open at a time")
    add("--no-ceilings", action="store_true", help="do not measure what the machine can do at best")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _axes(text: str) -> tuple[str, ...]:
    axes = tuple(dict.fromkeys(text.split(",")))
    if unknown := [axis for axis in axes if axis not in AXES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}, allowed: {', '.join(AXES)}")
    return axes


def _execute(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    choices = (
        *(options.backend or [EngineChoice("onnxruntime")]),
        *(one for one in options.baseline or [baseline_choice(EAGER)] if one is not None),
    )
    names = [one.name for one in choices]
    if twice := [name for name in names if names.count(name) > 1]:
        parser.error(f"{twice[0]} is given twice")
    if options.cold_start and options.low_memory:
        parser.error("--cold-start ends when all networks are open, which they never are with --low-memory")
    several = options.classes is not None and len(options.classes) > 1
    axes = tuple(dict.fromkeys((*options.scaling, *(("classes",) if several else ()))))
    if ("square" in axes) != bool(options.square_engine):
        parser.error("--scaling square and --square-engine go together: they name the engines at other squares")
    if options.json is not None:
        _check_record(options.json)
    # Before anything loads PyTorch.
    wait_without_spinning()
    from g4seg_bench.latency import Request, measure
    from g4seg_bench.plans import Setup
    from g4seg_bench.record import environment, write_record
    from g4seg_bench.telling import tell

    request = Request(
        setup=Setup.of(options, options.classes[0] if options.classes else 1),
        choices=choices,
        warmup=options.warmup,
        runs=options.runs,
        axes=axes,
        counts=options.classes if several else SCALING_COUNTS,
        squares=tuple(options.square_engine),
        scaling_runs=options.scaling_runs,
        memory=options.memory,
        cold_starts=options.cold_start,
        ceilings=not options.no_ceilings,
    )
    record = measure(request)
    if options.json is not None:
        write_record(options.json, "latency", record)
    tell({"benchmark": "latency", "environment": environment(), **record})
    return DONE


def _check_record(path: Path) -> None:
    """Check, before anything is measured, that the record can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise G4SegError(f"cannot make the folder {path.parent}: {reason(error)}") from error
    check_writable(path)
