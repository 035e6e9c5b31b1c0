from __future__ import annotations

from dataclasses import replace

import pytest

from g4seg_engine.errors import EngineError
from g4seg_engine.spec import (
    BATCH,
    MAX_BATCH,
    NETWORKS,
    PARITY_TOLERANCE,
    ModelDims,
    NetworkSpec,
    TensorSpec,
    network_specs,
)

SD21 = ModelDims(
    square=512,
    latent_factor=8,
    latent_channels=4,
    text_length=77,
    text_width=1024,
    feature_width=512,
    grid=32,
)

# The table of the design, written out for Stable Diffusion 2.1 at 512.
TABLE = {
    "text_encoder": ["input_ids int64 [B, 77]", "->", "text_embedding float32 [B, 77, 1024]"],
    "vae_encoder": ["image float32 [1, 3, 512, 512]", "->", "latent float32 [1, 4, 64, 64]"],
    "unet": [
        "latent float32 [B, 4, 64, 64]",
        "noise float32 [B, 4, 64, 64]",
        "timestep int64 [B]",
        "text_embedding float32 [B, 77, 1024]",
        "mask float32 [B, 1, 64, 64]",
        "token_mask float32 [B, 77]",
        "emi_weight float32 [B, 2]",
        "->",
        "denoised float32 [B, 4, 64, 64]",
    ],
    "vae_decoder": ["latent float32 [B, 4, 64, 64]", "->", "image float32 [B, 3, 512, 512]"],
    "image_encoder": ["image float32 [B, 3, 512, 512]", "->", "features float32 [B, 512, 32, 32]"],
}


def test_specs_are_the_table_of_the_design() -> None:
    specs = network_specs(SD21)
    assert list(specs) == list(NETWORKS)
    shown = {
        name: [*(tensor.describe() for tensor in spec.inputs), "->", *(t.describe() for t in spec.outputs)]
        for name, spec in specs.items()
    }
    assert shown == TABLE


def test_only_the_vae_encoder_is_fixed_to_one_image() -> None:
    ranges = {name: (spec.min_batch, spec.max_batch) for name, spec in network_specs(SD21).items()}
    assert ranges.pop("vae_encoder") == (1, 1)
    assert set(ranges.values()) == {(1, MAX_BATCH)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": 0}, "grid is 0"),
        ({"square": -8}, "square is -8"),
        ({"text_width": 8.0}, "text_width is 8.0"),
        ({"latent_channels": True}, "latent_channels is True"),
        ({"square": 510}, "square 510 is not a multiple of latent_factor 8"),
    ],
)
def test_wrong_dims_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        replace(SD21, **change)


def test_latent_size() -> None:
    assert SD21.latent_size == 64


@pytest.mark.parametrize(("dtype", "shape"), [("bfloat16", (1,)), ("float32", (0,)), ("int64", ("batch",))])
def test_wrong_tensors_are_refused(dtype: str, shape: tuple[int | str, ...]) -> None:
    TensorSpec("x", "float32", (BATCH, 1))
    with pytest.raises(EngineError, match="tensor x"):
        TensorSpec("x", dtype, shape)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 2)])
def test_wrong_batch_ranges_are_refused(low: int, high: int) -> None:
    with pytest.raises(EngineError, match="batch range"):
        NetworkSpec("x", (), (), low, high, 1e-4)


def test_half_inputs_and_outputs_change_every_float_tensor_and_no_other() -> None:
    for name, spec in network_specs(SD21, io_dtype="float16").items():
        usual = network_specs(SD21)[name]
        for tensor, before in zip((*spec.inputs, *spec.outputs), (*usual.inputs, *usual.outputs), strict=True):
            expected = {"float32": "float16", "int64": "int64"}[before.dtype]
            assert tensor == replace(before, dtype=expected)
        # Rounding the outputs alone costs up to 5e-4.
        assert spec.tolerance >= 5e-4 > usual.tolerance == PARITY_TOLERANCE


def test_the_precision_decides_the_tolerance_alone() -> None:
    usual, half, brain = (network_specs(SD21, precision=precision) for precision in ("fp32", "fp16", "bf16"))
    for name in NETWORKS:
        assert usual[name].tolerance < half[name].tolerance < brain[name].tolerance
        assert usual[name] == replace(half[name], tolerance=usual[name].tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "precision is 'half', expected fp32 or fp16 or bf16"),
        ({"io_dtype": "bfloat16"}, "I/O dtype is 'bfloat16', expected float32 or float16"),
    ],
)
def test_unknown_precisions_and_dtypes_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        network_specs(SD21, **options)
