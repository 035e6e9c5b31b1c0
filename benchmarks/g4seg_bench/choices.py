"""The sides of a comparison as the command line names them: ``openvino:bf16``, ``eager``, ``eager:bf16:own-vae``.

Imports the standard library only.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

EAGER, COMPILE, NONE = "eager", "compile", "none"
BASELINES = (EAGER, COMPILE)
OWN_VAE = "own-vae"
"""Marks a baseline with the model's own autoencoder, whatever replaces it in the engine."""

PRECISIONS = ("fp32", "bf16", "fp16")

AXES: Mapping[str, str] = {"classes": "classes", "batch": "batch_size", "threads": "threads", "square": "square"}
"""What --scaling can vary, and the key that holds its value in a record."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine on a backend.

    Attributes:
        backend: its name.
        compute_precision: what it computes in, if it leaves a choice; None for the backend's own.
    """

    backend: str
    compute_precision: str | None = None

    @property
    def name(self) -> str:
        """What the record calls this side."""
        return ":".join(part for part in (self.backend, self.compute_precision) if part)


@dataclass(frozen=True)
class BaselineChoice:
    """PyTorch with the diffusers modules.

    Attributes:
        kind: one of BASELINES: as they are, or through torch.compile.
        precision: of the modules; None for fp32 on a CPU and fp16 on a GPU.
        own_vae: see OWN_VAE.
    """

    kind: str
    precision: str | None = None
    own_vae: bool = False

    @property
    def name(self) -> str:
        """What the record calls this side."""
        return ":".join(part for part in (self.kind, self.precision, OWN_VAE if self.own_vae else None) if part)


Choice = EngineChoice | BaselineChoice


def engine_choice(text: str) -> EngineChoice:
    """NAME or NAME:PRECISION; whether there is such a backend is asked where one is opened."""
    backend, _, precision = text.partition(":")
    if not backend or text.endswith(":"):
        raise argparse.ArgumentTypeError(f"{text!r}, expected NAME or NAME:PRECISION, such as openvino:bf16")
    return EngineChoice(backend, precision or None)


def baseline_choice(text: str) -> BaselineChoice | None:
    """eager or compile, each with :PRECISION and :own-vae or without; none is None."""
    if text == NONE:
        return None
    kind, *rest = text.split(":")
    own_vae = rest[-1:] == [OWN_VAE]
    precisions = rest[: len(rest) - own_vae]
    if kind not in BASELINES or len(precisions) > 1 or not set(precisions) <= set(PRECISIONS):
        raise argparse.ArgumentTypeError(
            f"{text!r}, allowed: {', '.join((*BASELINES, NONE))}; {EAGER} and {COMPILE} also with "
            f":{'|'.join(PRECISIONS)} and :{OWN_VAE} behind them"
        )
    return BaselineChoice(kind, precisions[0] if precisions else None, own_vae)


def choice(text: str) -> Choice:
    """A side by its name."""
    baseline = baseline_choice(text) if text.partition(":")[0] in BASELINES else None
    return baseline or engine_choice(text)
