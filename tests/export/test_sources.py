"""Finding models: folders, the hub's offline cache, random architectures, and every way they can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from g4seg_export import architectures, sources
from g4seg_export.architectures import fill_random
from g4seg_export.errors import SourceError
from g4seg_export.hub import Weights
from g4seg_export.sources import load_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copied(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the local model that a test may damage."""
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


@pytest.fixture
def offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def edit(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


def one_line(error: pytest.ExceptionInfo[SourceError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_local_folder_is_read(model_folder: Path, alphas: NDArray[np.float64]) -> None:
    source = load_source(str(model_folder))
    assert (source.id, source.revision, source.licence) == ("mini", "", "Apache-2.0")
    assert source.prediction_type == "v_prediction"
    assert source.vae_scaling_factor == 0.3
    assert (source.dims.square, source.dims.latent_size, source.dims.grid) == (16, 8, 4)
    assert (source.dims.text_width, source.dims.feature_width, source.vocabulary) == (24, 10, 258)
    assert (source.tokens.bos, source.tokens.eos, source.tokens.pad) == (256, 257, 0)
    assert source.recommended == {"timestep": 200, "beta": 0.5}
    assert (source.note, source.dense_mode) == ("a test model", "csa")
    assert source.image_encoder.id == "mini/image_encoder"
    assert not source.stored_half("unet")
    np.testing.assert_allclose(source.alphas_cumprod, alphas, rtol=1e-5)
    assert set(source.weight_hashes()) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "image_encoder/model.safetensors",
    }


def test_half_weights_are_recognised_and_loaded_as_float32(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    source = load_source(str(write_model(tmp_path / "half", half=True)))
    for network in ("text_encoder", "vae_encoder", "unet", "vae_decoder", "image_encoder"):
        assert source.stored_half(network)
    loaders = (source.load_unet, source.vae_encoder.load, source.load_text_encoder, source.load_image_encoder)
    for load in loaders:
        assert {parameter.dtype for parameter in load().parameters()} == {torch.float32}


def test_without_g4seg_json_the_papers_settings_hold(copied: Path) -> None:
    (copied / "g4seg.json").unlink()
    (copied / "README.md").write_text("---\ntags:\n- x\nlicense: openrail++\n---\ntext\n", encoding="utf-8")
    source = load_source(str(copied))
    assert source.recommended == {
        "timestep": 400,
        "beta": 0.8,
        "certainty_filter": [0.2, 0.6],
        "emi_self": 0.3,
        "emi_cross": 1.0,
    }
    assert (source.dense_mode, source.note, source.licence) == ("maskclip", "", "openrail++")


def test_a_slow_tokenizer_folder_is_converted(copied: Path) -> None:
    """SD2.1 has vocab.json and merges.txt, no tokenizer.json, and pads with "!"."""
    (copied / "tokenizer.json").unlink()
    folder = copied / "tokenizer"
    folder.mkdir()
    pieces = ["!", "a", "b", "a</w>", "b</w>", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "!"}
    config = {
        **special,
        "unk_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokens = load_source(str(copied)).tokens
    assert (tokens.bos, tokens.eos, tokens.pad) == (6, 7, 0)
    encoded = Tokenizer.from_buffer(tokens.json).encode("AB", add_special_tokens=False)
    assert encoded.ids == [5]


def test_tokens_can_be_given(copied: Path) -> None:
    edit(copied / "g4seg.json", tokens={"bos": 1, "pad": 9})
    tokens = load_source(str(copied)).tokens
    assert (tokens.bos, tokens.eos, tokens.pad) == (1, 257, 9)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_a_missing_part_is_named(part: str, copied: Path) -> None:
    shutil.rmtree(copied / part)
    with pytest.raises(SourceError, match=f"copy has no {part}/") as error:
        load_source(str(copied))
    one_line(error)


def test_missing_weights_are_named(copied: Path) -> None:
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"copy has no weights unet/diffusion_pytorch_model\.safetensors"):
        load_source(str(copied))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_that_lack_a_tensor_are_refused(part: str, copied: Path) -> None:
    path = next((copied / part).glob("*.safetensors"))
    tensors = load_file(path)
    removed = sorted(tensors)[0]
    del tensors[removed]
    save_file(tensors, path, metadata={"format": "pt"})
    source = load_source(str(copied))
    with pytest.raises(SourceError, match="the weights lack 1 tensors"):
        (source.load_unet if part == "unet" else source.load_text_encoder)()


def test_truncated_weights_give_one_line(copied: Path) -> None:
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match="vae/diffusion_pytorch_model") as error:
        load_source(str(copied))
    one_line(error)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "9 channels"),
        ("unet/config.json", {"_class_name": "FluxTransformer2DModel"}, "its UNet is a Flux"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "sets addition_embed_type"),
        ("unet/config.json", {"cross_attention_dim": 768}, "text of width 768"),
        ("unet/config.json", {"sample_size": None}, "square in g4seg.json"),
        ("vae/config.json", {"shift_factor": 0.1}, "shifted latents"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "'sample' is not supported"),
        ("g4seg.json", {"dense_mode": "first"}, "allowed are last, maskclip, csa"),
        ("g4seg.json", {"square": "big"}, "square is 'big', expected an integer"),
        ("g4seg.json", {"tokens": [1, 2]}, "expected an object of ids"),
        ("g4seg.json", {"tokens": {"bos": "x"}}, "'bos': 'x', expected ids"),
        ("g4seg.json", {"recommended": 3}, "expected an object of refine settings"),
        ("vae/config.json", {"block_out_channels": None}, "block_out_channels is None, expected a list"),
        ("image_encoder/config.json", {"model_type": "siglip"}, "expected a CLIP vision model"),
        ("image_encoder/config.json", {"patch_size": 32}, "32-pixel patches"),
    ],
)
def test_models_of_another_kind_are_refused(file: str, changes: dict[str, Any], message: str, copied: Path) -> None:
    edit(copied / file, **changes)
    with pytest.raises(SourceError, match=message) as error:
        load_source(str(copied))
    one_line(error)


