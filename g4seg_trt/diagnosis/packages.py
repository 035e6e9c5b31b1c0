"""Which packages are installed, in which versions, and which of them are in each other's way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata

PROJECT = "g4seg-trt"

DISTRIBUTIONS: Mapping[str, Sequence[str]] = {
    "numpy": ("numpy",),
    "pillow": ("pillow",),
    "tokenizers": ("tokenizers",),
    "onnxruntime": ("onnxruntime",),
    "onnxruntime-gpu": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "polygraphy": ("polygraphy",),
    "torch": ("torch",),
    "triton": ("triton", "triton-windows"),
    "diffusers": ("diffusers",),
    "transformers": ("transformers",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
}
"""What a report names, and the distributions that bring it: the first one installed counts."""

_RIVALS: Mapping[str, Sequence[str]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    "tensorrt": ("tensorrt-cu12", "tensorrt-cu13"),
}
"""Module -> distributions that all install it and overwrite one another's files."""


def installed_version(distribution: str) -> str | None:
    """The version of a distribution, or None where it is not installed."""
    try:
        # A half-deleted installation has metadata without a version.
        return metadata.version(distribution) or None
    except (metadata.PackageNotFoundError, KeyError):
        return None


def package_versions() -> dict[str, str | None]:
    """Package -> version, None where it is not installed; nothing is imported."""
    versions: dict[str, str | None] = {}
    for name, distributions in DISTRIBUTIONS.items():
        found = (installed_version(distribution) for distribution in distributions)
        versions[name] = next((version for version in found if version is not None), None)
    return versions


def package_problems() -> list[str]:
    """Distributions that overwrite one another, one line each that says what to do."""
    problems = []
    for module, rivals in _RIVALS.items():
        found = [name for name in rivals if installed_version(name) is not None]
        if len(found) > 1:
            problems.append(
                f"{' and '.join(found)} are both installed and overwrite each other's module {module}: "
                f"pip uninstall -y {' '.join(found)}, then install one of them"
            )
    return problems


def extra_requirements(extra: str) -> dict[str, str]:
    """Package -> lowest version ("" for any) of one of the project's extras; empty without the project's metadata."""
    try:
        lines = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)(?:>=([\w.]+))?; *extra == [\"'](\w+)[\"']", line.strip())
        if match is not None and match[3] == extra:
            found[match[1]] = match[2] or ""
    return found


def is_older(version: str, lowest: str) -> bool:
    """Whether a version lies below another, by their leading numbers: "2.4.1+cu121" is older than "2.9"."""
    return _numbers(version) < _numbers(lowest)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()  # 2.9.0 is 2.9
    return tuple(numbers)
