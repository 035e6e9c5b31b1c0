"""The probability update (eq. 9) with its certainty filter, and the way from probabilities to a label map."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g4seg_trt.arrays import Array, Floats, Ints, Labels
from g4seg_trt.errors import ConfigError, MaskError
from g4seg_trt.geometry import upsample_residual

BACKGROUND = "background"
"""The name of the mask that the background rule `channel` takes."""

LIKELIEST = float(np.finfo(np.float32).tiny)
"""The constant below which there is next to nothing: with it every pixel gets its likeliest class."""

RULES = "constant:T with T above 0 and up to 1, power:P with P above 0, or channel"


def mix(probability: Floats, indices: Ints, beta: float) -> Floats:
    """What eq. 9 changes on the grid: S* - S, with S*[j] = beta S[j] + (1 - beta) S[delta_j].

    Args:
        probability: S on the grid, float32 [g,g] in [0,1].
        indices: delta, for every position the most similar one, int64 [g*g] in row-major order.
        beta: share of S itself; 1 gives exactly zero.

    Returns:
        float32 [g,g] in [-1,1].
    """
    flat = probability.reshape(-1)
    return (np.float32(1.0 - beta) * (flat[indices] - flat)).reshape(probability.shape)


def mix_at(probability: Floats, queries: Ints, indices: Ints, beta: float) -> Floats:
    """What eq. 9 changes at some positions: as `mix` there, 0 elsewhere.

    Args:
        probability: S, float32 [H,W] in [0,1].
        queries: the positions, int64 [n] in row-major order.
        indices: the position most similar to each, int64 [n].
        beta: as for `mix`.

    Returns:
        float32 [H,W] in [-1,1].
    """
    flat = probability.reshape(-1)
    residual = np.zeros_like(flat)
    residual[queries] = np.float32(1.0 - beta) * (flat[indices] - flat[queries])
    return residual.reshape(probability.shape)


def in_filter(probability: Floats, certainty_filter: tuple[float, float] | None) -> Array:
    """bool, shaped like `probability`: where the closed interval holds it; everywhere without a filter."""
    if certainty_filter is None:
        return np.ones(probability.shape, dtype=np.bool_)
    low, high = np.float32(certainty_filter[0]), np.float32(certainty_filter[1])
    return np.asarray((probability >= low) & (probability <= high))


def apply_residual(
    given: Floats,
    probability: Floats,
    residual: Floats,
    certainty_filter: tuple[float, float] | None,
) -> Floats:
    """The refined probability at full resolution.

    Args:
        given: the mask as given, float32 [H,W] in [0,1].
        probability: S, the same map or the softened one, float32 [H,W]: it decides the filter and is updated.
        residual: S* - S on the grid or the model's square, float32 [g,g] or [s,s].
        certainty_filter: closed interval of S that is updated, or None for all.

    Returns:
        float32 [H,W] in [0,1]; outside the filter the given value, bit for bit.
    """
    lifted = upsample_residual(residual, (given.shape[0], given.shape[1]))
    lifted += probability
    np.clip(lifted, 0.0, 1.0, out=lifted)
    return np.where(in_filter(probability, certainty_filter), lifted, given)


@dataclass(frozen=True)
class BackgroundRule:
    """How much background a pixel has, given the largest probability m of the classes there; see `label_map`.

    Attributes:
        kind: "constant" (the value itself), "power" ((1 - m) ** value) or "channel" (a map that comes with
            the masks).
        value: the constant, above 0 and up to 1, or the exponent, above 0; 0 for "channel".

    Raises:
        ConfigError: for another kind or value.
    """

    kind: str = "constant"
    value: float = 0.5

    def __post_init__(self) -> None:
        top = {"constant": 1.0, "power": sys.float_info.max}.get(self.kind, math.nan)
        if (self.kind, self.value) != ("channel", 0.0) and not 0.0 < self.value <= top:
            raise ConfigError(f"background rule {self}, allowed: {RULES}")

    def __str__(self) -> str:
        """As `parse` takes it, two rules never alike; "none" for LIKELIEST, the rule where there is no background."""
        if self.kind == "channel":
            return self.kind
        if (self.kind, self.value) == ("constant", LIKELIEST):
            return "none"
        return f"{self.kind}:{float(self.value)!r}".removesuffix(".0")

    @classmethod
    def of(cls, rule: BackgroundRule | str) -> BackgroundRule:
        """A rule or its text; raises as `parse`."""
        return cls.parse(rule) if isinstance(rule, str) else rule

    @classmethod
    def parse(cls, text: str) -> BackgroundRule:
        """From "constant:T", "power:P" or "channel".

        Raises:
            ConfigError: for anything else.
        """
        if text == "channel":
            return cls("channel", 0.0)
        kind, _, number = text.partition(":")
        try:
            return cls(kind, float(number))
        except (ValueError, ConfigError) as error:
            raise ConfigError(f"background rule {text!r}, allowed: {RULES}") from error


def label_map(
    probabilities: Sequence[Floats] | Floats,
    rule: BackgroundRule | str = "constant:0.5",
    background: Floats | None = None,
) -> Labels:
    """The label of every pixel: 0 background, 1.. the classes in the order given.

    A class wins where its probability m is the largest (of equal ones the first), is not 0, and beats the background.
    It has to be above (1 - m) ** P or the channel: CLIP-ES, IRN, PSA and DiffSegmenter put the background before the
    classes and take the argmax, the first of equal values. It has to reach the constant T: mmsegmentation and SCLIP
    make background of what is below a threshold. (IRN, PSA and DiffSegmenter do so exactly at a constant, too.)

    Args:
        probabilities: one float32 [H,W] in [0,1] for each class, or an array [K,H,W].
        rule: a BackgroundRule or its text.
        background: the background's probability [H,W], for the rule "channel".

    Returns:
        uint8 [H,W], uint16 for more than 255 classes.

    Raises:
        ConfigError: for a rule that cannot be read, or "channel" without a background.
        MaskError: if there is no class or the sizes differ.
    """
    rule = BackgroundRule.of(rule)
    labels, best = winners(probabilities)
    threshold = _background(rule, best, background)
    beaten = best < threshold if rule.kind == "constant" else best <= threshold
    labels[beaten | (best <= 0.0)] = 0
    return labels


def winners(probabilities: Sequence[Floats] | Floats) -> tuple[Labels, Floats]:
    """The class with the largest probability at every pixel, whatever the background.

    Args:
        probabilities: as for `label_map`.

    Returns:
        1.. the classes in the order given (of equal ones the first), uint8 or uint16 [H,W] as from `label_map`; and
        that probability, float32 [H,W].

    Raises:
        MaskError: if there is no class or the sizes differ.
    """
    if len(probabilities) == 0:
        raise MaskError("no class to make a label map of")
    best = np.array(probabilities[0], dtype=np.float32)
    labels: Labels = np.ones(best.shape, dtype=np.uint8 if len(probabilities) <= 255 else np.uint16)
    for label, probability in enumerate(probabilities[1:], start=2):
        _check_size(probability, best)
        larger = probability > best
        labels[larger] = label
        np.copyto(best, probability, where=larger)
    return labels, best


def _background(rule: BackgroundRule, best: Floats, background: Floats | None) -> Floats | np.float32:
    if rule.kind == "constant":
        return np.float32(rule.value)
    if rule.kind == "power":
        powered: Floats = np.power(np.float32(1.0) - best, np.float32(rule.value))
        return powered
    if background is None:
        raise ConfigError(f'background rule channel needs a mask of the class "{BACKGROUND}"')
    _check_size(background, best)
    return background


def _check_size(one: Floats, other: Floats) -> None:
    if one.shape != other.shape:
        raise MaskError(f"masks of one image differ in size: {one.shape[::-1]} and {other.shape[::-1]}")
