"""Whether what a backend compiled runs on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from g4seg_engine.cuda_device import CudaDevice
from g4seg_engine.errors import EngineMismatchError
from g4seg_engine.records import ArtefactRecord, Manifest
from g4seg_engine.tensorrt_artefact import BACKEND as TENSORRT
from g4seg_engine.tensorrt_artefact import check_artefact
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


def artefact_fit(
    directory: Path, manifest: Manifest, artefact: ArtefactRecord, gpus: Gpus, versions: Mapping[str, str | None]
) -> Fit:
    """Compare the machine that an artefact was compiled for with this one; nothing is opened.

    Args:
        directory: the engine directory.
        manifest: its manifest.
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
    found = [_difference(directory, manifest, artefact, version, device) for device in gpus.devices]
    if "" not in found:
        return Fit(tuple(dict.fromkeys(found)))
    device = gpus.devices[found.index("")]
    notes = [f"use --device cuda:{device.index}"] if device.index else []
    if artefact.driver and device.driver and artefact.driver != device.driver:
        notes.append(f"built with the NVIDIA driver {artefact.driver}, here is {device.driver}")
    return Fit((), tuple(notes))


def _difference(directory: Path, manifest: Manifest, artefact: ArtefactRecord, version: str, device: CudaDevice) -> str:
    """What the backend itself would refuse, or ""."""
    try:
        check_artefact(directory, manifest, artefact, version, device)
    except EngineMismatchError as error:
        # The directory and the build command are shown once for all artefacts.
        message = str(error).removeprefix(f"engine {directory}: {artefact.network} was ")
        return message.removesuffix(f"; build it again with: {manifest.build_command}")
    return ""
