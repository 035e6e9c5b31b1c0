"""Where a model's weights come from: a hub id, a local diffusers folder, or a random architecture.

A folder holds unet/, vae/, text_encoder/ and scheduler/ as diffusers writes them, a tokenizer (tokenizer/ or
tokenizer.json), optionally image_encoder/ (a CLIP vision model with projection) and g4seg.json::

    {"recommended": {refine settings}, "note": "one line", "licence": "...", "dense_mode": "csa",
     "square": 64, "tokens": {"bos": 1, "eos": 2, "pad": 0}}

with every key optional.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from diffusers import DDPMScheduler
from numpy.typing import NDArray

from g4seg_engine.manifest import file_sha256
from g4seg_engine.records import PREDICTION_TYPES
from g4seg_engine.spec import ModelDims
from g4seg_export import architectures
from g4seg_export.autoencoder import AutoencoderSource, RandomAutoencoder, choose_halves
from g4seg_export.errors import SourceError
from g4seg_export.folder import (
    IMAGE_ENCODER_FILES,
    IMAGE_ENCODER_WEIGHTS,
    MODEL_FILES,
    MODEL_WEIGHTS,
    ModelFolder,
    Tokens,
    VisionFolder,
    read_tokens,
)
from g4seg_export.hub import fetch_snapshot
from g4seg_export.image_encoder import DENSE_MODES, encoder_grid
from g4seg_export.modules import TextModel, UnetModel, VisionModel

DEFAULT_IMAGE_ENCODER = "openai/clip-vit-base-patch16"
RANDOM_IMAGE_ENCODER = "random:vit-b16"
DEFAULT_DENSE_MODE = "maskclip"
TINY_WEIGHTS = Path(__file__).parent / "tiny" / "weights"

# The paper's settings; a model may carry its own in g4seg.json.
PAPER_SETTINGS: Mapping[str, Any] = {
    "timestep": 400,
    "beta": 0.8,
    "certainty_filter": [0.2, 0.6],
    "emi_self": 0.3,
    "emi_cross": 1.0,
}

# The UNet halves its latents three times, and the VAE the image as often.
SQUARE_STEP = 64
SMALLEST_SQUARE = 128

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_RANDOM_NOTE = "random weights: for checks of speed and memory, the pictures mean nothing"


@dataclass(frozen=True)
class _RandomModel:
    square: int
    prediction_type: str
    upcast_attention: bool


RANDOM_MODELS: Mapping[str, _RandomModel] = {
    "random:sd21-base": _RandomModel(512, "epsilon", upcast_attention=False),
    "random:sd21": _RandomModel(768, "v_prediction", upcast_attention=True),
}


class ImageEncoderSource(Protocol):
    """One image encoder: what it is called, its sizes, its files and how to load it."""

    @property
    def id(self) -> str: ...
    @property
    def feature_width(self) -> int: ...
    @property
    def patch(self) -> int: ...
    @property
    def weight_files(self) -> Mapping[str, Path]: ...
    @property
    def half(self) -> bool: ...
    def load(self) -> VisionModel: ...


@dataclass(frozen=True)
class Source:
    """A model to export. Modules are loaded by the load methods, one at a time, and not kept.

    Attributes:
        id: hub id, folder name, "tiny" or "random:NAME".
        revision: the commit of a hub model, else "".
        licence: as the model states it, else "unknown".
        weight_files: of UNet and text encoder: names in the model, with their paths; none for random weights.
        prediction_type: "epsilon" or "v_prediction".
        vae_scaling_factor: of the model's own autoencoder: latent = posterior mean x this.
        alphas_cumprod: float64 [T], alpha-bar per timestep.
        dims: the sizes of the engine.
        tokens: the tokenizer file and its special ids.
        vocabulary: token ids that the text encoder takes are below this.
        vae_encoder: the autoencoder whose encoder is used.
        vae_decoder: the autoencoder whose decoder is used; the same object where it is the same one.
        image_encoder: the source of the image encoder.
        dense_mode: the model's own choice of dense mode.
        recommended: refine settings for the manifest.
        note: a line printed on use, or "".
        half: for "unet" and "text_encoder", whether the weights are stored in half precision.
    """

    id: str
    revision: str
    licence: str
    weight_files: Mapping[str, Path]
    prediction_type: str
    vae_scaling_factor: float
    alphas_cumprod: NDArray[np.float64]
    dims: ModelDims
    tokens: Tokens
    vocabulary: int
    vae_encoder: AutoencoderSource
    vae_decoder: AutoencoderSource
    image_encoder: ImageEncoderSource
    dense_mode: str
    recommended: Mapping[str, Any]
    note: str
    half: Mapping[str, bool]
    load_unet: Callable[[], UnetModel]
    load_text_encoder: Callable[[], TextModel]

    def load_image_encoder(self) -> VisionModel:
        return self.image_encoder.load()

    def weight_hashes(self) -> dict[str, str]:
        """The sha256 of every weight file, by its name in the model; reads them all.

        Those of other autoencoders than the model's own are under vae_encoder/ and vae_decoder/.
        """
        files = {**self.weight_files, **self.image_encoder.weight_files}
        for network, autoencoder in (("vae_encoder", self.vae_encoder), ("vae_decoder", self.vae_decoder)):
            folder = network if autoencoder.option else "vae"
            files |= {f"{folder}/{name}": path for name, path in autoencoder.weight_files.items()}
        return {name: file_sha256(path) for name, path in sorted(files.items())}

    def stored_half(self, network: str) -> bool:
        """Whether the weights of one of the engine's five networks are stored in half precision."""
        if network == "image_encoder":
            return self.image_encoder.half
        if network in ("vae_encoder", "vae_decoder"):
            return (self.vae_encoder if network == "vae_encoder" else self.vae_decoder).half
        return self.half.get(network, False)


