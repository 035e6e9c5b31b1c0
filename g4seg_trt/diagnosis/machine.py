"""The computer without its GPU: Python, system, processor, memory. Nothing here names a user, a folder or a host."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """What a bug report says about the computer.

    Attributes:
        python: such as "3.11.7 CPython 64 bit".
        platform: system, release, processor architecture, C library.
        cpu: model of the processor, or its architecture where the model is not told.
        cores: logical cores of the machine.
        usable_cores: how many of them this process may use.
        memory_bytes: main memory, or None where the system does not tell.
        memory_limit_bytes: what a container grants of it, or None without a limit.
    """

    python: str
    platform: str
    cpu: str
    cores: int
    usable_cores: int
    memory_bytes: int | None
    memory_limit_bytes: int | None


def read_machine() -> Machine:
    """Ask the system."""
    cores = os.cpu_count() or 1
    bits = 64 if sys.maxsize > 2**32 else 32
    return Machine(
        python=f"{platform.python_version()} {platform.python_implementation()} {bits} bit",
        platform=_platform(),
        cpu=_cpu_model(),
        cores=cores,
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        memory_bytes=_memory(),
        memory_limit_bytes=_memory_limit(),
    )


def _platform() -> str:
    # Only the numbers of the release: a kernel of one's own may be named after its owner.
    release = re.match(r"[\d.]*", platform.release())
    library = " ".join(platform.libc_ver()).strip()
    parts = (platform.system(), release[0] if release else "", platform.machine(), library)
    return " ".join(part for part in parts if part)


def _cpu_model() -> str:
    if sys.platform == "darwin":
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if done.stdout.strip():
            return done.stdout.strip()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf


def _memory_limit() -> int | None:
    for path in _MEMORY_LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        # "max", and in the older layout some 8 exabytes, mean none.
        return int(text) if text.isdigit() and int(text) < 2**60 else None
    return None
