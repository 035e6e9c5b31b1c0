"""Accuracy beside speed: ``python -m g4seg_bench.accuracy``, each backend and precision against eager PyTorch float32.

All refine the same held-out synthetic scenes with the same inputs. Labels are compared on the model's square, which
is the scenes' own size with the tiny engine; the scenes are enlarged to it for others. A backend is accurate enough
when the labels of 99.9 % of all pixels are eager PyTorch's and the mean gain in IoU differs by at most 0.1 points.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from g4seg_bench.baseline import baseline_source
from g4seg_bench.choices import EAGER, BaselineChoice, EngineChoice, engine_choice
from g4seg_bench.options import count
from g4seg_bench.processes import wait_without_spinning
from g4seg_bench.record import write_record
from g4seg_bench.samples import (
    Bools,
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
from g4seg_engine.processor import cpu_precisions
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.config import RefineConfig, resolve_config
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import Refiner, engine_directory

LABELS_PERCENT = 99.9
GAIN_POINTS = 0.1

_DIGITS = 5


def available_sides() -> tuple[EngineChoice, ...]:
    """What this machine can do on its CPU."""
    sides = [EngineChoice("onnxruntime")] if find_spec("onnxruntime") is not None else []
    if find_spec("openvino") is not None:
        sides += [EngineChoice("openvino", precision) for precision in cpu_precisions()]
    return tuple(sides)


def is_accurate(figures: Mapping[str, Any]) -> bool:
    """The verdict on what `samples.agreement` found."""
    return bool(figures["labels_percent"] >= LABELS_PERCENT and abs(figures["gain_difference"]) <= GAIN_POINTS)


def with_eager(
    among: Sequence[Scene],
    directory: Path,
    manifest: Manifest,
    config: RefineConfig,
    model: str | None = None,
    vae: str | None = None,
) -> tuple[list[Result], list[Bools]]:
    """The scenes refined by eager PyTorch in float32 on a CPU, and where each is uncertain.

    Args:
        among: the scenes.
        directory: the engine: its tokenizer.
        manifest: the engine's.
        config: the settings.
        model: that the engine was made from; None for what the manifest says.
        vae: likewise, the autoencoder in the place of the model's own.

    Raises:
        MissingExtraError: if PyTorch or diffusers is not installed.
        G4SegError: if the model cannot be found or is another one.
    """
    source = baseline_source(BaselineChoice(EAGER), manifest, model, vae)
    from g4seg_export.eager import EagerPipeline, EagerSettings

    pipeline = EagerPipeline(source, "baseline", dense_mode=manifest.image_encoder.dense_mode)
    prompts = PromptEncoder.of_engine(directory, manifest)
    settings = EagerSettings(**{field.name: getattr(config, field.name) for field in fields(EagerSettings)})
    results, uncertain = [], []
    for scene in tqdm(among, desc=EAGER, file=sys.stderr):
        given = Given.of(scene, prompts, manifest.dims, config)
        one, prompt = given.one, given.one.prompt
        found = pipeline.refine(
            given.pixels, one.square, prompt.input_ids, prompt.token_mask, one.mask, given.noise, settings
        )
        # The square is the image's own size; where nothing may change, the mask is the given one, not the softened.
        where = uncertain_pixels(scene, given, config)
        results.append(Result(np.where(where, found.probability, one.given), found.indices))
        uncertain.append(where)
    return results, uncertain


def with_engine(
    among: Sequence[Scene], engine: str | Path, side: EngineChoice, config: RefineConfig
) -> tuple[str, list[Result]]:
    """In which precision one side computes, and the scenes refined by it."""
    chosen = {"backend": side.backend, "compute_precision": side.compute_precision}
    with Refiner.from_engine(engine, **chosen) as refiner:  # type: ignore[arg-type]
        results = [refine(refiner, scene, config) for scene in tqdm(among, desc=side.name, file=sys.stderr)]
        return refiner.execution.compute_precision, results


def measure(
    engine: str | Path,
    sides: Sequence[EngineChoice],
    number: int,
    seed: int,
    model: str | None = None,
    vae: str | None = None,
) -> dict[str, Any]:
    """The record, without what `write_record` adds; see the arguments of the command.

    Raises:
        G4SegError: if a side cannot run here, or eager PyTorch cannot.
    """
    directory = engine_directory(engine)
    manifest = load_engine(directory)
    config = on_the_grid(resolve_config(recommended=manifest.recommended))
    among = list(scenes(number, seed, manifest.dims.square))
    reference, uncertain = with_eager(among, directory, manifest, config, model, vae)
    gain, gain_error = mean_and_error(gains(reference, among))
    record: dict[str, Any] = {
        "engine": manifest.model.id,
        "count": number,
        "seed": seed,
        "config": config.to_mapping(),
        "limits": {"labels_percent": LABELS_PERCENT, "gain_difference": GAIN_POINTS},
        "uncertain_percent": round(100.0 * float(np.mean(uncertain)), _DIGITS),
        "eager": _rounded({"gain": gain, "gain_error": gain_error}),
        "sides": {},
    }
    for side in sides:
        precision, results = with_engine(among, engine, side, config)
        figures = agreement(results, reference, among, uncertain)
        record["sides"][side.name] = {
            "backend": side.backend,
            "compute_precision": precision,
            **_rounded(figures),
            "accurate": is_accurate(figures),
        }
    return record


def table(record: Mapping[str, Any]) -> Table:
    """A row for each side, eager PyTorch first."""
    head = ("side", "same label, %", "of uncertain pixels, %", "gain", "gain - eager's", "largest difference")
    eager = record["eager"]
    rows = [("eager fp32", "", "", _with_error(eager, "gain"), "", "", "", "")]
    for name, one in record["sides"].items():
        uncertain = one["uncertain_labels_percent"]
        rows.append(
            (
                name if name.endswith(one["compute_precision"]) else f"{name} ({one['compute_precision']})",
                f"{one['labels_percent']:.4f}",
                "" if uncertain is None else f"{uncertain:.3f}",
                _with_error(one, "gain"),
                _with_error(one, "gain_difference"),
                f"{one['probability_max']:.1e}",
                f"{one['matches_percent']:.3f}",
                "yes" if one["accurate"] else "no",
            )
        )
    return Table("Accuracy", (*head, "same match, %", "accurate enough"), tuple(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.accuracy", "Labels and gains of each backend against eager PyTorch.")
    add = parser.add_argument
    add("--engine", default="tiny", metavar="DIR|tiny", help="engine directory, or tiny (default: %(default)s)")
    add("--count", type=count, default=300, help="scenes (default: %(default)s)")
    add("--seed", type=count, default=2026, help="of the scenes, 1 or more (default: %(default)s)")
    add(
        "--sides",
        type=_sides,
        metavar="BACKEND[:PRECISION],...",
        help="what to compare, such as onnxruntime,openvino:bf16 (default: all that this machine's CPU can do)",
    )
    add("--model", help="the model that the engine was made from (default: what its manifest says)")
    add("--vae", help="the autoencoder in the place of the model's own (default: what the manifest says)")
    add("--json", type=Path, metavar="FILE", help="write the record to this file")
    return parser


def _execute(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    sides = options.sides or available_sides()
    if not sides:
        parser.error("neither onnxruntime nor openvino is installed: name --sides")
    wait_without_spinning()
    record = measure(options.engine, sides, options.count, options.seed, options.model, options.vae)
    print(
        f"{record['engine']}, {record['count']} scenes, {record['uncertain_percent']:.1f} % of the pixels uncertain\n"
    )
    print(table(record).markdown())
    print("\nGains are points of mean IoU with two standard errors.")
    if options.json is not None:
        write_record(options.json, "accuracy", record)
    return DONE


def _sides(text: str) -> tuple[EngineChoice, ...]:
    return tuple(dict.fromkeys(engine_choice(part) for part in text.split(",")))


def _rounded(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """Percents and points with five digits behind the point; the largest difference may be as small as it likes."""
    return {
        name: value if value is None else float(f"{value:.3g}") if name == "probability_max" else round(value, _DIGITS)
        for name, value in figures.items()
    }


def _with_error(figures: Mapping[str, Any], name: str) -> str:
    return f"{figures[name]:+.3f} ± {figures[f'{name}_error']:.3f}"


if __name__ == "__main__":
    sys.exit(main())
