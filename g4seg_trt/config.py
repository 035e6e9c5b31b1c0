"""RefineConfig: the settings of one refinement that can change from run to run.

What is fixed when an engine is built (injection mode, sizes, precision) stands in the engine's manifest.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from g4seg_trt.errors import ConfigError

TIMESTEPS = 1000
"""Length of the noise schedule of every Stable Diffusion model."""

MAX_SOFTEN = 0.25
"""Above this share of the longer side a softened mask has lost its shape."""

HARD_MASK_SOFTEN = 0.02
"""The automatic Gaussian sigma of a two-valued mask, as a share of the longer side."""

RESOLUTIONS = ("grid", "pixel")
"""Where correspondences are searched."""

PRESETS: Mapping[str, Mapping[str, Any]] = {"tsss": {"beta": 0.8}, "wsss": {"beta": 0.9}}
"""Settings by source of the coarse mask: text-supervised (tsss) and weakly supervised (wsss) segmentation."""


@dataclass(frozen=True)
class RefineConfig:
    """Settings of a refinement; the defaults are the preset `tsss`.

    Attributes:
        timestep: noise level of the one-step generation, an integer from 0 to 999.
        beta: share of the given probability in the update (eq. 9), 0 to 1; 1 changes nothing.
        certainty_filter: closed interval (low, high) of probabilities that are updated, or None for all.
        emi_self: strength of the mask injection in self-attention (alpha of eq. 5); 0 turns it off.
        emi_cross: the same in cross-attention.
        seed: seed of the noise, an integer from 0 to 2**64 - 1.
        soften: sigma of the Gaussian that softens a mask, as a share of the image's longer side, 0 to 0.25.
            None softens masks of 0 and one other value by 0.02 and leaves the others alone.
        resolution: where correspondences are searched: "grid", the feature grid, or "pixel", the pixels of the
            model's square that the certainty filter lets through.
        radius: how far from its own place a match may be, along either axis: a share of the side of the grid or the
            square, above 0 and up to 1. None for any distance.

    Raises:
        ConfigError: if a value is outside what is allowed.
    """

    timestep: int = 400
    beta: float = 0.8
    certainty_filter: tuple[float, float] | None = (0.2, 0.6)
    emi_self: float = 0.3
    emi_cross: float = 1.0
    seed: int = 0
    soften: float | None = None
    resolution: str = "grid"
    radius: float | None = None

    def __post_init__(self) -> None:
        self._integer("timestep", TIMESTEPS - 1)
        self._integer("seed", 2**64 - 1)
        self._number("beta", 0.0, 1.0)
        self._number("emi_self")
        self._number("emi_cross")
        if self.resolution not in RESOLUTIONS:
            raise ConfigError(f"resolution is {self.resolution!r}, allowed: {', '.join(RESOLUTIONS)}")
        if self.soften is not None:
            self._number("soften", 0.0, MAX_SOFTEN)
        if self.radius is not None:
            self._number("radius", 0.0, 1.0, above=True)
        if self.certainty_filter is not None:
            object.__setattr__(self, "certainty_filter", _interval(self.certainty_filter))

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> RefineConfig:
        """The config with these settings (as read from JSON) in place of the defaults.

        Raises:
            ConfigError: for an unknown name or a value that is not allowed.
        """
        return cls(**_known(settings))

    def merged(self, settings: Mapping[str, Any]) -> RefineConfig:
        """A copy with these settings in place of its own; raises as `from_mapping`."""
        return replace(self, **_known(settings))

    def to_mapping(self) -> dict[str, Any]:
        """A mapping that JSON can hold and `from_mapping` takes back."""
        settings = asdict(self)
        if self.certainty_filter is not None:
            settings["certainty_filter"] = list(self.certainty_filter)
        return settings

    def _integer(self, name: str, high: int) -> None:
        object.__setattr__(self, name, _integer(name, getattr(self, name), 0, high))

    def _number(self, name: str, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> None:
        object.__setattr__(self, name, _number(name, getattr(self, name), low, high, above=above))


def resolve_config(
    settings: Mapping[str, Any] | None = None,
    *,
    preset: str | None = None,
    recommended: Mapping[str, Any] | None = None,
) -> RefineConfig:
    """The config from its sources, strongest first: settings, preset, the engine's recommended ones, `tsss`.

    Args:
        settings: what the caller asked for by name.
        preset: a name from PRESETS.
        recommended: `recommended` of an engine's manifest.

    Raises:
        ConfigError: for an unknown preset or setting, or a value that is not allowed.
    """
    config = RefineConfig.from_mapping(PRESETS["tsss"]).merged(recommended or {})
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"unknown preset {preset!r}, allowed: {', '.join(PRESETS)}")
        config = config.merged(PRESETS[preset])
    return config.merged(settings or {})


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    allowed = [field.name for field in fields(RefineConfig)]
    for name in settings:
        if name not in allowed:
            raise ConfigError(f"unknown refine setting {name!r}, allowed: {', '.join(allowed)}")
    return dict(settings)


def _integer(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        number = int(value)
        if low <= number <= high:
            return number
    raise ConfigError(f"{name} is {value!r}, allowed: an integer from {low} to {high}")


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    """A finite number from `low`, or with `above` above it, to `high`."""
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond every float
            number = math.inf
        if math.isfinite(number) and low <= number <= high and not (above and number == low):
            return number
    first = f"above {low:g} and up" if above else f"from {low:g}"
    allowed = "a finite number" if math.isinf(low) else f"a number {first} to {high:g}"
    raise ConfigError(f"{name} is {value!r}, allowed: {allowed}")


def _interval(value: object) -> tuple[float, float]:
    if isinstance(value, (str, bytes)) or not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ConfigError(f"certainty_filter is {value!r}, allowed: two numbers from 0 to 1, or none")
    low, high = (_number("certainty_filter", bound, 0.0, 1.0) for bound in value)
    if low > high:
        raise ConfigError(f"certainty_filter is {low:g} to {high:g}, allowed: the lower bound first")
    return low, high
