"""Synthetic labelled scenes: textured ground, one to three objects, exact masks, and coarse masks made from them.

Two kinds of scenes:

- ``plain``: colour and texture go with the class (a disc is always red and dotted), the ground has colours of its own.
- ``shuffled``: every scene draws two colours, and objects and patchwork ground are textured with those alone,
  independently of the class, so that appearance alone does not tell object from ground. What shows an object is its
  outline: a thin shaded rim and the break in the texture.

``python -m g4seg_export.tiny.scenes --count 300 --seed 7 --output DIR`` writes a set that ``g4seg-refine --images
DIR/images --masks DIR/masks --classes DIR/classes.json`` takes as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from g4seg_export.tiny.corruption import SEVERITIES, coarse_mask

Array: TypeAlias = NDArray[np.floating[Any]]

SIZE = 64
KINDS = ("plain", "shuffled")
NOTE = "made for trying things out, not for photographs"

PALETTE: Array = np.array(
    [
        [214, 60, 52],
        [58, 96, 206],
        [62, 160, 74],
        [232, 190, 58],
        [146, 70, 170],
        [232, 128, 44],
        [66, 184, 188],
        [226, 124, 168],
        [120, 84, 56],
        [232, 230, 222],
        [70, 74, 84],
        [152, 204, 96],
    ],
    dtype=np.float32,
) / np.float32(255)
GROUND_PALETTE: Array = np.array(
    [[104, 120, 96], [150, 140, 118], [128, 132, 140], [92, 100, 116], [172, 164, 150], [116, 104, 92]],
    dtype=np.float32,
) / np.float32(255)


def _disc(u: Array, v: Array) -> Array:
    return np.asarray(np.hypot(u, v) - 1)


def _box(u: Array, v: Array, half_width: float, half_height: float) -> Array:
    return np.asarray(np.maximum(np.abs(u) - half_width, np.abs(v) - half_height))


def _square(u: Array, v: Array) -> Array:
    return _box(u, v, 0.82, 0.82)


def _triangle(u: Array, v: Array) -> Array:
    return np.asarray(np.maximum(np.abs(u) * 0.866 + v * 0.5 - 0.52, -v - 0.62))


def _star(u: Array, v: Array) -> Array:
    sector = 2 * math.pi / 5
    angle = np.abs(np.mod(np.arctan2(u, v) + sector / 2, sector) - sector / 2)
    radius = np.hypot(u, v)
    # One edge of the star, from the tip (radius 1.1) to the inner corner (radius 0.45), in the folded sector.
    tip, inner = 1.1, 0.45
    ax, ay = tip, 0.0
    bx, by = inner * math.cos(sector / 2), inner * math.sin(sector / 2)
    length = math.hypot(bx - ax, by - ay)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    result: Array = ((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length
    return result


def _ring(u: Array, v: Array) -> Array:
    return np.asarray(np.abs(np.hypot(u, v) - 0.76) - 0.28)


def _cross(u: Array, v: Array) -> Array:
    return np.asarray(np.minimum(_box(u, v, 0.34, 1.0), _box(u, v, 1.0, 0.34)))


def _crescent(u: Array, v: Array) -> Array:
    return np.asarray(np.maximum(np.hypot(u, v) - 1, 0.78 - np.hypot(u - 0.5, v)))


def _heart(u: Array, v: Array) -> Array:
    lobes = np.minimum(np.hypot(u - 0.42, v - 0.32), np.hypot(u + 0.42, v - 0.32)) - 0.56
    point = np.maximum(np.abs(u) * 0.78 - v * 0.63 - 0.53, v - 0.32)
    return np.asarray(np.minimum(lobes, point))


@dataclass(frozen=True)
class ObjectClass:
    """A class of objects. ``distance`` maps normalised coordinates to a signed distance (negative inside)."""

    name: str
    distance: Callable[[Array, Array], Array]
    colours: tuple[int, int]
    texture: str


CLASSES: tuple[ObjectClass, ...] = (
    ObjectClass("disc", _disc, (0, 9), "dots"),
    ObjectClass("square", _square, (1, 6), "stripes"),
    ObjectClass("triangle", _triangle, (3, 5), "solid"),
    ObjectClass("star", _star, (4, 7), "gradient"),
    ObjectClass("ring", _ring, (5, 8), "stripes"),
    ObjectClass("cross", _cross, (6, 9), "solid"),
    ObjectClass("crescent", _crescent, (7, 4), "dots"),
    ObjectClass("heart", _heart, (0, 7), "checks"),
)
CLASS_NAMES = tuple(c.name for c in CLASSES)
TEXTURES = ("solid", "stripes", "dots", "checks", "gradient")


@dataclass(frozen=True)
class Scene:
    """image: uint8 [64,64,3] RGB. masks: class name -> bool [64,64], visible pixels. target: the class to refine."""

    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]
    target: str


def make_scene(rng: np.random.Generator, kind: str) -> Scene:
    """One scene of ``kind`` ("plain" or "shuffled"); the same generator state gives the same scene."""
    while True:
        scene = _try_scene(rng, kind)
        if scene is not None:
            return scene


def _try_scene(rng: np.random.Generator, kind: str) -> Scene | None:
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + np.float32(0.5)
    palette = PALETTE if kind == "plain" else PALETTE[rng.choice(len(PALETTE), size=2, replace=False)]
    image = _ground(rng, GROUND_PALETTE if kind == "plain" else palette, x, y)
    owner = np.full((SIZE, SIZE), -1)
    drawn = rng.choice(len(CLASSES), size=int(rng.integers(1, 4)), replace=False)
    for index in drawn:
        cls = CLASSES[index]
        radius = rng.uniform(11, 20)
        centre = rng.uniform(12, SIZE - 12, size=2)
        angle = rng.uniform(0, 2 * math.pi)
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        dx, dy = (x - centre[0]) / radius, (y - centre[1]) / radius
        distance = cls.distance(cos * dx + sin * dy, cos * dy - sin * dx) * radius
        colours = cls.colours if kind == "plain" else _two(rng, len(palette))
        texture = cls.texture if kind == "plain" else str(rng.choice(TEXTURES))
        surface = _texture(rng, texture, palette[colours[0]], palette[colours[1]], x, y)
        surface = surface * (1 - 0.45 * np.clip(1 - np.abs(distance + 1), 0, 1)[..., None])
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        image = image * (1 - cover) + surface * cover
        owner[distance < 0] = index
    visible = {CLASSES[i].name: owner == i for i in drawn if np.count_nonzero(owner == i) >= 150}
    if not visible:
        return None
    image = image * rng.uniform(0.85, 1.1) + _light(rng, x, y) + rng.normal(0, 0.02, image.shape)
    target = str(rng.choice(sorted(visible)))
    return Scene(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), visible, target)


def _ground(rng: np.random.Generator, palette: Array, x: Array, y: Array) -> Array:
    """A patchwork of three to five textured regions (nearest of random seeds)."""
    seeds = rng.uniform(0, SIZE, size=(int(rng.integers(3, 6)), 2))
    nearest = np.argmin([(x - sx) ** 2 + (y - sy) ** 2 for sx, sy in seeds], axis=0)
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    for region in range(len(seeds)):
        first, second = (region % 2, 1 - region % 2) if len(palette) == 2 else _two(rng, len(palette))
        surface = _texture(rng, str(rng.choice(TEXTURES)), palette[first], palette[second], x, y)
        image = np.where((nearest == region)[..., None], surface, image)
    return image


def _two(rng: np.random.Generator, count: int) -> tuple[int, int]:
    first, second = rng.choice(count, size=2, replace=False)
    return int(first), int(second)


def _light(rng: np.random.Generator, x: Array, y: Array) -> Array:
    angle = rng.uniform(0, 2 * math.pi)
    ramp = (math.cos(angle) * (x / SIZE - 0.5) + math.sin(angle) * (y / SIZE - 0.5)) * rng.uniform(0, 0.2)
    return np.asarray(ramp[..., None], dtype=np.float32)


def _texture(rng: np.random.Generator, name: str, first: Array, second: Array, x: Array, y: Array) -> Array:
    first = np.clip(first + rng.normal(0, 0.03, 3), 0, 1)
    second = np.clip(second + rng.normal(0, 0.03, 3), 0, 1)
    angle, period, phase = rng.uniform(0, math.pi), rng.uniform(5, 9), rng.uniform(0, 9, size=2)
    u = math.cos(angle) * x + math.sin(angle) * y + phase[0]
    v = math.cos(angle) * y - math.sin(angle) * x + phase[1]
    if name == "stripes":
        share = 0.5 + 0.5 * np.tanh(3 * np.sin(2 * math.pi * u / period))
    elif name == "dots":
        share = 0.5 + 0.5 * np.tanh(4 * (np.cos(2 * math.pi * u / period) * np.cos(2 * math.pi * v / period) - 0.4))
    elif name == "checks":
        share = 0.5 + 0.5 * np.tanh(4 * np.sin(2 * math.pi * u / period / 1.3) * np.sin(2 * math.pi * v / period / 1.3))
    elif name == "gradient":
        share = 0.5 + 0.5 * np.sin(2 * math.pi * u / (5 * period))
    else:
        share = np.zeros_like(u)
    # The first colour dominates: patterns cover the surface at most by six tenths.
    share = share[..., None] * 0.6
    return np.asarray(first * (1 - share) + second * share, dtype=np.float32)


@dataclass(frozen=True)
class Sample:
    """A scene with the coarse mask of its target: ``coarse`` float32 [64,64] in [0,1]."""

    name: str
    scene: Scene
    coarse: Array
    kind: str
    severity: str


def make_samples(count: int, seed: int, kind: str = "both", severity: str = "all") -> Iterator[Sample]:
    """``count`` samples; kinds and severities alternate when several are asked for. Each sample has its own seed."""
    kinds = KINDS if kind == "both" else (kind,)
    severities = tuple(SEVERITIES) if severity == "all" else (severity,)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        this_kind = kinds[index % len(kinds)]
        this_severity = severities[(index // len(kinds)) % len(severities)]
        scene = make_scene(rng, this_kind)
        distractors = [m for name, m in scene.masks.items() if name != scene.target]
        coarse = coarse_mask(rng, scene.masks[scene.target], distractors, this_severity)
        yield Sample(f"{index:05d}_{this_kind}_{this_severity}", scene, coarse, this_kind, this_severity)


def write_samples(samples: Iterator[Sample], output: Path) -> dict[str, str]:
    """Writes images, soft 8-bit masks, 0/255 ground truth and classes.json under ``output``."""
    folders = {name: output / name for name in ("images", "masks", "ground_truth")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    classes: dict[str, str] = {}
    for sample in samples:
        file = f"{sample.name}.png"
        truth = sample.scene.masks[sample.scene.target]
        Image.fromarray(sample.scene.image).save(folders["images"] / file)
        Image.fromarray(np.round(sample.coarse * 255).astype(np.uint8)).save(folders["masks"] / file)
        Image.fromarray(truth.astype(np.uint8) * 255).save(folders["ground_truth"] / file)
        classes[sample.name] = sample.scene.target
    (output / "classes.json").write_text(json.dumps(classes, indent=1) + "\n", encoding="utf-8")
    return classes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m g4seg_export.tiny.scenes", description="Write synthetic scenes with coarse masks."
    )
    parser.add_argument("--count", type=int, required=True, help="number of scenes")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--severity", choices=[*SEVERITIES, "all"], default="all")
    parser.add_argument("--kind", choices=[*KINDS, "both"], default="both")
    parser.add_argument("--output", type=Path, required=True, help="folder to write (made if missing)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    options: Any = parser.parse_args(argv)
    if options.count < 1 or options.seed < 0:
        parser.error("--count must be 1 or more and --seed 0 or more")
    if options.output.is_dir() and any(options.output.iterdir()):
        print(f"error: --output {options.output} is not empty: name a new folder", file=sys.stderr)
        return 1
    classes = write_samples(make_samples(options.count, options.seed, options.kind, options.severity), options.output)
    print(f"{len(classes)} scenes in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
