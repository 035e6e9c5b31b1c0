"""Refine coarse segmentation masks: an image, a coarse mask and a class name in, a refined mask out.

    from g4seg_trt import Refiner, load_image

    with Refiner.from_engine("engines/sd21") as refiner:
        refiner.set_image(load_image("cat.jpg"))
        refined = refiner.refine({"cat": probability})

The names below are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from g4seg_engine.version import VERSION as __version__

if TYPE_CHECKING:
    from g4seg_trt.config import PRESETS, RefineConfig, resolve_config
    from g4seg_trt.dataset.source import DatasetSource
    from g4seg_trt.errors import (
        ClassNameError,
        ConfigError,
        G4SegError,
        ImageError,
        InputError,
        MaskError,
        OutputError,
    )
    from g4seg_trt.geometry import load_image
    from g4seg_trt.refiner import Refinement, Refiner
    from g4seg_trt.update import BackgroundRule, label_map

__all__ = [
    "PRESETS",
    "BackgroundRule",
    "ClassNameError",
    "ConfigError",
    "DatasetSource",
    "G4SegError",
    "ImageError",
    "InputError",
    "MaskError",
    "OutputError",
    "RefineConfig",
    "Refinement",
    "Refiner",
    "__version__",
    "label_map",
    "load_image",
    "resolve_config",
]

_HOMES = {
    "PRESETS": "config",
    "BackgroundRule": "update",
    "ClassNameError": "errors",
    "ConfigError": "errors",
    "DatasetSource": "dataset.source",
    "G4SegError": "errors",
    "ImageError": "errors",
    "InputError": "errors",
    "MaskError": "errors",
    "OutputError": "errors",
    "RefineConfig": "config",
    "Refinement": "refiner",
    "Refiner": "refiner",
    "label_map": "update",
    "load_image": "geometry",
    "resolve_config": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
