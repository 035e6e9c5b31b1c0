"""What a run of the latency benchmark prints: the report's own tables, and what is worth a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from g4seg_bench.latency_record import latency_record
from g4seg_bench.scaling import growth
from g4seg_bench.tables import (
    cold_start_table,
    headline,
    median_table,
    memory_table,
    ratio_table,
    scaling_table,
    side_table,
)


def tell(data: Mapping[str, Any]) -> None:
    """Print a whole record, as it is written to a file."""
    record = latency_record("this run", data)
    tables = [median_table(record), *(side_table(record, side) for side in record.sides.values())]
    tables += [ratio_table(record)] if record.ratios else []
    tables += [memory_table(record)] if any(side.peak_mb is not None for side in record.sides.values()) else []
    tables += [cold_start_table(record)] if any(side.cold_start for side in record.sides.values()) else []
    tables += [scaling_table(record)] if record.scaling else []
    print(headline(record))
    for table in tables:
        print(f"\n{table.title}\n\n{table.markdown()}")
    print()
    for line in _sentences(data):
        print(line)


def _sentences(data: Mapping[str, Any]) -> Iterator[str]:
    for name, side in data["sides"].items():
        if found := side["difference"]:
            reference = data["ratios"][name]["baseline"]
            yield (
                f"{name} against {reference}: denoised latent {found['denoised_relative']:.1e} (relative), "
                f"probabilities at most {found['probability_max']:.1e}; of {found['matches']} matches "
                f"{found['matches_differing']} differ, {found['clear_matches_differing']} where the best stands out"
            )
    classes = (data["scaling"] or {}).get("classes", [])
    for name in dict.fromkeys(one["side"] for one in classes):
        yield f"{name}: {growth(classes, name)}"
    yield from data["settings"]["notes"]
    if not data["safe"]:
        yield f"unsafe to compare: {data['unsafe_reason']}"
