"""A miniature Stable Diffusion and CLIP with seeded random weights, saved as a diffusers folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from g4seg_engine.manifest import Manifest
from g4seg_export.architectures import fill_random
from g4seg_export.engine import export_engine

# The libraries' own annotations are too partial for strict checking.
_diffusers: Any = diffusers
_transformers: Any = transformers

TEXT_WIDTH = 24
LATENT = 8
SQUARE = 16
VOCABULARY = 258


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def alphas() -> NDArray[np.float64]:
    """SD's alpha-bar table in float64, from its definition."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return np.cumprod(1.0 - betas, dtype=np.float64).astype(np.float64)


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., Any]:
    """Makes UNets with self- and cross-attention at two resolutions: 8 (heads 4 wide) and 4 (6 wide)."""

    def make(*, upcast_attention: bool = False, **options: Any) -> Any:
        unet = _diffusers.UNet2DConditionModel(
            sample_size=LATENT,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 12),
            layers_per_block=1,
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=(2, 2),
            use_linear_projection=True,
            norm_num_groups=4,
            upcast_attention=upcast_attention,
            **options,
        )
        fill_random(unet, 1)
        return unet.eval()

    return make


@pytest.fixture(scope="session")
def make_vision() -> Callable[..., Any]:
    """Makes two-block CLIP vision models with two heads of 8."""

    def make(*, image_size: int = SQUARE, patch_size: int = 4) -> Any:
        config = _transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=patch_size,
            projection_dim=10,
        )
        model = _transformers.CLIPVisionModelWithProjection(config)
        fill_random(model, 4)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def vae() -> Any:
    model = _diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=SQUARE,
        scaling_factor=0.3,
    )
    fill_random(model, 2)
    return model.eval()


@pytest.fixture(scope="session")
def text_encoder() -> Any:
    config = _transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act="gelu",
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=0,
    )
    model = _transformers.CLIPTextModel(config)
    fill_random(model, 3)
    return model.eval()


@pytest.fixture(scope="session")
def write_model(
    make_unet: Callable[..., Any], make_vision: Callable[..., Any], vae: Any, text_encoder: Any
) -> Callable[..., Path]:
    """Writes the miniature model as a diffusers folder with an image encoder of its own."""

    def write(root: Path, *, prediction_type: str = "v_prediction", half: bool = False) -> Path:
        parts = {
            "unet": make_unet(),
            "vae": vae,
            "text_encoder": text_encoder,
            "image_encoder": make_vision(),
        }
        for name, module in parts.items():
            (copy.deepcopy(module).half() if half else module).save_pretrained(root / name)
        scheduler = _diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
        )
        scheduler.save_pretrained(root / "scheduler")
        _write_tokenizer(root / "tokenizer.json")
        extra = {
            "recommended": {"timestep": 200, "beta": 0.5},
            "note": "a test model",
            "licence": "Apache-2.0",
            "dense_mode": "csa",
        }
        (root / "g4seg.json").write_text(json.dumps(extra), encoding="utf-8")
        return root

    return write


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]) -> Path:
    """A local model: v-prediction, float32 weights."""
    return write_model(tmp_path_factory.mktemp("model") / "mini")


@pytest.fixture(scope="session")
def half_folder(tmp_path_factory: pytest.TempPathFactory, write_model: Callable[..., Path]) -> Path:
    """The same with weights stored in half precision."""
    return write_model(tmp_path_factory.mktemp("model") / "half", half=True)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, half_folder: Path) -> tuple[Path, Manifest]:
    """The engine directory of the half model, and its manifest."""
    output = tmp_path_factory.mktemp("engines") / "mini"
    return output, export_engine(str(half_folder), output, progress=False)


def _write_tokenizer(path: Path) -> None:
    """Every byte its own token, then BOS and EOS."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {"<|startoftext|>": VOCABULARY - 2, "<|endoftext|>": VOCABULARY - 1}
    tokenizer: Any = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.save(str(path))
