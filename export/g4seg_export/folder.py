"""A diffusers folder, or a CLIP folder: its configuration, its tokenizer, its modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from tokenizers import Tokenizer
from transformers import AutoTokenizer, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from g4seg_export.autoencoder import AutoencoderFolder
from g4seg_export.checkpoint import find_weights, load_module, loading, quiet_libraries, read_json, stored_half
from g4seg_export.errors import SourceError
from g4seg_export.hub import Weights
from g4seg_export.modules import TextModel, UnetModel, VisionModel

MODEL_WEIGHTS: Mapping[str, Weights] = {
    "unet": Weights("unet", "diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": Weights("vae", "diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": Weights("text_encoder", "model", "pytorch_model"),
}
MODEL_FILES = (
    *(f"{name}/config.json" for name in MODEL_WEIGHTS),
    "scheduler/scheduler_config.json",
    "tokenizer/*",
    "tokenizer.json",
    "g4seg.json",
    "README.md",
)
IMAGE_ENCODER_FILES = ("config.json",)
IMAGE_ENCODER_WEIGHTS = Weights("", "model", "pytorch_model")

# What may be set in a UNet's configuration only by models of another kind.
_OTHER_UNETS = (
    "addition_embed_type",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "class_embed_type",
    "time_cond_proj_dim",
)
_SPECIAL_TOKENS = {"bos": "<|startoftext|>", "eos": "<|endoftext|>"}


@dataclass(frozen=True)
class Tokens:
    """The tokenizer.json of a model, as bytes, and the ids that frame and pad a prompt."""

    json: bytes
    bos: int
    eos: int
    pad: int


class ModelFolder:
    """A Stable Diffusion model as diffusers saves it.

    Args:
        root: the folder.
        name: what messages call it.

    Attributes:
        autoencoder: in vae/.
        scheduler_config: of the scheduler.
        extra: g4seg.json, or empty.

    Raises:
        SourceError: if a part is missing or the model is of another kind.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._root = root
        self._name = name
        self._configs = {part: self._config(part) for part in MODEL_WEIGHTS}
        self.scheduler_config = read_json(root / "scheduler" / "scheduler_config.json", name)
        extra = root / "g4seg.json"
        self.extra: dict[str, Any] = _read_extra(extra, name) if extra.is_file() else {}
        own = {part: weights for part, weights in MODEL_WEIGHTS.items() if part != "vae"}
        self._files = {part: find_weights(weights, root, name) for part, weights in own.items()}
        self.autoencoder = AutoencoderFolder(root / "vae", f"{name}/vae")
        self._check_kind()

    @property
    def weight_files(self) -> Mapping[str, Path]:
        """Of the UNet and the text encoder."""
        return {str(path.relative_to(self._root)): path for paths in self._files.values() for path in paths}

    @property
    def half(self) -> Mapping[str, bool]:
        return {part: stored_half(paths) for part, paths in self._files.items()}

    @property
    def vocabulary(self) -> int:
        return int(self._configs["text_encoder"].get("vocab_size", 49408))

    @property
    def sizes(self) -> dict[str, int]:
        """The entries of ModelDims that do not depend on the image encoder."""
        factor = self.autoencoder.factors["vae_encoder"]
        text = self._configs["text_encoder"]
        return {
            "square": int(self.extra.get("square", self._configs["unet"]["sample_size"] * factor)),
            "latent_factor": factor,
            "latent_channels": self.autoencoder.latent_channels,
            "text_length": text.get("max_position_embeddings", 77),
            "text_width": text.get("hidden_size", 512),
        }

    @cached_property
    def licence(self) -> str:
        """From g4seg.json, else from the front matter of README.md, else "unknown"."""
        if "licence" in self.extra:
            return str(self.extra["licence"])
        card = self._root / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        found = re.match(r"---\n(?:.*\n)*?license:[ \t]*(\S+)", text)
        return found.group(1) if found else "unknown"

    @cached_property
    def tokens(self) -> Tokens:
        own = self._root / "tokenizer.json"
        given = self.extra.get("tokens", {})
        if own.is_file():
            return read_tokens(own, self._name, given)
        folder = self._root / "tokenizer"
        if not folder.is_dir():
            raise SourceError(f"{self._name} has no tokenizer: expected tokenizer.json or tokenizer/")
        with quiet_libraries(), loading(self._name, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        data = tokenizer.backend_tokenizer.to_str().encode()
        ids = {key: given.get(key, getattr(tokenizer, f"{key}_token_id")) for key in ("bos", "eos", "pad")}
        for key, value in ids.items():
            if value is None:
                raise SourceError(f"{self._name}: its tokenizer has no {key} token: give tokens in g4seg.json")
        return Tokens(data, **ids)

    def load_unet(self) -> UnetModel:
        return self._load(UNet2DConditionModel.from_pretrained, "unet")

    def load_text_encoder(self) -> TextModel:
        return self._load(CLIPTextModel.from_pretrained, "text_encoder")

    def _load(self, loader: Callable[..., Any], part: str) -> Any:
        return load_module(loader, self._root / part, f"{self._name}/{part}")

    def _config(self, part: str) -> dict[str, Any]:
        if not (self._root / part).is_dir():
            expected = ", ".join(f"{name}/" for name in (*MODEL_WEIGHTS, "scheduler"))
            raise SourceError(f"{self._name} has no {part}/: a diffusers folder holds {expected}")
        return read_json(self._root / part / "config.json", self._name)

    def _check_kind(self) -> None:
        unet, text = self._configs["unet"], self._configs["text_encoder"]
        kind = unet.get("_class_name", "UNet2DConditionModel")
        set_keys = [key for key in _OTHER_UNETS if unet.get(key) is not None]
        if kind != "UNet2DConditionModel" or set_keys:
            detail = f"its UNet is a {kind}" if not set_keys else f"its UNet sets {', '.join(set_keys)}"
            raise SourceError(f"{self._name} is not a Stable Diffusion 1 or 2 model: {detail}")
        if unet.get("in_channels", 4) != self.autoencoder.latent_channels:
            raise SourceError(
                f"{self._name}: the UNet takes {unet.get('in_channels')} channels but the VAE's latents have "
                f"{self.autoencoder.latent_channels} (inpainting and other conditioned models are not supported)"
            )
        if unet.get("cross_attention_dim") != text.get("hidden_size"):
            raise SourceError(
                f"{self._name}: the UNet expects text of width {unet.get('cross_attention_dim')}, "
                f"the text encoder gives {text.get('hidden_size')}"
            )
        if not isinstance(unet.get("sample_size"), int) and "square" not in self.extra:
            raise SourceError(f"{self._name}: unet/config.json has no square sample_size: give square in g4seg.json")


@dataclass(frozen=True)
class VisionFolder:
    """A CLIP vision model with projection in a folder (a whole CLIP model does, its text half is ignored).

    Attributes:
        folder: holds config.json and the weights.
        id: what manifest and messages call it.
        prefix: put before the file names in the manifest.
    """

    folder: Path
    id: str
    prefix: str

    def __post_init__(self) -> None:
        _ = self._config, self._files

    @property
    def feature_width(self) -> int:
        return int(self._config.projection_dim)

    @property
    def patch(self) -> int:
        return int(self._config.patch_size)

    @property
    def weight_files(self) -> Mapping[str, Path]:
        return {self.prefix + path.name: path for path in self._files}

    @property
    def half(self) -> bool:
        return stored_half(self._files)

    def load(self) -> VisionModel:
        return load_module(CLIPVisionModelWithProjection.from_pretrained, self.folder, self.id)

    @cached_property
    def _files(self) -> list[Path]:
        return find_weights(IMAGE_ENCODER_WEIGHTS, self.folder, self.id)

    @cached_property
    def _config(self) -> Any:
        kind = read_json(self.folder / "config.json", self.id).get("model_type")
        if kind not in ("clip", "clip_vision_model"):
            raise SourceError(f"image encoder {self.id} is a {kind!r} model: expected a CLIP vision model")
        with quiet_libraries(), loading(self.id, "config.json"):
            return CLIPVisionConfig.from_pretrained(self.folder, local_files_only=True)


def read_tokens(path: Path, name: str, ids: Mapping[str, int]) -> Tokens:
    """A tokenizer.json and its special ids: those given, else CLIP's BOS and EOS by name, and 0 to pad (SD2).

    Raises:
        SourceError: if the file cannot be read or an id is known neither way.
    """
    data = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(data)
    except (ValueError, UnicodeDecodeError) as error:
        raise SourceError(f"{name}: {path.name} is not a tokenizer file") from error
    known: dict[str, int] = {"pad": 0, **ids}
    for key, token in _SPECIAL_TOKENS.items():
        found = tokenizer.token_to_id(token)
        if key not in known:
            if found is None:
                raise SourceError(f"{name}: the tokenizer has no {token}: give tokens in g4seg.json")
            known[key] = found
    return Tokens(data, known["bos"], known["eos"], known["pad"])


def _read_extra(path: Path, name: str) -> dict[str, Any]:
    """g4seg.json, whose keys people write by hand."""
    extra = read_json(path, name)
    for key, kind, expected in (
        ("square", int, "an integer"),
        ("tokens", dict, "an object of ids"),
        ("recommended", dict, "an object of refine settings"),
    ):
        if key in extra and type(extra[key]) is not kind:
            raise SourceError(f"{name}: g4seg.json: {key} is {extra[key]!r}, expected {expected}")
    for key, value in extra.get("tokens", {}).items():
        if key not in ("bos", "eos", "pad") or type(value) is not int:
            raise SourceError(f"{name}: g4seg.json: tokens has {key!r}: {value!r}, expected ids of bos, eos and pad")
    return extra
