"""Trying many background rules on a set: what the best of them would give, chosen on the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from g4seg_trt.arrays import Ints, Labels
from g4seg_trt.errors import ConfigError
from g4seg_trt.evaluate.confusion import LabelSpace, counted_classes, mean_iou
from g4seg_trt.update import BackgroundRule

MOST_RULES = 100

_MOST_COUNTS = 1 << 26
"""Numbers in the confusion matrices of all rules together: 512 MiB, and each thread has its own."""

_FORM = "KIND:FROM:TO:STEP with the kinds constant and power, such as constant:0.05:0.60:0.05 or power:1:10:1"


def parse_sweep(text: str) -> tuple[BackgroundRule, ...]:
    """The rules of "KIND:FROM:TO:STEP", both ends included.

    Raises:
        ConfigError: for another form, a rule that is not allowed, or more than MOST_RULES.
    """
    try:
        kind, *numbers = text.split(":")
        low, high, step = (Decimal(number) for number in numbers)
        if not (low.is_finite() and high.is_finite() and step.is_finite() and step > 0 and low <= high):
            raise ConfigError(f"sweep {text!r}: FROM must not be above TO, and STEP above 0; allowed: {_FORM}")
        # Decimal: 0.05 added up in floating point misses 0.60.
        steps = (high - low) / step
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"sweep {text!r}, allowed: {_FORM}") from error
    if steps >= MOST_RULES:
        raise ConfigError(f"sweep {text!r} has more than {MOST_RULES} rules; take a larger STEP")
    return tuple(BackgroundRule(kind, float(low + step * index)) for index in range(int(steps) + 1))


class SweepEvaluation:
    """Gathers the same predictions under several background rules; raises ConfigError for too many of them.

    Attributes:
        space: the classes.
        rules: in the order in which `add` gets their labels.
        images: how many were counted.
        decided: how many of them are the same under every rule, being labels from the start.
    """

    def __init__(self, space: LabelSpace, rules: Sequence[BackgroundRule]) -> None:
        self.space = space
        self.rules = tuple(rules)
        self.images = 0
        self.decided = 0
        count = len(space.ids)
        if len(self.rules) * count * (count + 1) > _MOST_COUNTS:
            most = _MOST_COUNTS // (count * (count + 1))
            raise ConfigError(f"a sweep of {len(self.rules)} rules with {count} classes, allowed: up to {most} rules")
        self._matrices: Ints = np.zeros((len(self.rules), count, count + 1), dtype=np.int64)

    def add(self, labels: Sequence[Labels], truth: Labels) -> None:
        """Count one image: its labels under each rule; raises MaskError as `LabelSpace.count`."""
        self._matrices += np.stack([self.space.count(one, truth) for one in labels])
        self.images += 1

    def add_decided(self, labels: Labels, truth: Labels) -> None:
        """Count one image that is labels from the start; raises MaskError as `LabelSpace.count`."""
        self._matrices += self.space.count(labels, truth)
        self.images += 1
        self.decided += 1

    def merge(self, other: SweepEvaluation) -> None:
        """Add the images of another sweep of the same classes and rules; raises ConfigError if they differ."""
        if (other.space.ids, other.rules) != (self.space.ids, self.rules):
            raise ConfigError("sweeps over different classes or rules cannot be added up")
        self._matrices += other._matrices
        self.images += other.images
        self.decided += other.decided

    def summary(self, mean_over: str = "present") -> dict[str, Any]:
        """The mean IoU under each rule, and the best of them.

        Returns:
            "images"; "label_pictures", the number of those that are the same under every rule; "rules", a list of
            {"background", "mean_iou", "counted_classes"}, and "best", the first of the best of them, None without
            any; it was chosen on the ground truth, so no method can be said to reach it.

        Raises:
            ConfigError: for another `mean_over`, see `counted_classes`.
        """
        rules: list[dict[str, Any]] = [
            {
                "background": str(rule),
                "mean_iou": mean_iou(matrix, mean_over),
                "counted_classes": int(counted_classes(matrix, mean_over).sum()),
            }
            for rule, matrix in zip(self.rules, self._matrices, strict=True)
        ]
        defined = [rule for rule in rules if rule["mean_iou"] is not None]
        best = max(defined, key=lambda rule: rule["mean_iou"], default=None)
        return {"images": self.images, "label_pictures": self.decided, "rules": rules, "best": best}
