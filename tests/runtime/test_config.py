"""RefineConfig: defaults, limits, JSON round trip, precedence of its sources."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from g4seg_trt.config import PRESETS, RESOLUTIONS, RefineConfig, resolve_config
from g4seg_trt.errors import ConfigError, InputError

shares = st.floats(0, 1, allow_nan=False)
configs = st.builds(
    RefineConfig,
    timestep=st.integers(0, 999),
    beta=shares,
    certainty_filter=st.none() | st.tuples(shares, shares).map(lambda pair: (min(pair), max(pair))),
    emi_self=st.floats(-1e6, 1e6),
    emi_cross=st.floats(-1e6, 1e6),
    seed=st.integers(0, 2**64 - 1),
    soften=st.none() | st.floats(0, 0.25),
    resolution=st.sampled_from(RESOLUTIONS),
    radius=st.none() | st.floats(0, 1, exclude_min=True),
)


def test_the_defaults_are_the_paper_s() -> None:
    config = RefineConfig()
    assert (config.timestep, config.beta, config.certainty_filter) == (400, 0.8, (0.2, 0.6))
    assert (config.emi_self, config.emi_cross, config.seed) == (0.3, 1.0, 0)
    assert config.soften is None
    assert config.resolution == "grid"
    assert config.radius is None
    assert resolve_config(preset="wsss").beta == 0.9


@given(configs)
def test_json_round_trip(config: RefineConfig) -> None:
    assert RefineConfig.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timestep", -1),
        ("timestep", 1000),
        ("timestep", 400.0),
        ("timestep", True),
        ("timestep", "400"),
        ("timestep", None),
        ("beta", -0.01),
        ("beta", 1.01),
        ("beta", float("nan")),
        ("beta", "0.8"),
        ("beta", 10**400),
        ("certainty_filter", (0.6, 0.2)),
        ("certainty_filter", (0.2,)),
        ("certainty_filter", (0.2, 1.2)),
        ("certainty_filter", (0.2, float("nan"))),
        ("certainty_filter", "01"),
        ("certainty_filter", 0.2),
        ("emi_self", float("inf")),
        ("emi_cross", float("nan")),
        ("emi_cross", None),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 0.5),
        ("soften", -0.1),
        ("soften", 0.3),
        ("radius", 0),
        ("radius", 1.01),
        ("radius", -0.1),
        ("radius", float("nan")),
        ("radius", "0.1"),
        ("radius", True),
        ("resolution", "cell"),
        ("resolution", None),
        ("resolution", ["grid"]),
    ],
)
def test_values_that_are_not_allowed_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        RefineConfig.from_mapping({name: value})
    assert "allowed" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError)


def test_an_unknown_setting_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'betta'.*timestep, beta, certainty_filter"):
        RefineConfig.from_mapping({"betta": 0.5})


def test_numpy_numbers_are_numbers() -> None:
    config = RefineConfig(timestep=np.int64(7), beta=np.float32(0.5), seed=np.uint32(3))  # type: ignore[arg-type]
    assert json.dumps(config.to_mapping())
    assert (config.timestep, config.beta, config.seed) == (7, 0.5, 3)


def test_precedence_is_caller_preset_engine_default() -> None:
    recommended = {"timestep": 200, "beta": 0.5, "certainty_filter": [0.1, 0.7]}
    assert resolve_config() == RefineConfig()
    assert resolve_config(recommended=recommended).beta == 0.5
    with_preset = resolve_config(preset="wsss", recommended=recommended)
    assert (with_preset.beta, with_preset.timestep, with_preset.certainty_filter) == (0.9, 200, (0.1, 0.7))
    by_name = resolve_config({"beta": 0.1, "certainty_filter": None}, preset="wsss", recommended=recommended)
    assert (by_name.beta, by_name.timestep, by_name.certainty_filter) == (0.1, 200, None)


def test_an_unknown_preset_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'voc'.*tsss, wsss"):
        resolve_config(preset="voc")
    assert set(PRESETS) == {"tsss", "wsss"}
