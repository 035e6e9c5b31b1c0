"""Figures from seconds: quantiles by stage, ratios pair by pair, noise, slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from g4seg_bench.sides import REST, STAGES, TOTAL

Runs = Sequence[Mapping[str, float]]

QUANTILES = {"min": 0.0, "p20": 0.2, "median": 0.5, "p80": 0.8}
LARGEST_SPREAD = 0.1
LARGEST_DRIFT = 0.1
FEWEST_RUNS = 3


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Of one stage's seconds: linear between the two nearest runs."""
    return {name: round(float(np.quantile(seconds, share)), 6) for name, share in QUANTILES.items()}


def by_stage(runs: Runs) -> dict[str, dict[str, float]]:
    """The quantiles of every stage that all runs have."""
    shared = [stage for stage in (*STAGES, REST, TOTAL) if all(stage in one for one in runs)]
    return {stage: quantiles([one[stage] for one in runs]) for stage in shared}


def ratios(seconds: Mapping[str, Runs], baseline: str) -> dict[str, dict[str, Any]]:
    """How many times faster than the baseline each other side is, from runs that followed each other."""
    found = {}
    for name, runs in seconds.items():
        if name != baseline:
            both = zip(runs, seconds[baseline], strict=True)
            pairs = [round(slow[TOTAL] / fast[TOTAL], 4) for fast, slow in both]
            found[name] = {
                "baseline": baseline,
                "pairs": pairs,
                "median": round(median(pairs), 4),
                "min": min(pairs),
                "max": max(pairs),
            }
    return found


def spread(runs: Runs) -> float:
    """(p80 - p20) / median of the total."""
    total = quantiles([one[TOTAL] for one in runs])
    return round((total["p80"] - total["p20"]) / total["median"], 4)


def unsafe_reason(noise: Mapping[str, float], drift: float, runs: int) -> str | None:
    """Why the sides must not be compared, or None.

    Args:
        noise: the spread of each side.
        drift: of the calibration.
        runs: of each side.
    """
    reasons = [
        f"the seconds of {name} spread by {share:.0%}, at most {LARGEST_SPREAD:.0%} are safe"
        for name, share in noise.items()
        if share > LARGEST_SPREAD
    ]
    if drift > LARGEST_DRIFT:
        reasons.append(
            f"the time of a fixed matrix product varied by {drift:.0%} during the runs, at most {LARGEST_DRIFT:.0%} "
            "are safe"
        )
    if runs < FEWEST_RUNS:
        reasons.append(f"{runs} {'run does' if runs == 1 else 'runs do'} not show the noise, {FEWEST_RUNS} would")
    return "; ".join(reasons) or None


def slope(points: Mapping[int, float]) -> float | None:
    """Least squares: how much more for each unit more; None for fewer than two points."""
    if len(points) < 2:
        return None
    return round(float(np.polyfit(list(points), list(points.values()), 1)[0]), 6)
