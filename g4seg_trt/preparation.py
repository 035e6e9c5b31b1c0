"""What happens to an image and its masks before any network runs: checks, softening, resizing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from g4seg_engine.spec import ModelDims
from g4seg_trt.arrays import Array, Bools, Floats
from g4seg_trt.config import RefineConfig
from g4seg_trt.errors import MaskError, some
from g4seg_trt.geometry import resize_probability, to_square
from g4seg_trt.injection import injected_mask
from g4seg_trt.inputs import check_image, check_masks
from g4seg_trt.prompt import Prompt, PromptEncoder
from g4seg_trt.soften import soften, softening, unscored
from g4seg_trt.timing import Timings
from g4seg_trt.update import BACKGROUND, BackgroundRule, in_filter, label_map


@dataclass(frozen=True)
class PreparedClass:
    """One class of one image.

    Attributes:
        name: the class as the caller calls it.
        prompt: its tokens.
        given: the mask as given, float32 [H,W].
        shape: the given mask itself, or of one that has a score where it is not 0 the same as 0 and 1, float32 [H,W].
        score: the score, 1 for any other mask: shape times score is given.
        probability: S, float32 [H,W]: the shape itself or softened.
        softened: the share of the longer side it was softened by, 0 if it was not.
        mask: the injected mask, float32 [1,h,h].
        square: S on the model's square, float32 [s,s].
        searched: see chain.ClassMask.
        still: why no pixel can change ("is empty"), or "".
    """

    name: str
    prompt: Prompt
    given: Floats
    shape: Floats
    score: float
    probability: Floats
    softened: float
    mask: Floats
    square: Floats
    searched: Bools | None
    still: str


@dataclass(frozen=True)
class Preparation:
    """The classes of one image, in the caller's order, with what is worth a warning.

    Attributes:
        classes: one entry for each mask.
        warnings: see Refinement.
        timings: seconds by stage.
    """

    classes: tuple[PreparedClass, ...]
    warnings: tuple[str, ...]
    timings: Timings


@dataclass(frozen=True)
class PreparedImage:
    """An image on the model's square.

    Attributes:
        pixels: RGB float32 [3,s,s] in [0,1].
        size: (height, width) of the image itself.
        timings: seconds by stage.
    """

    pixels: Floats
    size: tuple[int, int]
    timings: Timings


def prepare_image(image: Array, square: int) -> PreparedImage:
    """uint8 RGB [H,W,3] -> the square. Raises ImageError for anything that is no such image."""
    timings = Timings()
    with timings.stage("resize"):
        checked = check_image(image)
        pixels = to_square(checked, square)
    return PreparedImage(pixels, (checked.shape[0], checked.shape[1]), timings)


def prepare_masks(
    masks: Mapping[str, Array],
    size: tuple[int, int],
    prompts: PromptEncoder,
    dims: ModelDims,
    config: RefineConfig,
    rule: BackgroundRule,
) -> Preparation:
    """Check the masks of one image of `size` (height, width) and bring them to the networks' form.

    A class's injected mask is where the label map of the masks as given has its label. With the rule "channel"
    the mask called "background" is the background's probability and no class.

    Raises:
        ClassNameError: for a name that the prompt cannot hold.
        MaskError: for a mask that is no probability map of the image's size.
        ConfigError: for the rule "channel" without a mask of the background.
    """
    timings = Timings()
    with timings.stage("text"):
        channel = rule.kind == "channel"
        encoded = {name: prompts.encode(name) for name in masks if not (channel and name == BACKGROUND)}
    with timings.stage("resize"):
        checked = check_masks(masks, size)
        background = checked.pop(BACKGROUND, None) if channel else None
        if not checked:
            raise MaskError(f"no mask given beside the one of the {BACKGROUND}")
        labels = label_map(list(checked.values()), rule, background)
        classes = [
            _prepare(name, encoded[name], given, labels == label, dims, config)
            for label, (name, given) in enumerate(checked.items(), start=1)
        ]
    return Preparation(tuple(classes), tuple(_warnings(classes, config, rule)), timings)


def _prepare(
    name: str, prompt: Prompt, given: Floats, binary: Bools, dims: ModelDims, config: RefineConfig
) -> PreparedClass:
    shape, score = unscored(given, config.soften)
    share = softening(shape, config.soften)
    probability = soften(shape, share) if share else shape
    mask = injected_mask(binary, dims.latent_size)
    square = resize_probability(probability, (dims.square, dims.square))
    searched = _searched(probability, dims.square, config)
    still = _still(probability, config)
    return PreparedClass(name, prompt, given, shape, score, probability, share, mask, square, searched, still)


def _searched(probability: Floats, square: int, config: RefineConfig) -> Bools | None:
    """Where on the square the lift reaches a pixel in the filter: bilinear weights both ways have the same support."""
    if config.resolution != "pixel" or config.certainty_filter is None:
        return None
    passed = in_filter(probability, config.certainty_filter).astype(np.float32)
    return resize_probability(passed, (square, square)) > 0.0


def _still(probability: Floats, config: RefineConfig) -> str:
    low, high = float(probability.min()), float(probability.max())
    if low == high:
        return {0.0: "is empty", 1.0: "covers the whole image"}.get(low, f"is {low:g} everywhere")
    if config.certainty_filter is not None and not in_filter(probability, config.certainty_filter).any():
        return "has no pixel in the certainty filter's range {:g} to {:g}".format(*config.certainty_filter)
    return ""


def _warnings(classes: Sequence[PreparedClass], config: RefineConfig, rule: BackgroundRule) -> Iterator[str]:
    """One line for all the classes of which it is true: files of all classes have many that an image does not show."""
    alike: dict[str, list[str]] = {}
    for one in classes:
        if one.still:
            alike.setdefault(f"{one.still}: it stays as it is", []).append(one.name)
        elif (config.emi_self or config.emi_cross) and not one.mask.any():
            unguided = f"holds no position of the latent grid under the background rule {rule}"
            alike.setdefault(f"{unguided}: the generation is not guided by it", []).append(one.name)
    for what, names in alike.items():
        shown = some(map(repr, names))
        yield f"the mask of {shown} {what}" if len(names) == 1 else f"each of {len(names)} masks ({shown}) {what}"
