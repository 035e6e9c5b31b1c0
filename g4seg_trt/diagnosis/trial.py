"""One trial of a backend, run in a process of its own: it refines a mask with the embedded engine.

Prints one line of JSON: works, reason, remedy, facts. What is not foreseen here ends the process with a traceback,
and `trials` makes a fact of that too.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from g4seg_engine.errors import first_line
from g4seg_trt.diagnosis.gpu import read_gpus
from g4seg_trt.diagnosis.packages import extra_requirements, installed_version, is_older, package_problems
from g4seg_trt.errors import G4SegError

CPU_EXTRA, OPENVINO_EXTRA, GPU_EXTRA, TENSORRT_EXTRA, EXPORT_EXTRA = (
    f"pip install 'g4seg-trt[{extra}]'" for extra in ("cpu", "openvino", "gpu", "tensorrt", "export")
)

_SIDE = 64
"""Of the sample image, in pixels."""

_EXPORTED = {
    "diffusers": ("AutoencoderKL", "UNet2DConditionModel"),
    "transformers": ("CLIPTextModel", "CLIPVisionModelWithProjection"),
}


class UnusableError(G4SegError):
    """A backend that cannot be used: why (the message), and what to do about it (`remedy`), if that does not say it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def main(backend: str, device: str) -> None:
    """Try a backend on a device, see `trials`, and print what came of it."""
    facts: dict[str, Any] = {}
    reason = remedy = ""
    try:
        _run(backend, device, facts)
    except UnusableError as error:
        reason, remedy = str(error), error.remedy
    except G4SegError as error:
        reason = str(error)  # it says what to do
    except (ImportError, OSError) as error:
        reason, remedy = first_line(error), "reinstall it: pip install --force-reinstall g4seg-trt"
    print()
    print(json.dumps({"works": not reason, "reason": reason, "remedy": remedy, "facts": facts}))


def require(package: str, remedy: str) -> Any:
    """Import a package.

    Raises:
        UnusableError: it is missing, with the remedy given, or its import fails.
    """
    try:
        return import_module(package)
    except (ImportError, OSError) as error:
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if missing == package:
            raise UnusableError(f"{package} is not installed", remedy) from error
        if missing and missing.split(".")[0] != package:
            mending = f"pip install {missing.split('.')[0]}"
        else:
            mending = (package_problems() or [f"install it again: pip uninstall -y {package}, then {remedy}"])[0]
        raise UnusableError(f"{package} cannot be imported: {first_line(error)}", mending) from error


def require_gpu() -> None:
    """Check that the driver offers a GPU.

    Raises:
        UnusableError: it does not.
    """
    gpus = read_gpus()
    if gpus.problem:
        raise UnusableError(gpus.problem, gpus.remedy)


def refine_sample(backend: str, device: str, engine: str | Path = "tiny") -> None:
    """Refine a soft disc on a gradient.

    Args:
        backend: to run on.
        device: likewise.
        engine: the embedded engine, or a copy with plans.

    Raises:
        UnusableError: what comes out are no probabilities.
        G4SegError: as Refiner.from_engine and Refiner.refine.
    """
    import numpy as np

    from g4seg_trt.refiner import Refiner

    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    image = np.stack([4 * rows, 4 * columns, 2 * (rows + columns)], axis=-1).astype(np.uint8)
    disc = 1 / (1 + np.exp((np.hypot(rows - _SIDE / 2, columns - _SIDE / 2) - _SIDE / 4) / 4))
    with Refiner.from_engine(engine, backend=backend, device=device) as refiner:
        refiner.set_image(image)
        refined = refiner.refine({"disc": disc}).probabilities["disc"]
    if not (refined.shape == disc.shape and np.isfinite(refined).all() and refined.min() >= 0 and refined.max() <= 1):
        raise UnusableError("it computes nonsense on the embedded engine", "report it together with this text")


def _run(backend: str, device: str, facts: dict[str, Any]) -> None:
    if backend == "export":
        _try_export()
        return
    if device == "cpu":
        require(backend, OPENVINO_EXTRA if backend == "openvino" else CPU_EXTRA)
        refine_sample(backend, device)
        return
    if backend != "torch":
        # What is missing first is said first: without a GPU no package helps.
        require_gpu()
        require(backend, TENSORRT_EXTRA if backend == "tensorrt" else GPU_EXTRA)
    require("torch", TENSORRT_EXTRA if backend == "tensorrt" else GPU_EXTRA)
    # Imported here: it needs torch, which the rest of the product does not.
    from g4seg_trt.diagnosis import gpu_trial

    gpu_trial.run(backend, facts)


def _try_export() -> None:
    requirements = extra_requirements("export")
    if not requirements:
        raise UnusableError("g4seg-trt is not installed, so what its build side needs is not known", EXPORT_EXTRA)
    missing = [package for package in requirements if installed_version(package) is None]
    if missing:
        raise UnusableError(f"not installed: {', '.join(missing)}", EXPORT_EXTRA)
    for package, lowest in requirements.items():
        version = installed_version(package)
        if version is not None and lowest and is_older(version, lowest):
            raise UnusableError(f"{package} {version} is too old, {lowest} or newer is needed", EXPORT_EXTRA)
    require("onnxruntime", CPU_EXTRA)  # every graph is run after its export
    for package in requirements:
        module = require(package, EXPORT_EXTRA)
        for name in _EXPORTED.get(package, ()):
            getattr(module, name)
