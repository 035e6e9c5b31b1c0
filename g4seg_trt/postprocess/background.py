"""A background channel made from a background rule, and the way back from it to probabilities under that rule."""

from __future__ import annotations

import numpy as np

from g4seg_trt.arrays import Floats
from g4seg_trt.masks.labels import NO_BACKGROUND
from g4seg_trt.update import BackgroundRule, label_map

_MARGIN = 1e-6
"""How far, relatively, a value stays from the boundary: more than the rounding of a power in float32."""


def background_channel(probabilities: Floats, rule: BackgroundRule, background: Floats | None) -> Floats:
    """The background's probability where the largest of the classes' is m.

    Power and channel are taken at their word: (1 - m) ** P and the map that was given. A constant T becomes
    T / (1 - T) * (1 - m), at most 1. It also meets m at T, but falls to 0 where a class is certain: with T itself
    (0.5, say) a pixel of probability 1 would count as two parts class and one part background, while one of
    probability 0 counts as background alone, and a process that weighs the two wears the masks away.

    Args:
        probabilities: float32 [K,H,W] in [0,1], K at least 1.
        rule: how much background a pixel has.
        background: float32 [H,W] in [0,1] for the rule "channel", None for another.

    Returns:
        float32 [H,W] in [0,1].
    """
    if background is not None:
        return background
    rest = np.float32(1.0) - probabilities.max(axis=0)
    if rule.kind == "power":
        powered: Floats = np.power(rest, np.float32(rule.value))
        return powered
    # float64, as the odds of a constant near 1 leave float32's range.
    odds = rule.value / max(1.0 - rule.value, 1e-300)
    meeting: Floats = np.minimum(rest.astype(np.float64) * odds, 1.0).astype(np.float32)
    return meeting


def under_rule(classes: Floats, rest: Floats, rule: BackgroundRule, background: Floats | None) -> Floats:
    """Probabilities whose label map under a rule is the argmax over background and classes.

    With one exception: no class can be above a given channel of 1, so its pixels stay background.

    A rule compares the largest class with a boundary t of its own (the constant; where m meets (1 - m) ** P; the
    given map), not with the new background. So the share r = m / (m + rest) that the largest class has against the
    background is stretched piecewise linearly: 0 to 0, 1/2 to t, 1 to 1. That becomes the largest class's
    probability; the others keep their ratio to it. With one class and t = 1/2 (constant:0.5, power:1) nothing
    changes: the result is the posterior itself. So it is for NO_BACKGROUND, where the rest does not take part.

    Args:
        classes: float32 [K,H,W], 0 or more, K at least 1.
        rest: the background, float32 [H,W], 0 or more. It wins ties, as the first of all; of equal classes the first.
        rule: how much background a pixel will be given.
        background: float32 [H,W] in [0,1] for the rule "channel", None for another.

    Returns:
        float32 [K,H,W] in [0,1].
    """
    if rule == NO_BACKGROUND:
        return classes.copy()
    winner = classes.argmax(axis=0)[None]
    largest = np.take_along_axis(classes, winner, axis=0)[0]
    wins = largest > rest
    if background is not None:
        wins &= background < 1
    total = largest + rest
    share = np.divide(largest, total, out=np.zeros_like(total), where=total > 0)
    boundary = _boundary(rule, background)
    stretched = np.where(wins, boundary + (1 - boundary) * (2 * share - 1), boundary * 2 * share)
    # On the right side of the boundary in spite of rounding; where it is 0 a class needs more than 0 to win.
    above = np.minimum(np.nextafter(boundary * np.float32(1 + _MARGIN), np.float32(2)), np.float32(1))
    below = np.nextafter(boundary * np.float32(1 - _MARGIN), np.float32(0))
    best = np.where(wins, np.clip(stretched, above, 1), np.clip(stretched, 0, below))
    result: Floats = np.divide(classes, largest, out=np.zeros_like(classes), where=largest > 0)
    result *= best
    # Scaling may round two different values to the same: the winner stays alone at the top.
    np.minimum(result, np.nextafter(best, np.float32(0)), out=result)
    np.put_along_axis(result, winner, best[None], axis=0)
    return result


def _boundary(rule: BackgroundRule, background: Floats | None) -> Floats:
    """Where background ends: the smallest probability of a class, [1,1]; for "channel" the largest of none, [H,W]."""
    if background is not None:
        return background
    if rule.kind == "constant":
        return np.array([[rule.value]], dtype=np.float32)
    # The order of positive float32 is that of their bits, so this halves the range down to neighbouring numbers.
    low, high = 0, int(np.array(1.0, dtype=np.float32).view(np.int32))
    while high - low > 1:
        middle = (low + high) // 2
        if label_map(_from_bits(middle)[None], rule)[0, 0]:
            high = middle
        else:
            low = middle
    return _from_bits(high)


def _from_bits(bits: int) -> Floats:
    return np.array([[bits]], dtype=np.int32).view(np.float32)
