"""A small engine without trained weights: numpy networks that keep the contract of g4seg_engine.spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace, Sequence
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreSequence

from g4seg_engine.runner import Runner
from g4seg_engine.spec import ModelDims, NetworkSpec, network_specs
from g4seg_trt.chain import HostChain
from g4seg_trt.config import RefineConfig
from g4seg_trt.prompt import PromptEncoder
from g4seg_trt.refiner import Refiner

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

BOS, EOS, PAD, LENGTH = 900, 901, 0, 24  # prompts of the numpy engine: 22 tokens beside BOS and EOS
DIMS = ModelDims(
    square=32, latent_factor=4, latent_channels=3, text_length=LENGTH, text_width=6, feature_width=7, grid=8
)


def cells(values: Array, side: int) -> Array:
    """[..., H, W] -> [..., side, side] by the mean of equal cells."""
    step = values.shape[-1] // side
    means: Array = values.reshape(*values.shape[:-2], side, step, side, step).mean(axis=(-3, -1), dtype=np.float32)
    return means


def text_encoder(inputs: Mapping[str, Array]) -> dict[str, Array]:
    waves = np.arange(1, DIMS.text_width + 1, dtype=np.float32)
    return {"text_embedding": np.sin(inputs["input_ids"][..., None].astype(np.float32) * waves)}


def vae_encoder(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {"latent": cells(inputs["image"], DIMS.latent_size) * np.float32(2) - np.float32(1)}


def unet(inputs: Mapping[str, Array]) -> dict[str, Array]:
    words = inputs["text_embedding"] * inputs["token_mask"][..., None]
    colour = words.sum(axis=1, dtype=np.float32)[:, :3, None, None]
    pull = inputs["mask"] * (inputs["emi_weight"].sum(axis=1)[:, None, None, None])
    level = (inputs["timestep"].astype(np.float32) / np.float32(1000))[:, None, None, None]
    return {"denoised": inputs["latent"] + np.float32(0.3) * level * inputs["noise"] + np.float32(0.1) * pull * colour}


def vae_decoder(inputs: Mapping[str, Array]) -> dict[str, Array]:
    image = (inputs["latent"] + np.float32(1)) / np.float32(2)
    factor = DIMS.latent_factor
    return {"image": np.clip(image, 0, 1).repeat(factor, axis=-2).repeat(factor, axis=-1)}


def image_encoder(inputs: Mapping[str, Array]) -> dict[str, Array]:
    means = cells(inputs["image"], DIMS.grid)
    squares = cells(inputs["image"] ** 2, DIMS.grid)
    features = np.concatenate([means, squares, np.full_like(means[:, :1], 0.2)], axis=1)
    return {"features": features / np.sqrt((features**2).sum(axis=1, keepdims=True))}


NETWORKS: dict[str, Callable[[Mapping[str, Array]], dict[str, Array]]] = {
    "text_encoder": text_encoder,
    "vae_encoder": vae_encoder,
    "unet": unet,
    "vae_decoder": vae_decoder,
    "image_encoder": image_encoder,
}


class NumpyRunner:
    """A Runner that checks what it is given against the spec and records it."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self.calls: list[dict[str, Array]] = []
        self.closed = False
        self.replace: Callable[[dict[str, Array]], dict[str, Array]] | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        batch = next(iter(inputs.values())).shape[0]
        assert set(inputs) == {tensor.name for tensor in self.spec.inputs}
        assert self.spec.min_batch <= batch <= self.spec.max_batch
        for tensor in self.spec.inputs:
            assert inputs[tensor.name].dtype == tensor.dtype, tensor.name
            assert inputs[tensor.name].shape == tuple(batch if n == "B" else n for n in tensor.shape), tensor.name
        self.calls.append(dict(inputs))
        outputs = NETWORKS[self.spec.name](inputs)
        for tensor in self.spec.outputs:
            assert outputs[tensor.name].dtype == tensor.dtype, tensor.name
        return outputs if self.replace is None else self.replace(outputs)


def clip_tokenizer() -> Tokenizer:
    """Byte-level BPE laid out like CLIP's: lower case, end-of-word mark, every byte a token."""
    symbols = sorted(ByteLevel.alphabet())
    symbols += [symbol + "</w>" for symbol in symbols]
    pairs = [("a", "t</w>"), ("c", "at</w>"), ("p", "h"), ("ph", "o"), ("o", "f</w>")]
    symbols += [first + second for first, second in pairs]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    vocabulary["<|endoftext|>"] = EOS
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=pairs, end_of_word_suffix="</w>"))
    tokenizer.normalizer = Sequence([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = PreSequence(
        [
            Split(words, behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    clip_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="session")
def clip_like() -> Tokenizer:
    return clip_tokenizer()


@pytest.fixture(scope="session")
def dims() -> ModelDims:
    return DIMS


@pytest.fixture(scope="session")
def prompts(tokenizer_path: Path) -> PromptEncoder:
    return PromptEncoder(tokenizer_path, bos=BOS, eos=EOS, pad=PAD, length=LENGTH)


@pytest.fixture
def runners() -> dict[str, NumpyRunner]:
    return {name: NumpyRunner(spec) for name, spec in network_specs(DIMS).items()}


@pytest.fixture
def make_refiner(runners: dict[str, NumpyRunner], prompts: PromptEncoder) -> Callable[..., Refiner]:
    """make_refiner(batch_size, **settings of RefineConfig) -> Refiner on the numpy networks."""

    def make(batch_size: int = 1, **settings: Any) -> Refiner:
        networks: dict[str, Runner] = {**runners}
        return Refiner(HostChain(networks, DIMS, batch_size), prompts, config=RefineConfig(**settings))

    return make


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., tuple[npt.NDArray[np.uint8], Floats]]:
    """make_scene(height, width, shift): a bright disc on a gradient, and a smeared mask of it, shifted."""
    return scene


def scene(height: int, width: int, shift: float = 0.08) -> tuple[npt.NDArray[np.uint8], Floats]:
    rows = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    columns = (np.arange(width, dtype=np.float32)[None] + 0.5) / width
    radius = np.sqrt((rows - 0.5) ** 2 + (columns - 0.45) ** 2)
    disc = (radius < 0.25)[..., None]
    ground = np.stack([rows + 0 * columns, columns + 0 * rows, 0.4 + 0 * radius], axis=-1)
    image = np.where(disc, np.array([0.9, 0.8, 0.1], dtype=np.float32), ground * 0.5)
    blurred = 1 / (1 + np.exp((np.sqrt((rows - 0.5) ** 2 + (columns - 0.45 - shift) ** 2) - 0.22) * 18))
    return np.rint(image * 255).astype(np.uint8), blurred.astype(np.float32)
