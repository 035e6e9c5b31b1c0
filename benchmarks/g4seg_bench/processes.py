"""Time and memory of whole processes, each measured alone, and the memory that is left."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g4seg_engine.errors import G4SegError

LAUNCHER = Path(__file__).with_name("launcher.py")

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""Read when PyTorch is loaded: its threads sleep while others work, and do not spin on the cores that others need."""


@dataclass(frozen=True)
class Usage:
    """What one process took.

    Attributes:
        seconds: from its start to its end.
        cpu_seconds: of all its threads, in user and system mode.
        peak_mb: the most physical memory it held, in 10^6 bytes.
        started: when it was started, on the clock that time.monotonic of every process reads.
        output: what it wrote to standard output.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    started: float = 0.0
    output: str = ""


def run_measured(command: Sequence[str]) -> Usage:
    """Run a command to its end.

    Args:
        command: path of the program and its arguments.

    Raises:
        G4SegError: if it fails; what it wrote to stderr is passed on.
    """
    launch = [sys.executable, "-I", "-S", str(LAUNCHER), *command]
    done = subprocess.run(launch, capture_output=True, encoding="utf-8", errors="replace", check=False)
    result: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"code": "it did not start"}
    if result["code"] != 0:
        sys.stderr.write(done.stderr)
        raise G4SegError(f"failed (exit code: {result['code']}): {shlex.join(command)}")
    return Usage(
        round(result["seconds"], 4),
        round(result["cpu_seconds"], 4),
        round(result["peak_bytes"] / 1e6, 1),
        result["started"],
        result["output"],
    )


def wait_without_spinning() -> dict[str, str]:
    """Set WAITING for this process and those that it starts, unless the user has; returns what holds.

    It has no effect on libraries that are loaded already.
    """
    return {name: os.environ.setdefault(name, value) for name, value in WAITING.items()}


def available_mb(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Memory that can be taken without swapping, in 10^6 bytes; None where the system does not say."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024 / 1e6
    return None
