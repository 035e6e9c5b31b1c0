"""Whether there is room for the sides: before one is loaded, and before all are."""

from __future__ import annotations

from collections.abc import Mapping

from g4seg_engine.errors import G4SegError
from g4seg_engine.manifest import Manifest

_WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2}


def weights_mb(manifest: Manifest, precision: str, *, one_network: bool = False) -> float:
    """What the weights of an engine's networks take in a precision, in 10^6 bytes: less than any side needs.

    Args:
        manifest: the engine's; the size of its files tells how many weights there are.
        precision: in which they are held.
        one_network: only the largest network.
    """
    sizes = [
        sum(file.bytes for file in record.files) * _WIDTHS[precision] / _WIDTHS[record.precision]
        for record in manifest.networks.values()
    ]
    return (max(sizes) if one_network else sum(sizes)) / 1e6


def check_memory(needed: Mapping[str, float], available: float | None) -> None:
    """Check that sides fit into memory together.

    Args:
        needed: MB of each side.
        available: MB, or None where it is not known.

    Raises:
        G4SegError: if they do not.
    """
    total = sum(needed.values())
    if available is not None and total > available:
        sides = ", ".join(f"{name} {mb:.0f}" for name, mb in needed.items())
        raise G4SegError(
            f"{sides}: {total:.0f} MB are needed at once and {available:.0f} MB are available: make room, measure "
            "fewer sides, or the engine alone with --baseline none"
        )
