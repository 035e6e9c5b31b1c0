"""TensorRT plans in an engine directory: their names, their record, and whether they fit this machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from g4seg_engine.errors import EngineError, EngineMismatchError
from g4seg_engine.records import ArtefactRecord, Manifest

if TYPE_CHECKING:
    from g4seg_engine.cuda_device import CudaDevice

logger = logging.getLogger(__name__)

BACKEND = "tensorrt"
FOLDER = "tensorrt"
TIMING_CACHE = f"{FOLDER}/timing.cache"

ONNX_FLAG = "onnx"
"""The build flag that holds the sha256 of every file that a network's plans were built from."""


def plan_file(network: str, batch: int) -> str:
    """The plan of a network for one batch size, in the engine directory."""
    return f"{FOLDER}/{network}.b{batch}.plan"


def layers_file(network: str, batch: int) -> str:
    """What TensorRT's engine inspector says about that plan."""
    return f"{FOLDER}/{network}.b{batch}.json"


def onnx_hashes(manifest: Manifest, network: str) -> dict[str, str]:
    """sha256 of the network's graph and external data, by file."""
    return {record.file: record.sha256 for record in manifest.networks[network].files}


def find_artefact(directory: Path, manifest: Manifest, network: str) -> ArtefactRecord:
    """The record of a network's plans.

    Raises:
        EngineError: the engine has none.
    """
    for artefact in manifest.artefacts:
        if artefact.backend == BACKEND and artefact.network == network:
            return artefact
    command = manifest.build_command
    if "--backend" not in command:
        command += f" --backend {BACKEND}"
    raise EngineError(f"engine {directory}: {network} was not built for TensorRT; build it with: {command}")


def difference(manifest: Manifest, artefact: ArtefactRecord, version: str, device: CudaDevice) -> str | None:
    """The first thing in which plans do not fit: "built for ...", or None where they fit; see `check_artefact`."""
    compared = (
        ("TensorRT", artefact.backend_version, version, "is installed"),
        ("compute capability", artefact.compute_capability, device.compute_capability, "is this GPU's"),
        ("the GPU", artefact.device, device.name, "is here"),
    )
    for what, built, found, verb in compared:
        if built != found:
            return f"built for {what} {built}, and {found} {verb}"
    if artefact.build_flags.get(ONNX_FLAG) != onnx_hashes(manifest, artefact.network):
        return "built from another ONNX graph than the one that is there"
    return None


def check_artefact(
    directory: Path, manifest: Manifest, artefact: ArtefactRecord, version: str, device: CudaDevice
) -> None:
    """Check that plans fit the installed TensorRT, the GPU and the engine's own graphs. Another driver is only noted.

    Args:
        directory: the engine directory, for messages.
        manifest: of the engine.
        artefact: the plans of one network.
        version: of the installed TensorRT.
        device: the GPU to run on.

    Raises:
        EngineMismatchError: the first thing that differs, with the command that builds the plans again.
    """
    found = difference(manifest, artefact, version, device)
    if found is not None:
        raise EngineMismatchError(
            f"engine {directory}: {artefact.network} was {found}; build it again with: {manifest.build_command}"
        )
    if artefact.driver and device.driver and artefact.driver != device.driver:
        logger.info(
            "%s was built with the NVIDIA driver %s; this is %s", artefact.network, artefact.driver, device.driver
        )
