"""What works on this machine, each found out by trying it in a process of its own.

A broken GPU library may end the process that loads it, or hang. In a process of its own that is one more fact.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Named here again: g4seg_trt.backends needs numpy, and the doctor must also speak where numpy is broken.
BACKENDS: tuple[tuple[str, str], ...] = (
    ("onnxruntime", "cpu"),
    ("openvino", "cpu"),
    ("onnxruntime", "cuda"),
    ("tensorrt", "cuda"),
)
"""(backend, device) on which an engine can run."""

TORCH = ("torch", "cuda")
"""What every backend on a GPU rests on; it runs no engine by itself."""

EXPORT = ("export", "cpu")
"""The build side: what g4seg-build-engines needs beside a backend."""

TIME_LIMIT = 300
"""Seconds after which a trial counts as hanging. The first start of CUDA libraries may take half a minute."""

_REPORT_A_BUG = "please report it together with this text"


@dataclass(frozen=True)
class Outcome:
    """What came of one trial.

    Attributes:
        backend: "onnxruntime", "tensorrt", "torch" or "export".
        device: "cpu" or "cuda".
        works: whether it ran.
        reason: why not, or "".
        remedy: what to do about it; "" where the reason says so already.
        facts: what the trial saw on its way, plain JSON, such as the CUDA version of torch.
    """

    backend: str
    device: str
    works: bool
    reason: str = ""
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def try_out(backend: str, device: str, time_limit: float = TIME_LIMIT) -> Outcome:
    """Try a backend on a device; whatever goes wrong is in the outcome.

    Args:
        backend: as in BACKENDS, TORCH and EXPORT.
        device: likewise.
        time_limit: seconds.
    """
    # The same search path as here, whatever the current folder holds.
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from g4seg_trt.diagnosis.trial import main; main({backend!r}, {device!r})"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"it gave no answer within {time_limit:g} seconds"
        return Outcome(backend, device, False, reason, "see whether another program blocks the device, then try again")
    report = _last_report(done.stdout)
    if done.returncode == 0 and report is not None:
        return Outcome(backend, device, **{**report, "reason": without_folders(report["reason"])})
    return Outcome(backend, device, False, without_folders(_ending(done.returncode, done.stderr)), _REPORT_A_BUG)


def without_folders(text: str) -> str:
    """The text with every absolute path cut down to its last part: messages of libraries name home folders."""
    for folder in sorted(_own_folders(), key=len, reverse=True):
        text = text.replace(folder, "...")
    # Not within a URL (https://host/page) nor after a word (and/or).
    return re.sub(r"(?<![\w/.])(?:[A-Za-z]:)?[\\/](?:[^\s\\/'\":;,()<>]+[\\/])+", "", text)


def _own_folders() -> Sequence[str]:
    folders = [Path.home(), Path.cwd(), Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2]]
    # "/" alone would take every slash.
    return [str(folder) for folder in folders if len(folder.parts) > 1]


def _last_report(stdout: str) -> dict[str, Any] | None:
    """What the trial printed last; libraries print lines of their own before it."""
    lines = stdout.strip().splitlines()
    try:
        report = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return report if isinstance(report, dict) else None


def _ending(code: int, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = f": {lines[-1]}" if lines else ""
    if code < 0:
        try:
            return f"it ended the process with {signal.Signals(-code).name}{last}"
        except ValueError:
            return f"it ended the process with signal {-code}{last}"
    return f"it failed{last}" if lines else f"it ended the process with code {code}"
