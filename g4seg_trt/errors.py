"""What a user can get wrong in a refinement. Each message is one line: what, which value, what is allowed."""

from __future__ import annotations

from collections.abc import Iterable

from g4seg_engine.errors import EngineError, G4SegError, MissingExtraError

__all__ = [
    "ClassNameError",
    "ClusterError",
    "ConfigError",
    "CorrespondenceError",
    "EngineError",
    "G4SegError",
    "ImageError",
    "InputError",
    "MaskError",
    "MissingExtraError",
    "OutputError",
    "some",
]


class InputError(G4SegError):
    """An input or a setting is not usable."""


class ImageError(InputError):
    """An image is missing, unreadable, too large, or not a uint8 RGB array."""


class MaskError(InputError):
    """A mask is unreadable, of the wrong size, or not a probability."""


class ClassNameError(InputError):
    """A class name is empty, yields no token, or does not fit into the prompt."""


class ConfigError(InputError):
    """A refine setting, a background rule or an argument of the Refiner is outside what is allowed."""


class ClusterError(G4SegError):
    """A Ray cluster cannot be reached, has no room for the workers, or loses them."""


class CorrespondenceError(InputError):
    """An argument of the correspondence search has the wrong shape, dtype, device or values."""


class OutputError(InputError):
    """An output cannot be written where it was asked for."""


def some(names: Iterable[str], most: int = 4) -> str:
    """The first names and how many more there are, for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
