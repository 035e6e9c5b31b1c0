"""Says in one line which build-time dependency is missing, before anything heavy is imported."""

from __future__ import annotations

import importlib.util

from g4seg_engine.errors import MissingExtraError

_EXPORT_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "safetensors",
    "huggingface_hub",
)


def require_export_packages() -> None:
    """Check that everything `g4seg_export` imports is installed, without importing it.

    Raises:
        MissingExtraError: naming the first missing package and the pip command that installs it.
    """
    for package in _EXPORT_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.for_package(package, "export")
    # Parity runs every graph; either onnxruntime wheel provides this module.
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError.for_package("onnxruntime", "cpu")
