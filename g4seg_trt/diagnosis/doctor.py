"""Everything that a bug report needs to know about a machine, and which backends work on it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from g4seg_engine.version import VERSION
from g4seg_trt.diagnosis.gpu import Gpus, read_gpus
from g4seg_trt.diagnosis.machine import Machine, read_machine
from g4seg_trt.diagnosis.packages import package_problems, package_versions
from g4seg_trt.diagnosis.trials import BACKENDS, EXPORT, TORCH, Outcome, try_out

_AT_ONCE = 2
"""Trials at a time. Each imports large libraries: more of them would only fight for memory."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        machine: Python, system, processor, memory.
        gpus: what the NVIDIA driver tells.
        packages: package -> version, None where it is not installed.
        package_problems: packages in each other's way, one line each.
        backends: of everything that can run an engine.
        torch: of torch on the GPU, which the backends there rest on.
        export: of what g4seg-build-engines needs.
    """

    machine: Machine
    gpus: Gpus
    packages: dict[str, str | None]
    package_problems: list[str]
    backends: tuple[Outcome, ...]
    torch: Outcome
    export: Outcome

    @property
    def works(self) -> bool:
        """Whether at least one backend can run an engine here."""
        return any(outcome.works for outcome in self.backends)

    def to_mapping(self) -> dict[str, Any]:
        """The diagnosis as plain JSON."""
        return {
            "version": VERSION,
            "works": self.works,
            "machine": asdict(self.machine),
            "gpus": asdict(self.gpus),
            "torch_cuda": self.torch.facts.get("torch_cuda"),
            "packages": self.packages,
            "package_problems": self.package_problems,
            "backends": [_outcome(outcome) for outcome in self.backends],
            "torch": _outcome(self.torch),
            "build_engines": _outcome(self.export),
        }


def diagnose() -> Diagnosis:
    """Look at the machine and try every backend; takes some seconds."""
    trials = (*BACKENDS, TORCH, EXPORT)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        *backends, torch, export = pool.map(lambda trial: try_out(*trial), trials)
    return Diagnosis(
        machine=read_machine(),
        gpus=read_gpus(),
        packages=package_versions(),
        package_problems=package_problems(),
        backends=tuple(backends),
        torch=torch,
        export=export,
    )


def _outcome(outcome: Outcome) -> dict[str, Any]:
    fields = asdict(outcome)
    del fields["facts"]  # named one by one in the report
    return fields
