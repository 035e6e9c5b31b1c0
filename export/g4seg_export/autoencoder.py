"""Autoencoders: the model's own, or others in its place, encoder and decoder each by itself.

Two kinds of diffusers fit an engine. AutoencoderKL gives the mean of a posterior, which the UNet sees times a
scaling factor. AutoencoderTiny (TAESD and its kin) was distilled from one and gives such latents in a fourteenth of
the work. Whether an autoencoder was trained for the latents of this very model cannot be seen in its files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from diffusers import AutoencoderKL, AutoencoderTiny

from g4seg_export import architectures
from g4seg_export.checkpoint import find_weights, load_module, read_json, stored_half
from g4seg_export.errors import SourceError
from g4seg_export.hub import Weights, fetch_snapshot
from g4seg_export.modules import VaeModel

RANDOM_AUTOENCODER = "random:taesd"

_KINDS: Mapping[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
_WEIGHTS = Weights("", "diffusion_pytorch_model", "diffusion_pytorch_model")
_SUBFOLDER = "vae"
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


class AutoencoderSource(Protocol):
    """One autoencoder: what it is called, its sizes, its files and how to load it."""

    @property
    def id(self) -> str:
        """What manifest and messages call it."""
        ...

    @property
    def option(self) -> str:
        """What names it on the command line, with the commit of a hub id; "" for the model's own."""
        ...

    @property
    def scaling_factor(self) -> float:
        """The UNet's latents are this times the encoder's."""
        ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def factors(self) -> Mapping[str, int]:
        """For "vae_encoder" and "vae_decoder", the image's side by the latent's."""
        ...

    @property
    def weight_files(self) -> Mapping[str, Path]: ...
    @property
    def half(self) -> bool: ...
    def load(self) -> VaeModel: ...


@dataclass(frozen=True)
class AutoencoderFolder:
    """An autoencoder as diffusers saves it: config.json and the weights.

    Attributes:
        folder: holds both.
        id: what manifest and messages call it.
        option: what names it on the command line; "" for the model's own.

    Raises:
        SourceError: if a part is missing or the autoencoder is of another kind.
    """

    folder: Path
    id: str
    option: str = ""

    def __post_init__(self) -> None:
        if self._kind not in _KINDS:
            raise SourceError(f"{self.id} is of class {self._kind!r}, supported are {', '.join(_KINDS)}")
        if self._config.get("shift_factor") or self._config.get("latents_mean"):
            raise SourceError(f"{self.id}: autoencoders with shifted latents are not supported")
        if self.scaling_factor == 0.0:
            raise SourceError(f"{self.id}: config.json: scaling_factor is 0, expected another number")
        _ = self.latent_channels, self.factors, self.half

    @property
    def scaling_factor(self) -> float:
        usual = 1.0 if self._kind == "AutoencoderTiny" else 0.18215
        return float(self._setting("scaling_factor", usual, (int, float), "a number"))

    @property
    def latent_channels(self) -> int:
        return int(self._setting("latent_channels", 4, (int,), "an integer"))

    @property
    def factors(self) -> Mapping[str, int]:
        if self._kind == "AutoencoderTiny":
            step = self._setting("upsampling_scaling_factor", 2, (int,), "an integer")
            down, up = (self._stages(key, [1, 3, 3, 3]) for key in ("num_encoder_blocks", "num_decoder_blocks"))
            return {"vae_encoder": 2 ** (down - 1), "vae_decoder": step ** (up - 1)}
        factor = 2 ** (self._stages("block_out_channels") - 1)
        return {"vae_encoder": factor, "vae_decoder": factor}

    @property
    def weight_files(self) -> Mapping[str, Path]:
        return {path.name: path for path in self._files}

    @cached_property
    def half(self) -> bool:
        return stored_half(self._files)

    def load(self) -> VaeModel:
        return load_module(_KINDS[self._kind].from_pretrained, self.folder, self.id)

    @property
    def _kind(self) -> str:
        return str(self._config.get("_class_name", "AutoencoderKL"))

    @cached_property
    def _files(self) -> list[Path]:
        return find_weights(_WEIGHTS, self.folder, self.id)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json", self.id)

    def _stages(self, key: str, usual: list[int] | None = None) -> int:
        return len(self._setting(key, usual, (list,), "a list of integers"))

    def _setting(self, key: str, usual: Any, kinds: tuple[type, ...], expected: str) -> Any:
        value = self._config.get(key, usual)
        if type(value) not in kinds:
            raise SourceError(f"{self.id}: config.json: {key} is {value!r}, expected {expected}")
        return value


@dataclass(frozen=True)
class RandomAutoencoder:
    """An autoencoder with seeded random weights, of the sizes of Stable Diffusion's."""

    id: str
    option: str
    scaling_factor: float
    load: Callable[[], VaeModel]
    latent_channels: int = 4
    half: bool = False

    @property
    def factors(self) -> Mapping[str, int]:
        return {"vae_encoder": 8, "vae_decoder": 8}

    @property
    def weight_files(self) -> Mapping[str, Path]:
        return {}


def choose_halves(
    own: AutoencoderSource, model: str, encoder: str | None, decoder: str | None
) -> tuple[AutoencoderSource, AutoencoderSource]:
    """The autoencoders whose encoder and whose decoder an engine uses; the same object where they are one.

    Args:
        own: the model's.
        model: what messages call the model.
        encoder: hub id (OWNER/NAME, or OWNER/NAME@REVISION), folder or "random:taesd"; None for the model's own.
        decoder: likewise.

    Raises:
        SourceError: if one cannot be found, is of another kind, or has latents of other sizes than the model's.
    """
    first = own if encoder is None else _find(encoder)
    second = first if decoder == encoder else own if decoder is None else _find(decoder)
    expected = own.latent_channels, own.factors["vae_encoder"]
    for network, chosen in (("vae_encoder", first), ("vae_decoder", second)):
        sizes = chosen.latent_channels, chosen.factors[network]
        if sizes != expected:
            raise SourceError(
                f"{network}: the latents of {chosen.id} have {sizes[0]} channels at 1/{sizes[1]} of the image's side, "
                f"those of {model} have {expected[0]} at 1/{expected[1]}: choose an autoencoder made for this model"
            )
    return first, second


def _find(name: str) -> AutoencoderSource:
    if name == RANDOM_AUTOENCODER:
        factor = architectures.TAESD["scaling_factor"]
        return RandomAutoencoder(name, name, factor, architectures.random_tiny_vae)
    if Path(name).is_dir():
        return _in_folder(Path(name), Path(name).resolve().name, name)
    hub = _HUB_ID.fullmatch(name)
    if hub is None:
        raise SourceError(
            f"no autoencoder {name!r}: expected an existing folder, a hub id (OWNER/NAME or OWNER/NAME@REVISION) or "
            f"{RANDOM_AUTOENCODER}"
        )
    repository, revision = hub.groups()
    inner = Weights(_SUBFOLDER, _WEIGHTS.safetensors, _WEIGHTS.binary)
    snapshot = fetch_snapshot(repository, revision, ("config.json", f"{_SUBFOLDER}/config.json"), (_WEIGHTS, inner))
    pinned = f"{repository}@{snapshot.name}"
    return _in_folder(snapshot, pinned, pinned)


def _in_folder(root: Path, name: str, option: str) -> AutoencoderFolder:
    inside = not (root / "config.json").is_file() and (root / _SUBFOLDER).is_dir()
    return AutoencoderFolder(root / _SUBFOLDER if inside else root, name, option)
