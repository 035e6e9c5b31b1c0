"""Whether what a backend compiled runs on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from g4seg_engine.records import ArtefactRecord, Manifest
from g4seg_engine.tensorrt_artefact import BACKEND as TENSORRT
from g4seg_engine.tensorrt_artefact import difference
from g4seg_trt.diagnosis.gpu import Gpus


@dataclass(frozen=True)
class Fit:
    """Whether an artefact fits.

    Attributes:
        reasons: why not, one line each; empty if it fits.
        notes: what differs without harm.
    """

    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons


def artefact_fit(manifest: Manifest, artefact: ArtefactRecord, gpus: Gpus, versions: Mapping[str, str | None]) -> Fit:
    """Compare the machine that an artefact was compiled for with this one; nothing is opened.

    Args:
        manifest: of the engine.
        artefact: one of its artefacts.
        gpus: what is here.
        versions: package -> installed version, None where it is not installed.
    """
    if artefact.backend != TENSORRT:
        return Fit((f"g4seg-trt has no backend {artefact.backend}",))
    version = versions.get(TENSORRT)
    reasons = [] if version is not None else ["TensorRT is not installed"]
    if not gpus.devices:
        return Fit((*reasons, gpus.problem))
    if version is None:
        return Fit(tuple(reasons))
    # One GPU that fits is enough: --device cuda:N chooses it.
    found = [difference(manifest, artefact, version, device) for device in gpus.devices]
    if None not in found:
        return Fit(tuple(dict.fromkeys(filter(None, found))))
    device = gpus.devices[found.index(None)]
    notes = [f"use --device cuda:{device.index}"] if device.index else []
    if artefact.driver and device.driver and artefact.driver != device.driver:
        notes.append(f"built with the NVIDIA driver {artefact.driver}, here is {device.driver}")
    return Fit((), tuple(notes))