def load_source(
    model: str,
    *,
    image_encoder: str | None = None,
    revision: str | None = None,
    vae_encoder: str | None = None,
    vae_decoder: str | None = None,
    square: int | None = None,
) -> Source:
    """Find a model and read its configuration; its weights are loaded later.

    Args:
        model: hub id ("owner/name"), a diffusers folder, "tiny", or one of RANDOM_MODELS.
        image_encoder: hub id or folder of a CLIP vision model, or "random:vit-b16"; None for the model's own,
            else CLIP ViT-B/16.
        revision: branch, tag or commit of a hub model.
        vae_encoder: another autoencoder whose encoder to use: hub id (OWNER/NAME, or OWNER/NAME@REVISION), folder or
            "random:taesd"; None for the model's own.
        vae_decoder: likewise for the decoder.
        square: side of the model square in pixels; None for the model's own.

    Raises:
        SourceError: if it cannot be found, lacks a part, or is of a kind that is not supported; or for a square that
            the networks cannot take.
    """
    if square is not None and (square < SMALLEST_SQUARE or square % SQUARE_STEP):
        raise SourceError(f"square {square}: expected a multiple of {SQUARE_STEP} from {SMALLEST_SQUARE} on")
    source = _find_source(model, image_encoder, revision)
    first, second = choose_halves(source.vae_encoder, source.id, vae_encoder, vae_decoder)
    source = replace(source, vae_encoder=first, vae_decoder=second)
    if square is None:
        return source
    # No network's weights depend on it: all are convolutions, or interpolate their positions.
    grid = encoder_grid(square, source.image_encoder.patch)
    return replace(source, dims=replace(source.dims, square=square, grid=grid))


def _find_source(model: str, image_encoder: str | None, revision: str | None) -> Source:
    if revision is not None and (model == "tiny" or model.startswith("random:") or Path(model).is_dir()):
        raise SourceError(f"--revision belongs to hub models, and {model!r} is not one")
    if model.startswith("random:"):
        return _random_source(model, image_encoder)
    if model == "tiny":
        if not TINY_WEIGHTS.is_dir():
            raise SourceError("the weights of 'tiny' are not installed with the package: use a clone of the repository")
        return _folder_source(TINY_WEIGHTS, "tiny", "", image_encoder)
    if Path(model).is_dir():
        return _folder_source(Path(model), Path(model).resolve().name, "", image_encoder)
    if not _HUB_ID.fullmatch(model):
        names = ", ".join(("tiny", *RANDOM_MODELS))
        raise SourceError(f"no model {model!r}: expected an existing folder, a hub id (OWNER/NAME), or one of {names}")
    snapshot = fetch_snapshot(model, revision, MODEL_FILES, tuple(MODEL_WEIGHTS.values()))
    return _folder_source(snapshot, model, snapshot.name, image_encoder)


def _folder_source(root: Path, name: str, revision: str, image_encoder: str | None) -> Source:
    folder = ModelFolder(root, name)
    vision: ImageEncoderSource
    if image_encoder is None and (root / "image_encoder").is_dir():
        vision = VisionFolder(root / "image_encoder", f"{name}/image_encoder", "image_encoder/")
    else:
        vision = _image_encoder_source(image_encoder or DEFAULT_IMAGE_ENCODER)
    extra = folder.extra
    scheduler = folder.scheduler_config
    dense_mode = extra.get("dense_mode", DEFAULT_DENSE_MODE)
    if dense_mode not in DENSE_MODES:
        raise SourceError(f"{name}: g4seg.json: dense_mode {dense_mode!r}, allowed are {', '.join(DENSE_MODES)}")
    prediction_type = scheduler.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise SourceError(
            f"{name}: prediction type {prediction_type!r} is not supported, allowed are {', '.join(PREDICTION_TYPES)}"
        )
    return Source(
        id=name,
        revision=revision,
        licence=folder.licence,
        weight_files=folder.weight_files,
        prediction_type=prediction_type,
        vae_scaling_factor=folder.autoencoder.scaling_factor,
        alphas_cumprod=alphas_cumprod(scheduler),
        dims=_with_features(folder.sizes, vision),
        tokens=folder.tokens,
        vocabulary=folder.vocabulary,
        vae_encoder=folder.autoencoder,
        vae_decoder=folder.autoencoder,
        image_encoder=vision,
        dense_mode=dense_mode,
        recommended=dict(extra.get("recommended", PAPER_SETTINGS)),
        note=str(extra.get("note", "")),
        half=folder.half,
        load_unet=folder.load_unet,
        load_text_encoder=folder.load_text_encoder,
    )


