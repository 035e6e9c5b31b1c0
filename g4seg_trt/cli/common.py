"""What every command shares: one main() with one error policy, the version, the JSON report.

Exit 0: all done. 1: a user's error, one line on stderr. 2: wrong usage (argparse). 3: some files of a folder
failed. 130: interrupted. A bug keeps its traceback. Nothing here imports more than the standard library, so
that --help and --version answer at once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from g4seg_engine.version import VERSION
from g4seg_trt.atomic import atomic_file
from g4seg_trt.errors import G4SegError

DONE, USER_ERROR, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130

STDOUT = "-"
"""The value of --json that means standard output."""

Execute = Callable[[argparse.ArgumentParser, argparse.Namespace], int]


def run(parser: argparse.ArgumentParser, execute: Execute, argv: Sequence[str] | None = None) -> int:
    """Parse the command line and execute it under the error policy.

    Args:
        parser: the command's.
        execute: does the work and returns the exit code; calls `parser.error` for wrong usage.
        argv: the arguments, by default those of the process.

    Returns:
        The exit code.
    """
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a class name must not fail for want of a code page
    try:
        code = execute(parser, arguments)
        sys.stdout.flush()
    except G4SegError as error:
        say(f"{parser.prog}: error: {error}")
        return USER_ERROR
    except KeyboardInterrupt:
        say(f"{parser.prog}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout has left (`| head`). The interpreter must not try to flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USER_ERROR
    return code


def say(message: str) -> None:
    """One line on stderr."""
    print(one_line(message), file=sys.stderr)


def one_line(message: str) -> str:
    """The message without line breaks and other control characters, which file names may hold."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]+", " ", message).strip()


def new_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with --version and without abbreviated options."""
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{prog} {VERSION}")
    return parser


def write_json(target: str, report: Mapping[str, Any]) -> None:
    """Write a report to a file, atomically, or to standard output.

    Args:
        target: a path, or "-".
        report: what JSON can hold, without NaN.

    Raises:
        OutputError: if the file cannot be written.
    """
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # File names need not be valid Unicode; the escapes that this writes for them are JSON's own.
    data = text.encode("utf-8", "backslashreplace")
    if target == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with atomic_file(Path(target)) as file:
        file.write(data)
