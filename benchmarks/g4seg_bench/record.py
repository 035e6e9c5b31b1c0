"""A benchmark's JSON record: written with what the machine and the moment were, and read back."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from g4seg_engine import codec
from g4seg_engine.cuda_device import cuda_device, driver_cuda
from g4seg_engine.errors import EngineError, G4SegError, MissingExtraError
from g4seg_engine.processor import flags, usable_cpus
from g4seg_trt.atomic import reason
from g4seg_trt.cli.common import one_line

PACKAGES = (
    *("g4seg-trt", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "tensorrt-cu13", "polygraphy"),
    *("torch", "triton", "diffusers", "transformers", "onnx", "matplotlib", "psutil"),
)
CPU_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx_ne_convert"),
    *("avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "svebf16"),
)
"""The instructions that decide how fast networks run, by the names that Linux gives them (x86, then ARM)."""

_GIT_SECONDS = 20
_DEEPEST = 20


def environment() -> dict[str, Any]:
    """Date (UTC), revision, processor, cores, memory, GPU, Python and package versions; nothing that names a user."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "revision": git_revision(Path(__file__)),
        "processor": _processor(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags()],
        "cores": usable_cpus(),
        "memory_mb": _memory_mb(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write_record(path: Path, name: str, result: Mapping[str, Any]) -> None:
    """Writes {"benchmark", "environment", ...result} as JSON."""
    record = {"benchmark": name, "environment": environment(), **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        G4SegError: if the file cannot be read or holds something else.
    """
    try:
        data = codec.parse(path.read_bytes())
    except OSError as error:
        raise G4SegError(f"record {path} cannot be read: {reason(error)}") from error
    except ValueError as error:
        raise G4SegError(f"record {path} is damaged: {one_line(str(error))}; measure again") from error
    if not isinstance(data, dict):
        raise G4SegError(f"record {path} is {shown(data)}, expected a JSON object that g4seg-bench wrote")
    if _depth(data, _DEEPEST) > _DEEPEST:
        raise G4SegError(f"record {path} is nested more than {_DEEPEST} deep: g4seg-bench wrote no such record")
    try:
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise G4SegError(f"record {path} holds half a character: {error.reason}; measure again") from error
    return data


def shown(value: object) -> str:
    """A value of a record, for messages: one line, at most 60 characters."""
    text = one_line(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def git_revision(file: Path) -> str | None:
    """The short hash of the commit that a file is checked out from.

    Args:
        file: a file of the working tree, tracked by git.

    Returns:
        The hash, with "+" behind it if any tracked file differs from that commit; None where git is not installed or
        does not track the file, as in an installed package.
    """
    tracked = _git(file.parent, "ls-files", "--error-unmatch", file.name)
    revision = _git(file.parent, "rev-parse", "--short", "HEAD")
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    if tracked is None or revision is None or changes is None:
        return None
    return f"{revision}+" if changes else revision


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None if it fails. It takes no lock, so that it disturbs no other git."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _gpu() -> dict[str, Any] | None:
    """The GPU that PyTorch uses; None without one. PyTorch is not loaded where there is no driver."""
    if driver_cuda() is None:
        return None
    try:
        found = cuda_device()
    except (EngineError, MissingExtraError):
        return None
    return {
        "name": found.name,
        "capability": found.compute_capability,
        "driver": found.driver,
        "memory_mb": round(found.memory / 1e6),
    }


def _depth(value: object, most: int) -> int:
    """How deep lists and objects lie in one another; no deeper than `most` + 1 is looked."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if most < 0 or not items:
        return 0
    return 1 + max(_depth(item, most - 1) for item in items)


def _memory_mb() -> int | None:
    """Main memory in 10^6 bytes; None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