def test_a_broken_config_gives_one_line(copied: Path) -> None:
    (copied / "unet" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match=r"unet/config\.json cannot be read as JSON"):
        load_source(str(copied))


@pytest.mark.parametrize("model", ["no such model", "/no/such/folder", "random:sd15"])
def test_unknown_models_are_refused_with_what_is_allowed(model: str) -> None:
    with pytest.raises(SourceError, match="random:sd21") as error:
        load_source(model)
    one_line(error)


def test_a_revision_needs_a_hub_model(model_folder: Path) -> None:
    with pytest.raises(SourceError, match="belongs to hub models"):
        load_source(str(model_folder), revision="main")


def test_a_hub_model_that_is_not_cached_gives_one_line_offline(offline_cache: Path) -> None:
    assert not offline_cache.exists()
    with pytest.raises(SourceError, match="'owner/name' is not in the local cache") as error:
        load_source("owner/name")
    assert "check the connection, or give a local folder" in one_line(error)


def test_a_hub_model_is_taken_from_the_offline_cache(offline_cache: Path, model_folder: Path) -> None:
    repository = offline_cache / "models--owner--name"
    shutil.copytree(model_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    source = load_source("owner/name")
    assert (source.id, source.revision) == ("owner/name", COMMIT)
    assert source.image_encoder.id == "owner/name/image_encoder"
    assert load_source("owner/name", revision=COMMIT).revision == COMMIT


def test_weight_patterns_leave_other_variants_alone(tmp_path: Path) -> None:
    weights = Weights("unet", "diffusion_pytorch_model", "diffusion_pytorch_model")
    (tmp_path / "unet").mkdir()
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.bin"):
        (tmp_path / "unet" / name).touch()
    assert weights.files(tmp_path) == []
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").touch()
    assert [path.suffix for path in weights.files(tmp_path)] == [".bin"]
    for index in (1, 2):
        (tmp_path / "unet" / f"diffusion_pytorch_model-0000{index}-of-00002.safetensors").touch()
    assert [path.suffix for path in weights.files(tmp_path)] == [".safetensors"] * 2


@pytest.mark.parametrize(
    ("name", "square", "grid", "prediction_type"),
    [("random:sd21-base", 512, 32, "epsilon"), ("random:sd21", 768, 48, "v_prediction")],
)
def test_random_models_have_the_true_sizes(
    name: str,
    square: int,
    grid: int,
    prediction_type: str,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "TINY_WEIGHTS", model_folder)
    source = load_source(name)
    assert (source.dims.square, source.dims.grid, source.dims.latent_size) == (square, grid, square // 8)
    assert (source.dims.text_width, source.dims.feature_width, source.dims.text_length) == (1024, 512, 77)
    assert source.prediction_type == prediction_type
    assert (source.tokens.bos, source.tokens.eos, source.tokens.pad) == (49406, 49407, 0)
    assert source.tokens.json == (model_folder / "tokenizer.json").read_bytes()
    assert source.weight_hashes() == {}


def test_the_random_architectures_have_sd21s_parameter_counts() -> None:
    """865.9 M in the UNet, 83.7 M in the VAE and 340.4 M in the text encoder, as published."""
    with torch.device("meta"):
        modules: dict[str, Any] = {
            "unet": architectures.make_unet(),
            "vae": architectures.make_vae(),
            "text_encoder": architectures.make_text_encoder(),
            "image_encoder": architectures.make_image_encoder(),
        }
    counts = {name: sum(part.numel() for part in module.parameters()) for name, module in modules.items()}
    assert counts == {
        "unet": 865_910_724,
        "vae": 83_653_863,
        "text_encoder": 340_387_840,
        "image_encoder": 86_192_640,
    }
    heads = {part.to_q.out_features // part.heads for part in modules["unet"].modules() if hasattr(part, "to_q")}
    assert heads == {64}


def test_random_weights_keep_the_activations_alive(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    fill_random(unet, 7)
    first = {name: value.clone() for name, value in unet.state_dict().items()}
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 77, 24, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        output = unet(sample, 400, text).sample
    assert 0.1 < output.std() < 10.0
    fill_random(unet, 7)
    assert all(torch.equal(value, first[name]) for name, value in unet.state_dict().items())
