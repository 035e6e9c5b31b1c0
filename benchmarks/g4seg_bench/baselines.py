"""What others' post-processing gives beside a refinement: ``python -m g4seg_bench.baselines``.

Coarse masks of held-out synthetic scenes, each process alone, G4Seg, and G4Seg followed by each process; mean IoU by
kind and severity as ``g4seg_bench.quality`` prints it, and what G4Seg gains over and before each process on the same
scenes. The processes' settings were chosen for photographs some 500 pixels wide: ``--size`` enlarges the scenes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from g4seg_bench.inputs import enlarge
from g4seg_bench.options import count
from g4seg_bench.quality import Floats, Method, groups, paired, refine_with, score, table, unchanged
from g4seg_bench.record import write_record
from g4seg_export.tiny.scenes import SIZE, Sample, make_samples
from g4seg_trt.cli.common import DONE, new_parser, run
from g4seg_trt.geometry import resize_nearest
from g4seg_trt.postprocess import PostProcess, parse_post
from g4seg_trt.refiner import Refiner
from g4seg_trt.update import BackgroundRule

POSTS = ("crf:clip-es", "crf:psa", "crf:irn", "pamr")
"""What is compared unless said otherwise: all that needs no weights."""

RULE = BackgroundRule("constant", 0.5)
REFINED = "G4Seg"


def enlarged(sample: Sample, size: int) -> Sample:
    """The sample with image, truth and coarse mask of size x size pixels."""
    image, coarse = enlarge(sample, size)
    masks = {name: resize_nearest(mask, (size, size)) for name, mask in sample.scene.masks.items()}
    return replace(sample, scene=replace(sample.scene, image=image, masks=masks), coarse=coarse)


def followed_by(post: PostProcess, method: Method) -> Method:
    """A method and a process on its result."""

    def both(sample: Sample) -> Floats:
        result: Floats = post.apply(sample.scene.image, method(sample)[None], RULE)[0]
        return result

    return both


def once(method: Method) -> Method:
    """The method, which keeps what it gave for each sample: several processes follow it."""
    given: dict[str, Floats] = {}

    def method_of_name(sample: Sample) -> Floats:
        if sample.name not in given:
            given[sample.name] = method(sample)
        return given[sample.name]

    return method_of_name


def compare(samples: Sequence[Sample], refiner: Refiner, posts: Sequence[PostProcess]) -> dict[str, Any]:
    """Score every way.

    Args:
        samples: scenes with names of their own.
        refiner: with the settings that G4Seg is to have.
        posts: the processes, each with a name of its own.

    Returns:
        "scores": by way, a Score; "g4seg_over" and "g4seg_before": by process, how many points of IoU G4Seg has more
        than it, and how many G4Seg adds before it, each "mean" and "error" (two standard errors of the pairs).
    """
    refine = once(refine_with(refiner, refiner.config))
    ways: dict[str, Method] = {"coarse": unchanged}
    ways |= {post.name: followed_by(post, unchanged) for post in posts}
    ways[REFINED] = refine
    ways |= {f"{REFINED} + {post.name}": followed_by(post, refine) for post in posts}
    scores = {name: score(samples, way, name) for name, way in ways.items()}
    return {
        "scores": scores,
        "g4seg_over": {post.name: paired(scores[REFINED], scores[post.name]) for post in posts},
        "g4seg_before": {post.name: paired(scores[f"{REFINED} + {post.name}"], scores[post.name]) for post in posts},
    }


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("python -m g4seg_bench.baselines", "Compare published post-processing with G4Seg.")
    parser.add_argument("--engine", default="tiny", help="engine directory, or tiny")
    parser.add_argument("--count", type=count, default=60, help="scenes")
    parser.add_argument("--seed", type=int, default=2026, help="of the scenes; 0 made the training scenes")
    parser.add_argument("--size", type=count, default=SIZE, help=f"side of the scenes in pixels, {SIZE} as drawn")
    parser.add_argument("--post", action="append", help=f"a process or a chain; default: {', '.join(POSTS)}")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    return parser


def _execute(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.seed <= 0:
        parser.error("--seed 0 made the training scenes: choose 1 or more")
    posts = {post.name: post for post in map(parse_post, options.post or POSTS)}
    samples = [enlarged(sample, options.size) for sample in make_samples(options.count, options.seed)]
    with Refiner.from_engine(options.engine) as refiner:
        found = compare(samples, refiner, list(posts.values()))
        record: dict[str, Any] = {
            "seed": options.seed,
            "count": options.count,
            "size": options.size,
            "engine": refiner.manifest.model.id,
            "config": refiner.config.to_mapping(),
            "background": str(RULE),
            "methods": {name: groups(result) for name, result in found["scores"].items()},
            "g4seg_over": found["g4seg_over"],
            "g4seg_before": found["g4seg_before"],
        }
    print(table(found["scores"]))
    print("\npoints of mean IoU that G4Seg has more than each:", record["g4seg_over"])
    print("points of mean IoU that G4Seg adds before each:", record["g4seg_before"])
    if options.json:
        write_record(options.json, "baselines", record)
    return DONE


def main(argv: Sequence[str] | None = None) -> int:
    """The benchmark; returns the exit code."""
    return run(_parser(), _execute, argv)


if __name__ == "__main__":
    sys.exit(main())
