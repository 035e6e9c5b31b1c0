"""What a benchmark's JSON record says about the machine and the moment."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("g4seg-trt", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt-cu13", "polygraphy"),
    *("torch", "triton", "diffusers", "transformers", "onnx"),
)


def environment() -> dict[str, Any]:
    """Date (UTC), processor, cores this process may use, Python and package versions; nothing that names a user."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write_record(path: Path, name: str, result: Mapping[str, Any]) -> None:
    """Writes {"benchmark", "environment", ...result} as JSON."""
    record = {"benchmark": name, "environment": environment(), **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


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
