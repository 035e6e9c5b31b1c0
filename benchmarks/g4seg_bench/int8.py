"""A trial of int8 on a CPU: ``python -m g4seg_bench.int8 --engine DIR``.

UNet and autoencoder are quantised with NNCF (weights and activations, and weights alone), compiled with OpenVINO, and
timed in turns with fp32 and bf16. Then scenes are refined with the int8 networks in the place of the fp32 ones. NNCF
is no dependency of this project: ``pip install nncf``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from g4seg_bench.int8_networks import (
    FP32,
    INT8,
    INT8_WEIGHTS,
    NETWORKS,
    Form,
    check_precision,
    fp32_runner,
    inputs_on_scenes,
    make_forms,
    measure_forms,
    opened,
    require_nncf,
    weights_mb,
)
from g4seg_bench.options import count
from g4seg_bench.record import write_record
from g4seg_bench.samples import (
    Given,
    Result,
    Scene,
    agreement,
    gains,
    mean_and_error,
    on_the_grid,
    refine,
    scenes,
    uncertain_pixels,
)
from g4seg_bench.tables import Table
from g4seg_engine.manifest import Manifest, load_engine
from g4seg_engine.runner import Runner, check_backend
from g4seg_engine.spec import NETWORKS as ALL_NETWORKS
from g4seg_trt.chain import HostChain
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.config import RefineConfig, resolve_config
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import Refiner, engine_directory

HELD_OUT = 4
"""Scenes on which outputs are compared."""

CALIBRATION_SEED = 77
"""Of the scenes that ranges are taken from; others are refined, unless --seed says the same."""


def measure(directory: Path, names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The record, without what `write_record` adds.

    Args:
        directory: the engine.
        names: the networks to try, from NETWORKS.
        options: "calibration", "runs", "count" and "seed" of the command.

    Raises:
        MissingExtraError: NNCF or OpenVINO is not installed.
        EngineError: the engine is not in fp32.
    """
    require_nncf()
    check_backend("openvino", "cpu")
    manifest = load_engine(directory)
    check_precision(manifest, names)
    config = on_the_grid(resolve_config(recommended=manifest.recommended))
    square = manifest.dims.square
    calibration = inputs_on_scenes(
        directory, manifest, list(scenes(options.calibration, CALIBRATION_SEED, square)), config, names
    )
    held_out = inputs_on_scenes(directory, manifest, list(scenes(HELD_OUT, options.seed, square)), config, names)
    networks: dict[str, Any] = {}
    quantised: dict[str, dict[str, Form]] = {}
    with TemporaryDirectory() as folder:
        for name in names:
            forms = make_forms(directory, manifest, name, calibration.pop(name), Path(folder))
            with opened(forms, manifest, name) as runners:
                networks[name] = {
                    "rest": forms[INT8].compute_precision,
                    **measure_forms(runners, held_out.pop(name), options.runs, name),
                    "file_mb": {label: weights_mb(form) for label, form in forms.items()},
                }
            quantised[name] = {label: forms[label] for label in (INT8, INT8_WEIGHTS)}
        among = list(scenes(options.count, options.seed, square)) if options.count else []
        masks = compare_masks(directory, manifest, config, quantised, among) if among else None
    return {
        "engine": manifest.model.id,
        "config": config.to_mapping(),
        "calibration": {"count": options.calibration, "seed": CALIBRATION_SEED},
        "count": options.count,
        "seed": options.seed,
        "networks": networks,
        "masks": masks,
    }


def compare_masks(
    directory: Path,
    manifest: Manifest,
    config: RefineConfig,
    quantised: Mapping[str, Mapping[str, Form]],
    among: Sequence[Scene],
) -> dict[str, Any]:
    """Scenes refined with int8 networks against the same with all networks in fp32 on OpenVINO.

    Args:
        directory: the engine.
        manifest: its manifest.
        config: the settings.
        quantised: the int8 forms by network.
        among: the scenes.

    Returns:
        What `samples.agreement` finds with all of the networks in int8, "per network" the same for each alone, and
        "int8 weights" for all of them with weights alone in int8; "gain_fp32" and "gain_fp32_error".
    """
    prompts = PromptEncoder.of_engine(directory, manifest)
    uncertain = [uncertain_pixels(scene, Given.of(scene, prompts, manifest.dims, config), config) for scene in among]
    with ExitStack() as stack:
        fp32 = {name: stack.enter_context(fp32_runner(directory, manifest, name)) for name in ALL_NETWORKS}

        def refined(description: str, others: Mapping[str, Runner]) -> list[Result]:
            runners = {**fp32, **others}
            with Refiner(HostChain(runners, manifest.dims), prompts, config=config, manifest=manifest) as refiner:
                return [refine(refiner, scene, config) for scene in tqdm(among, desc=description, file=sys.stderr)]

        reference = refined("fp32", {})

        def figures(description: str, label: str, names: Sequence[str]) -> dict[str, Any]:
            with ExitStack() as inner:
                others = {
                    name: inner.enter_context(opened({label: quantised[name][label]}, manifest, name))[label]
                    for name in names
                }
                return _rounded(agreement(refined(description, others), reference, among, uncertain))

        gain, error = mean_and_error(gains(reference, among))
        names = list(quantised)
        alone = {name: figures(f"{name} in int8", INT8, [name]) for name in names}
        return {
            **(alone[names[0]] if len(names) == 1 else figures("all in int8", INT8, names)),
            **_rounded({"gain_fp32": gain, "gain_fp32_error": error}),
            "uncertain_percent": round(100.0 * float(np.mean(uncertain)), 3),
            "per network": alone,
            INT8_WEIGHTS: figures("weights in int8", INT8_WEIGHTS, names),
        }


