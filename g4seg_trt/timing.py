"""Seconds spent in each stage of a refinement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

TEXT = "text"
"""The text encoder, for class names that are new."""

OPENING = "opening"
"""Waiting for a network that is still being opened."""

STAGES: tuple[str, ...] = (
    "resize",
    OPENING,
    TEXT,
    "vae_encoder",
    "unet",
    "vae_decoder",
    "image_encoder",
    "correspondence",
    "update",
)

NETWORKS = "networks"
"""On a GPU, in place of all stages between "resize" and "update" that are launched together."""


class Timings(dict[str, float]):
    """Stage -> seconds; stages that did not run are absent."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to the stage `name`."""
        start = perf_counter()
        try:
            yield
        finally:
            self[name] = self.get(name, 0.0) + perf_counter() - start

    def add(self, other: Mapping[str, float]) -> None:
        """Add the seconds of `other`, stage by stage."""
        for name, seconds in other.items():
            self[name] = self.get(name, 0.0) + seconds

    def shared_by(self, count: int) -> Timings:
        """The share of one among `count` that were done together."""
        return Timings({name: seconds / count for name, seconds in self.items()})

    def ordered(self) -> dict[str, float]:
        """A plain dict in the order of STAGES."""
        return {name: self[name] for name in (NETWORKS, *STAGES) if name in self}
