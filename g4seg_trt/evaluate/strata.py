"""What a refinement gained, by how good the coarse masks were (the paper's Table VII)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

STRATA = ((0.0, 0.4), (0.4, 0.8), (0.8, 1.0))
"""IoU of the coarse mask: from the lower end up to below the upper one; the last holds its upper end too."""

Gain = tuple[float, float]
"""IoU of one mask before and after, from 0 to 1."""


def stratified(gains: Sequence[Gain]) -> list[dict[str, Any]]:
    """The gain in each of STRATA and over all masks.

    Args:
        gains: one for each mask.

    Returns:
        A mapping for each stratum, then one for all, as `gain_figures` with "from" and "to" of the IoU before.
    """
    result = []
    for low, high in STRATA:
        inside = [gain for gain in gains if low <= gain[0] < high or (high == 1.0 and gain[0] == 1.0)]
        result.append({"from": low, "to": high, **gain_figures(inside)})
    return [*result, {"from": 0.0, "to": 1.0, **gain_figures(gains)}]


def gain_figures(gains: Sequence[Gain]) -> Mapping[str, Any]:
    """Figures of some masks; the order of the masks does not matter, to the last bit.

    Returns:
        "masks"; "before" and "after", mean IoU; "gain", mean of after - before; "two_errors", two standard errors
        of that mean; "worse", the share of masks that lost IoU, and "better". None where not defined: without a
        mask, the error with fewer than two.
    """
    count = len(gains)
    if count == 0:
        empty = dict.fromkeys(("before", "after", "gain", "two_errors", "worse", "better"))
        return {"masks": 0, **empty}
    differences = [after - before for before, after in gains]
    mean = math.fsum(differences) / count
    error = None
    if count > 1:
        variance = math.fsum((difference - mean) ** 2 for difference in differences) / (count - 1)
        error = 2 * math.sqrt(variance / count)
    return {
        "masks": count,
        "before": math.fsum(before for before, _ in gains) / count,
        "after": math.fsum(after for _, after in gains) / count,
        "gain": mean,
        "two_errors": error,
        "worse": sum(difference < 0 for difference in differences) / count,
        "better": sum(difference > 0 for difference in differences) / count,
    }
