"""What a report says about the run itself: engine, settings, versions, seconds."""

from __future__ import annotations

import argparse
import hashlib
import platform
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from typing import Any, TypeVar

from g4seg_engine.version import VERSION
from g4seg_trt.cli.common import say
from g4seg_trt.cli.options import given_settings
from g4seg_trt.cluster.refiner import RayRefiner
from g4seg_trt.config import RefineConfig, resolve_config
from g4seg_trt.dataset.settings import OWN_BACKGROUND
from g4seg_trt.errors import G4SegError
from g4seg_trt.refiner import Refiner, engine_directory

_PACKAGES = ("numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "torch")

Opened = TypeVar("Opened", Refiner, RayRefiner)


def open_refiner(arguments: argparse.Namespace) -> tuple[Refiner, RefineConfig]:
    """Open the engine of the command line and merge the settings.

    Raises:
        G4SegError: as `Refiner.from_engine` and `resolve_config`.
    """
    return _opened(arguments, partial(Refiner.from_engine, arguments.engine, **_engine_options(arguments)))


def open_pool(arguments: argparse.Namespace) -> tuple[RayRefiner, RefineConfig]:
    """`open_refiner` for --ray.

    Raises:
        G4SegError: as `RayRefiner.from_engine` and `resolve_config`.
    """
    pool = {"address": arguments.ray, "workers": arguments.workers}
    return _opened(arguments, partial(RayRefiner.from_engine, arguments.engine, **pool, **_engine_options(arguments)))


def _engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "backend": arguments.backend,
        "device": arguments.device,
        "batch_size": arguments.batch_size,
        "threads": arguments.threads,
        "compute_precision": arguments.compute_precision,
        "low_memory": arguments.low_memory,
        "cache": not arguments.no_cache,
        "verify": arguments.verify,
    }


def _opened(arguments: argparse.Namespace, opening: Callable[[], Opened]) -> tuple[Opened, RefineConfig]:
    settings = given_settings(arguments)
    resolve_config(settings, preset=arguments.preset)  # a wrong value is said before the engine takes its time
    refiner = opening()
    try:
        return refiner, resolve_config(settings, preset=arguments.preset, recommended=refiner.manifest.recommended)
    except G4SegError:
        refiner.close()
        raise


def say_note(refiner: Refiner | RayRefiner) -> None:
    """What was chosen for the user, and the engine's own remark, if it has one: a line each on stderr."""
    if refiner.execution.reason:
        say(f"backend: {refiner.execution} ({refiner.execution.reason})")
    if refiner.manifest.note:
        say(f"note: {refiner.manifest.note}")


def run_facts(arguments: argparse.Namespace, refiner: Refiner | RayRefiner, config: RefineConfig) -> dict[str, Any]:
    """The part of the report that is the same for one image and a folder."""
    manifest = refiner.manifest
    manifest_file = engine_directory(arguments.engine) / "manifest.json"
    return {
        **plain_facts(arguments),
        "engine": {
            "directory": arguments.engine,
            "model": manifest.model.id,
            "revision": manifest.model.revision,
            "manifest_sha256": hashlib.sha256(manifest_file.read_bytes()).hexdigest(),
        },
        "backend": refiner.execution.backend,
        "device": refiner.execution.device,
        "compute_precision": refiner.execution.compute_precision,
        "batch_size": refiner.batch_size,
        "threads": arguments.threads,
        "config": config.to_mapping(),
    }


def plain_facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same without an engine."""
    return {
        "version": VERSION,
        "engine": None,
        "config": None,
        "dataset": arguments.dataset,
        "class_table": arguments.class_table,
        "background": arguments.background or OWN_BACKGROUND,
        "post": arguments.post,
        "versions": _versions(),
    }


def folder_inputs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Which images and masks a report of a folder is about."""
    names = ("images", "masks", "ground_truth", "class_name", "classes", "list", "limit")
    asked = {name: getattr(arguments, name) for name in names}
    return {**asked, "shard": None if arguments.shard is None else "{}/{}".format(*arguments.shard)}


def seconds(timings: Mapping[str, float]) -> dict[str, float]:
    """Timings rounded to microseconds."""
    return {name: round(value, 6) for name, value in timings.items()}


def stages(timings: Mapping[str, float]) -> str:
    """Timings for people: "unet 0.12, update 0.01"."""
    return ", ".join(f"{name} {value:.2f}" for name, value in timings.items())


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
