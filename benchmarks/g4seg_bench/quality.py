"""Refinement quality of the embedded engine on held-out synthetic scenes: ``python -m g4seg_bench.quality``.

Prints mean IoU by kind and severity for the coarse masks, the method with its parts switched off and on, and an
appearance-only baseline; then the gain over the timestep. ``--seed`` takes any number but 0, which made the training
scenes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from g4seg_bench.appearance import refine_by_colour
from g4seg_bench.record import write_record
from g4seg_engine.manifest import load_engine
from g4seg_engine.runner import Runner, open_runner
from g4seg_export.tiny.scenes import KINDS, Sample, make_samples
from g4seg_trt.config import RefineConfig
from g4seg_trt.correspondence import nearest_positions
from g4seg_trt.geometry import pool_to_grid, resize_nearest, to_square
from g4seg_trt.refiner import Refiner, engine_directory
from g4seg_trt.update import apply_residual, mix

Floats = NDArray[np.float32]
Method = Callable[[Sample], Floats]

TIMESTEPS = (100, 200, 300, 400, 500, 600, 700)
SEVERITIES = ("light", "medium", "heavy")


def iou(probability: Floats, truth: NDArray[np.bool_]) -> float:
    """Intersection over union in percent of a probability map cut at 0.5, float32 [H,W], and a truth bool [H,W]."""
    mask = probability >= 0.5
    union = np.count_nonzero(mask | truth)
    return 100.0 * np.count_nonzero(mask & truth) / union if union else 100.0


@dataclass(frozen=True)
class Score:
    """IoU in percent before and after, by sample, with each sample's kind and severity."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    kinds: NDArray[np.str_]
    severities: NDArray[np.str_]

    def part(self, kind: str | None = None, severity: str | None = None) -> Score:
        chosen = np.ones(len(self.before), bool)
        if kind is not None:
            chosen &= self.kinds == kind
        if severity is not None:
            chosen &= self.severities == severity
        return Score(self.before[chosen], self.after[chosen], self.kinds[chosen], self.severities[chosen])

    def summary(self) -> dict[str, float]:
        gain = self.after - self.before
        return {
            "count": len(gain),
            "before": round(float(self.before.mean()), 2),
            "after": round(float(self.after.mean()), 2),
            "gain": round(float(gain.mean()), 2),
            # Two standard errors of the mean gain: what is smaller than this is noise.
            "gain_error": round(float(2 * gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0, 2),
            "worse_percent": round(float(100 * (gain < -0.05).mean()), 1),
        }


def score(samples: Sequence[Sample], method: Method, name: str) -> Score:
    before, after = [], []
    for sample in tqdm(samples, desc=name, leave=False):
        truth = sample.scene.masks[sample.scene.target]
        before.append(iou(sample.coarse, truth))
        after.append(iou(method(sample), truth))
    return Score(
        np.array(before),
        np.array(after),
        np.array([s.kind for s in samples]),
        np.array([s.severity for s in samples]),
    )


def refine_with(refiner: Refiner, config: RefineConfig) -> Method:
    def method(sample: Sample) -> Floats:
        refiner.set_image(sample.scene.image)
        name = sample.scene.target
        return refiner.refine({name: sample.coarse}, config=config).probabilities[name]

    return method


def refine_on_latents(refiner: Refiner, encoder: Runner, config: RefineConfig) -> Method:
    """The injection without the image encoder: neighbours are sought among the latents themselves."""

    def method(sample: Sample) -> Floats:
        refiner.set_image(sample.scene.image)
        name = sample.scene.target
        generated = refiner.refine({name: sample.coarse}, config=config, keep=("denoised",)).denoised[name]
        square = to_square(sample.scene.image, refiner.manifest.dims.square)
        original = encoder.run({"image": square[None]})["latent"][0]
        indices, _ = nearest_positions(generated, original)
        residual = mix(pool_to_grid(sample.coarse, original.shape[1]), indices, config.beta)
        return apply_residual(sample.coarse, sample.coarse, residual, config.certainty_filter)

    return method


def by_colour(sample: Sample) -> Floats:
    return refine_by_colour(sample.scene.image, sample.coarse)


def unchanged(sample: Sample) -> Floats:
    return sample.coarse


def ablation(refiner: Refiner, encoder: Runner, config: RefineConfig) -> dict[str, Method]:
    """The paper's Table III: nothing, EMI, SCA, both, both with the certainty filter; then other ways to do it."""
    plain = replace(config, emi_self=0.0, emi_cross=0.0)
    everywhere = replace(config, certainty_filter=None)
    return {
        "nothing": unchanged,
        "EMI": refine_on_latents(refiner, encoder, everywhere),
        "SCA": refine_with(refiner, replace(plain, certainty_filter=None)),
        "SCA + CF": refine_with(refiner, plain),
        "EMI + SCA": refine_with(refiner, everywhere),
        "EMI + SCA + CF": refine_with(refiner, config),
        "EMI + SCA + CF, pixel": refine_with(refiner, replace(config, resolution="pixel")),
        "colour model": by_colour,
    }


def injection_effect(refiner: Refiner, samples: Sequence[Sample], config: RefineConfig) -> dict[str, float]:
    """How much the injection changes the generated image, where the mask is wrong and elsewhere (mean of 0..255)."""
    plain = replace(config, emi_self=0.0, emi_cross=0.0)
    wrong_changes, other_changes = [], []
    for sample in tqdm(samples, desc="injection", leave=False):
        name = sample.scene.target
        wrong = (sample.coarse >= 0.5) != sample.scene.masks[name]
        if not wrong.any() or wrong.all():
            continue
        refiner.set_image(sample.scene.image)
        images = [
            refiner.refine({name: sample.coarse}, config=c, keep=("generated",)).generated[name].astype(float)
            for c in (config, plain)
        ]
        change = np.abs(images[0] - images[1]).mean(axis=2)
        wrong = resize_nearest(wrong, (change.shape[0], change.shape[1]))
        wrong_changes.append(change[wrong].mean())
        other_changes.append(change[~wrong].mean())
    wrong_mean, other_mean = float(np.mean(wrong_changes)), float(np.mean(other_changes))
    return {
        "where_wrong": round(wrong_mean, 3),
        "elsewhere": round(other_mean, 3),
        "ratio": round(wrong_mean / other_mean, 2) if other_mean else 0.0,
    }


def table(scores: Mapping[str, Score]) -> str:
    """Markdown: a row per method, the gain in points by kind and severity, and the share of masks made worse."""
    groups: list[tuple[str, dict[str, str]]] = [("all", {})]
    groups += [(severity, {"severity": severity}) for severity in SEVERITIES]
    groups += [(kind, {"kind": kind}) for kind in KINDS]
    first = next(iter(scores.values()))
    present = [(label, choice) for label, choice in groups if len(first.part(**choice).before)]
    head = ["method", "mean IoU", *[label for label, _ in present], "made worse"]
    rows = [head, ["---"] * len(head)]
    coarse = [f"{first.part(**choice).summary()['before']:.1f}" for _, choice in present]
    rows.append(["coarse (mean IoU)", coarse[0], *coarse, ""])
    for name, result in scores.items():
        gains = [f"{result.part(**choice).summary()['gain']:+.2f}" for _, choice in present]
        whole = result.summary()
        rows.append([name, f"{whole['after']:.1f}", *gains, f"{whole['worse_percent']:.0f} %"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m g4seg_bench.quality", description="Gains on synthetic scenes.")
    parser.add_argument("--engine", default="tiny", help="engine directory, or tiny")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--kind", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--severity", choices=[*SEVERITIES, "all"], default="all")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON object of refine settings")
    parser.add_argument("--only", choices=["ablation", "timesteps", "injection"], help="one of the three parts")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    options: Any = parser.parse_args(argv)
    if options.seed == 0:
        parser.error("--seed 0 made the training scenes: choose another")
    directory = engine_directory(options.engine)
    samples = list(make_samples(options.count, options.seed, options.kind, options.severity))
    record: dict[str, Any] = {"seed": options.seed, "count": options.count}
    with Refiner.from_engine(options.engine) as refiner, open_runner(directory, "vae_encoder") as encoder:
        config = refiner.config.merged(options.settings)
        record |= {"engine": load_engine(directory).model.id, "config": config.to_mapping()}
        if options.only in (None, "ablation"):
            scores = {name: score(samples, method, name) for name, method in ablation(refiner, encoder, config).items()}
            record["ablation"] = {name: groups(result) for name, result in scores.items()}
            record["grid_over_pixel"] = paired(scores["EMI + SCA + CF"], scores["EMI + SCA + CF, pixel"])
            print(table(scores))
            print("\ngrid over pixel, points of mean IoU:", record["grid_over_pixel"])
        if options.only in (None, "timesteps"):
            sweep = {t: score(samples, refine_with(refiner, replace(config, timestep=t)), f"t={t}") for t in TIMESTEPS}
            record["timesteps"] = {str(t): groups(result) for t, result in sweep.items()}
            print("\n" + table({f"t={t}": result for t, result in sweep.items()}))
        if options.only in (None, "injection"):
            record["injection"] = injection_effect(refiner, samples, config)
            print("\ninjected against plain generation, mean change of 0..255:", record["injection"])
    if options.json:
        write_record(options.json, "quality", record)
    return 0


def paired(one: Score, other: Score) -> dict[str, float]:
    """How much more one gains than the other on the same samples, with two standard errors of the difference."""
    difference = one.after - other.after
    error = 2 * difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return {"mean": round(float(difference.mean()), 2), "error": round(float(error), 2)}


def groups(result: Score) -> dict[str, dict[str, float]]:
    """Summaries of all, of each severity and of each kind that there is."""
    parts = {"all": result} | {s: result.part(severity=s) for s in SEVERITIES} | {k: result.part(kind=k) for k in KINDS}
    return {label: part.summary() for label, part in parts.items() if len(part.before)}


if __name__ == "__main__":
    sys.exit(main())
