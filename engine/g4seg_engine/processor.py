"""What the processor can do, and how much of it this process may use."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

_BFLOAT16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16"}
"""Any of these, by the names of Linux, multiplies bfloat16 at twice the rate of float32 or more."""

_TELLING = ("vendor_id", "cpu family", "model\t", "flags", "CPU implementer", "CPU part", "Features")


def usable_cpus() -> int:
    """CPUs that this process may use: a container or taskset may grant fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; False where the system does not say."""
    return bool(_BFLOAT16 & flags())


def cpu_precisions() -> tuple[str, ...]:
    """What a backend with a choice may compute in on this processor, the fastest last: "fp32", and "bf16" if it can."""
    return ("fp32", "bf16") if has_bfloat16() else ("fp32",)


@cache
def flags() -> frozenset[str]:
    """The processor's features by the names that Linux gives them; none on other systems."""
    found: set[str] = set()
    for line in _cpuinfo():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            found.update(value.split())
    return frozenset(found)


@cache
def processor_hash() -> str:
    """The same for processors that can do the same: what is compiled for one runs on the other."""
    told = sorted({line for line in _cpuinfo() if line.startswith(_TELLING)})
    return hashlib.sha256("\n".join([platform.machine(), *(told or [platform.processor()])]).encode()).hexdigest()[:16]


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