def networks_table(record: Mapping[str, Any]) -> Table:
    """A row for each form of each network."""
    rows = []
    for name, one in record["networks"].items():
        for label, seconds in one["seconds"].items():
            error = one["relative_error"].get(label)
            rows.append(
                (
                    name,
                    f"{label} (rest {one['rest']})" if label in (INT8, INT8_WEIGHTS) else label,
                    f"{seconds:.4g}",
                    f"{one['seconds'][FP32] / seconds:.2f}",
                    "" if error is None else f"{error:.1e}",
                    f"{one['file_mb'][label]:.1f}",
                )
            )
    head = ("network", "form", "median, s", "times as fast as fp32", "relative error", "file, MB")
    return Table("Networks", head, tuple(rows))


def masks_table(masks: Mapping[str, Any]) -> Table:
    """A row for each choice of int8 networks."""
    chosen = {f"{name} in int8": one for name, one in masks["per network"].items()}
    if len(chosen) > 1:
        chosen["all of them in int8"] = masks
    chosen["all of them, weights in int8"] = masks[INT8_WEIGHTS]
    rows = [("all in fp32", "", "", f"{masks['gain_fp32']:+.3f} ± {masks['gain_fp32_error']:.3f}", "", "")]
    rows += [
        (
            label,
            f"{one['labels_percent']:.3f}",
            "" if one["uncertain_labels_percent"] is None else f"{one['uncertain_labels_percent']:.2f}",
            f"{one['gain']:+.3f} ± {one['gain_error']:.3f}",
            f"{one['gain_difference']:+.3f} ± {one['gain_difference_error']:.3f}",
            f"{one['matches_percent']:.2f}",
        )
        for label, one in chosen.items()
    ]
    head = ("networks", "same label, %", "of uncertain pixels, %", "gain", "gain - fp32's", "same match, %")
    return Table("Masks", head, tuple(rows))


def tell(record: Mapping[str, Any]) -> None:
    """Print the record."""
    print(f"{record['engine']}, calibrated on {record['calibration']['count']} scenes\n")
    print(networks_table(record).markdown())
    for name, one in record["networks"].items():
        if one["unsafe"] is not None:
            print(f"\n{name}: seconds are unsafe to compare: {one['unsafe']}")
    if record["masks"] is not None:
        print(f"\n{record['count']} scenes\n\n{masks_table(record['masks']).markdown()}")
        print("\nGains are points of mean IoU with two standard errors.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.int8", "Speed and masks of int8 networks on a CPU.")
    add = parser.add_argument
    add("--engine", required=True, metavar="DIR|tiny", help="engine directory in fp32, or tiny")
    add("--networks", type=_networks, default=NETWORKS, help=f"some of {','.join(NETWORKS)} (default: all)")
    add("--calibration", type=count, default=8, help="scenes that ranges are taken from (default: %(default)s)")
    add("--runs", type=count, default=5, help="runs of each form of a network (default: %(default)s)")
    add("--count", type=_count_or_none, default=300, help="scenes to refine, 0 for none (default: %(default)s)")
    add("--seed", type=count, default=2026, help="of the scenes, 1 or more (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _execute(_parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    record = measure(engine_directory(options.engine), options.networks, options)
    tell(record)
    if options.json is not None:
        write_record(options.json, "int8", record)
    return DONE


def _networks(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in NETWORKS:
            raise argparse.ArgumentTypeError(f"{name!r}, allowed: {', '.join(NETWORKS)}")
    return names


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else count(text)


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else round(value, 5) for name, value in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