def _random_source(model: str, image_encoder: str | None) -> Source:
    if model not in RANDOM_MODELS:
        raise SourceError(f"no model {model!r}: the random architectures are {', '.join(RANDOM_MODELS)}")
    kind = RANDOM_MODELS[model]
    vision = _image_encoder_source(image_encoder or RANDOM_IMAGE_ENCODER)
    tokenizer = TINY_WEIGHTS / "tokenizer.json"
    if not tokenizer.is_file():
        raise SourceError(f"{model} needs the tiny model's tokenizer: use a clone of the repository")
    autoencoder = RandomAutoencoder(f"{model}/vae", "", architectures.VAE["scaling_factor"], architectures.random_vae)
    ids = {name: architectures.TEXT[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    sizes = {
        "square": kind.square,
        "latent_factor": 8,
        "latent_channels": architectures.VAE["latent_channels"],
        "text_length": architectures.TEXT["max_position_embeddings"],
        "text_width": architectures.TEXT["hidden_size"],
    }
    return Source(
        id=model,
        revision="",
        licence="Apache-2.0",
        weight_files={},
        prediction_type=kind.prediction_type,
        vae_scaling_factor=autoencoder.scaling_factor,
        alphas_cumprod=alphas_cumprod(architectures.SCHEDULER),
        dims=_with_features(sizes, vision),
        tokens=read_tokens(tokenizer, model, ids),
        vocabulary=architectures.TEXT["vocab_size"],
        vae_encoder=autoencoder,
        vae_decoder=autoencoder,
        image_encoder=vision,
        dense_mode=DEFAULT_DENSE_MODE,
        recommended=dict(PAPER_SETTINGS),
        note=_RANDOM_NOTE,
        half={},
        load_unet=lambda: architectures.random_unet(square=kind.square, upcast_attention=kind.upcast_attention),
        load_text_encoder=architectures.random_text_encoder,
    )


@dataclass(frozen=True)
class _RandomImageEncoder:
    id: str = RANDOM_IMAGE_ENCODER
    feature_width: int = architectures.VISION["projection_dim"]
    patch: int = architectures.VISION["patch_size"]
    half: bool = False

    @property
    def weight_files(self) -> Mapping[str, Path]:
        return {}

    def load(self) -> VisionModel:
        return architectures.random_image_encoder()


def _image_encoder_source(name: str) -> ImageEncoderSource:
    if name == RANDOM_IMAGE_ENCODER:
        return _RandomImageEncoder()
    if Path(name).is_dir():
        folder = Path(name).resolve()
        return VisionFolder(folder, folder.name, f"{folder.name}/")
    if not _HUB_ID.fullmatch(name):
        raise SourceError(
            f"no image encoder {name!r}: expected an existing folder, a hub id (OWNER/NAME) or {RANDOM_IMAGE_ENCODER}"
        )
    snapshot = fetch_snapshot(name, None, IMAGE_ENCODER_FILES, (IMAGE_ENCODER_WEIGHTS,))
    return VisionFolder(snapshot, f"{name}@{snapshot.name}", f"{name}/")


def _with_features(sizes: Mapping[str, int], vision: ImageEncoderSource) -> ModelDims:
    grid = encoder_grid(sizes["square"], vision.patch)
    if grid < 1:
        raise SourceError(
            f"image encoder {vision.id} has {vision.patch}-pixel patches, more than the model's square of "
            f"{sizes['square']} pixels"
        )
    return ModelDims(**sizes, feature_width=vision.feature_width, grid=grid)


def alphas_cumprod(scheduler_config: Mapping[str, Any]) -> NDArray[np.float64]:
    """alpha-bar per timestep, float64 [T], of a diffusers scheduler configuration."""
    # Every diffusers scheduler makes the same table; DDPM's takes all beta schedules.
    make: Callable[..., Any] = DDPMScheduler.from_config
    table = make(dict(scheduler_config)).alphas_cumprod
    result: NDArray[np.float64] = table.double().numpy()
    return result
