"""Options that several commands have: their declaration, and what they stand for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from g4seg_trt.class_table import ClassTable
from g4seg_trt.config import PRESETS, RESOLUTIONS

BACKENDS = ("onnxruntime", "openvino", "tensorrt")
"""Backends that an engine can run on."""

AUTO = "auto"
"""The fastest of them that is installed and accurate enough."""

SETTINGS = ("timestep", "beta", "certainty_filter", "emi_self", "emi_cross", "seed", "soften", "resolution", "radius")
"""The fields of RefineConfig that have an option of the same name."""

_ENGINE = (
    *("engine", "backend", "device", "batch_size", "threads"),
    *("compute_precision", "low_memory", "no_cache", "verify"),
)


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """Declare --preset and an option for each of SETTINGS; those not given stay out of the namespace."""
    group = parser.add_argument_group(
        "refine settings",
        "Strongest first: these options, --preset, what the engine recommends, the preset tsss.",
    )
    add = group.add_argument
    add(
        "--preset",
        choices=tuple(PRESETS),
        help="tsss: beta 0.8, text-supervised masks; wsss: beta 0.9, CAM-like masks",
    )
    absent = argparse.SUPPRESS
    add("--timestep", type=int, default=absent, metavar="T", help="noise level of the generation, 0 to 999")
    add(
        "--beta",
        type=float,
        default=absent,
        metavar="B",
        help="share of the given mask in the update, 0 to 1",
    )
    add(
        "--certainty-filter",
        type=certainty_filter,
        default=absent,
        metavar="LOW,HIGH|off",
        help="update only probabilities from LOW to HIGH",
    )
    add(
        "--emi-self",
        type=float,
        default=absent,
        metavar="A",
        help="mask injection into self-attention, 0 is off",
    )
    add(
        "--emi-cross",
        type=float,
        default=absent,
        metavar="A",
        help="mask injection into cross-attention, 0 is off",
    )
    add("--seed", type=int, default=absent, metavar="N", help="seed of the noise")
    add(
        "--soften",
        type=soften,
        default=absent,
        metavar="SIGMA|auto",
        help="blur of the mask, as a share of the longer side; auto: 0.02 if it has only 0 and one other value",
    )
    add(
        "--resolution",
        choices=RESOLUTIONS,
        default=absent,
        help="search correspondences on the feature grid or between pixels",
    )
    add(
        "--radius",
        type=float,
        default=absent,
        metavar="SHARE",
        help="how far away a match may be along either axis, as a share of the image's side, above 0; 1 is anywhere",
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Declare the engine and how it runs."""
    group = parser.add_argument_group("engine")
    add = group.add_argument
    add("--engine", metavar="DIR|tiny", help="an engine directory, or the embedded engine tiny")
    add(
        "--backend",
        choices=(AUTO, *BACKENDS),
        default="onnxruntime",
        help="what runs the networks; auto takes the fastest that is installed and accurate enough, and says why "
        "(default: %(default)s)",
    )
    add("--device", metavar="cpu|cuda", help="where they run (default: cpu with onnxruntime, cuda with tensorrt)")
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="masks in one run of the networks (default: 1 on a CPU, the largest that was built on a GPU)",
    )
    add("--threads", type=int, default=None, metavar="N", help="CPU threads (default: all)")
    add(
        "--compute-precision",
        choices=("fp32", "bf16"),
        help="what openvino computes in (default: bf16 if the processor has instructions for it, else fp32)",
    )
    add("--low-memory", action="store_true", help="keep one network in memory at a time (on a CPU): slower, smaller")
    add(
        "--no-cache",
        action="store_true",
        help="do not keep what makes the next start shorter in the engine directory, nor use what is there",
    )
    add("--verify", action="store_true", help="check every hash of the engine, also of large files")


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that stand on the command line, by their names in RefineConfig."""
    return {name: getattr(arguments, name) for name in SETTINGS if hasattr(arguments, name)}


def given_for_refinement(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """The options on the command line that say how to refine: those of `add_engine_options`, and of the settings."""
    names = [name for name in _ENGINE if getattr(arguments, name) != parser.get_default(name)]
    names += ["preset"] if arguments.preset is not None else []
    return [f"--{name.replace('_', '-')}" for name in (*names, *given_settings(arguments))]


def class_table(arguments: argparse.Namespace) -> ClassTable | None:
    """The table of --class-table or --dataset, if either is given; raises InputError, ClassNameError."""
    if arguments.class_table is not None:
        return ClassTable.read(Path(arguments.class_table))
    return None if arguments.dataset is None else ClassTable.of_dataset(arguments.dataset)


def certainty_filter(text: str) -> tuple[float, float] | None:
    """Parse "LOW,HIGH" or "off"; argparse reports what does not fit."""
    if text == "off":
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}, expected two numbers such as 0.2,0.6, or off") from error
    return low, high


def soften(text: str) -> float | None:
    """Parse a share of the longer side or "auto"; argparse reports what does not fit."""
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number such as 0.02, or auto") from error


def shard(text: str) -> tuple[int, int]:
    """Parse "I/N", I from 1 to N; argparse reports what does not fit."""
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}, expected two numbers such as 1/4") from error
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError(f"{text!r}, the first number goes from 1 to the second")
    return index, count
