"""g4seg-engine: what an engine directory holds (inspect), and what works on this machine (doctor)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from g4seg_engine.version import VERSION
from g4seg_trt.atomic import check_writable
from g4seg_trt.cli.common import DONE, STDOUT, USER_ERROR, new_parser, run, say, write_json
from g4seg_trt.errors import OutputError


def build_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = new_parser(
        "g4seg-engine",
        "Look into an engine directory, or find out which backends work on this machine.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect|doctor")
    text = "what an engine directory holds, whether it is whole, and whether what is compiled in it fits this machine"
    inspect = commands.add_parser("inspect", help=text, description=text, allow_abbrev=False)
    inspect.add_argument("engine", metavar="DIR|tiny", help="an engine directory, or the embedded miniature")
    inspect.add_argument("--verify", action="store_true", help="check every hash, also of large files")
    text = "which backends work on this machine and why others do not, and the versions that a bug report needs"
    doctor = commands.add_parser("doctor", help=text, description=text, allow_abbrev=False)
    for command in (inspect, doctor):
        command.add_argument("--json", metavar="FILE|-", help="the same as a report")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run(build_parser(), execute, argv)


def execute(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Do what was asked for."""
    if arguments.json not in (None, STDOUT):
        check_writable(Path(arguments.json))
    if arguments.command == "inspect":
        return _inspect(arguments)
    return _doctor(parser, arguments)


def _inspect(arguments: argparse.Namespace) -> int:
    # Imported here: it needs numpy, which --help and --version need not wait for.
    from g4seg_trt.cli.engine_text import inspection_lines
    from g4seg_trt.diagnosis.inspection import inspect_engine
    from g4seg_trt.refiner import engine_directory

    directory = engine_directory(arguments.engine)
    if arguments.json not in (None, STDOUT):
        report = Path(arguments.json).resolve()
        if directory.resolve() in report.parents:
            raise OutputError(f"cannot write {arguments.json}: it lies in the engine directory; choose another place")
    inspection = inspect_engine(directory, verify=arguments.verify)
    mapping = {"engine": arguments.engine, **inspection.to_mapping()}
    _report(arguments, mapping, inspection_lines(arguments.engine, inspection))
    if inspection.problem is not None:
        raise inspection.problem
    return DONE


def _doctor(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from g4seg_trt.cli.engine_text import diagnosis_lines
    from g4seg_trt.diagnosis.doctor import diagnose

    diagnosis = diagnose()
    _report(arguments, diagnosis.to_mapping(), diagnosis_lines(diagnosis))
    if diagnosis.works:
        return DONE
    # A missing package is no user's error, but without any backend there is something to mend.
    first = diagnosis.backends[0]
    say(f"{parser.prog}: error: no backend works here; for a start: {first.remedy or first.reason}")
    return USER_ERROR


def _report(arguments: argparse.Namespace, mapping: Mapping[str, Any], lines: Sequence[str]) -> None:
    if arguments.json is not None:
        write_json(arguments.json, {"command": f"g4seg-engine {arguments.command}", "version": VERSION, **mapping})
    if arguments.json != STDOUT:
        print("\n".join(lines), flush=True)
