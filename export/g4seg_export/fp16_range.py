"""How large do activations get? Float16 ends at 65504, and what exceeds it makes a black image.

Every network runs in float32 on real images; the largest magnitude of every tensor is kept by the module that
made it, attention scores included. Float32 islands of the half graphs (`precision`) are left out where they may be
large: the scores of layers with `upcast_attention`, and the timestep's sinusoid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import Timesteps
from PIL import Image, ImageOps, UnidentifiedImageError
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from g4seg_engine.spec import NETWORKS
from g4seg_export.errors import ExportError
from g4seg_export.image_encoder import ImageEncoder
from g4seg_export.modules import Network
from g4seg_export.networks import load_network
from g4seg_export.precision import HALF_MAX, spell_out_attention
from g4seg_export.sources import PAPER_SETTINGS, Source, load_source

LIMIT = HALF_MAX / 2
"""Above this a tensor is listed: other images may be twice as loud."""

MOST_IMAGES = 16

_PROMPT, _CLASS = "a photo of an", "object"
# Operators that only move data, which is noted where it was made; and the features' norm, which stays float32.
_PASSED_OVER = frozenset({"_unsafe_view", "clone", "_to_copy", "cat", "stack", "constant_pad_nd", "linalg_vector_norm"})
# The lowest numbers of float32 in attention masks are no activations.
_MASKED = 1e30


@dataclass(frozen=True)
class NetworkRange:
    """The magnitudes of one network.

    Attributes:
        largest: max|x| over all tensors and images.
        tensor: which one, as "module (operator)".
        above: every tensor above LIMIT with its largest magnitude, the largest first.
    """

    largest: float
    tensor: str
    above: Mapping[str, float]


@dataclass(frozen=True)
class RangeReport:
    """What `check_fp16_range` found.

    Attributes:
        images: how many were run.
        networks: by name, see NETWORKS.
    """

    images: int
    networks: Mapping[str, NetworkRange]

    @property
    def fits(self) -> bool:
        """Whether no tensor is above LIMIT."""
        return not any(network.above for network in self.networks.values())

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        networks = {
            name: {
                "largest": found.largest,
                "tensor": found.tensor,
                "above": [{"tensor": tensor, "magnitude": value} for tensor, value in found.above.items()],
            }
            for name, found in self.networks.items()
        }
        return {"images": self.images, "limit": LIMIT, "networks": networks}


def check_fp16_range(
    model: str,
    images: Path,
    *,
    form: str = "folded",
    image_encoder: str | None = None,
    dense_mode: str | None = None,
    revision: str | None = None,
    vae_encoder: str | None = None,
    vae_decoder: str | None = None,
    square: int | None = None,
    progress: bool = True,
) -> RangeReport:
    """Run a model in float32 on images, as a refinement would, and note every tensor's largest magnitude.

    The injected mask is a disc in the middle, the prompt "a photo of an object", the noise seeded; timestep and
    strengths are those that the model recommends. One network is in memory at a time.

    Args:
        model: as for `export_engine`; so are all options but the last.
        images: a picture, or a folder of pictures of which the first MOST_IMAGES are taken.
        form: "folded" or "dense".
        image_encoder: hub id or folder, or None.
        dense_mode: or None for the model's own choice.
        revision: of a hub model.
        vae_encoder: hub id, folder or "random:taesd", or None.
        vae_decoder: likewise.
        square: in pixels, or None for the model's own.
        progress: show a progress bar on stderr.

    Raises:
        SourceError: if the model cannot be found, loaded or used.
        ExportError: if there are no images or one cannot be read, or a value is not finite in float32 already.
    """
    source = load_source(
        model,
        image_encoder=image_encoder,
        revision=revision,
        vae_encoder=vae_encoder,
        vae_decoder=vae_decoder,
        square=square,
    )
    pictures = [_read_image(path, source.dims.square) for path in _find_images(images)]
    values = [{**_inputs(source, index), "image": picture} for index, picture in enumerate(pictures)]
    ranges = {}
    with tqdm(NETWORKS, unit="network", disable=not progress) as bar:
        for name in bar:
            bar.set_description(f"{name}, magnitudes")
            with load_network(source, name, form, dense_mode or source.dense_mode) as network, torch.no_grad():
                spell_out_attention(network)
                watch = Watch(name, network)
                for tensors in values:
                    with watch:
                        tensors.update(_run(name, network, tensors))
            ranges[name] = watch.range()
    return RangeReport(len(pictures), ranges)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, keeps the largest magnitude of every tensor that `network` makes.

    Args:
        name: of the network, for messages.
        network: its hooks stay until it is dropped.
    """

    def __init__(self, name: str, network: Network) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._name = name
        self._largest: dict[str, float] = {}
        self._path: list[str] = []
        # What a network does around its model is float32, or not exported (the variance of the VAE's posterior).
        # The image encoder spells out its blocks itself.
        self._islands = set() if isinstance(network, ImageEncoder) else {""}
        for path, part in network.named_modules():
            layer: Any = part
            # All that an upcast layer makes in half itself is a mean of its values, which are no larger.
            if isinstance(part, Timesteps) or (isinstance(part, Attention) and layer.upcast_attention):
                self._islands.add(path)
            part.register_forward_pre_hook(lambda _module, _inputs, path=path: self._path.append(path))
            part.register_forward_hook(lambda _module, _inputs, _outputs: self._leave())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        where = self._path[-1] if self._path else ""
        operator = func.overloadpacket.__name__
        is_view = any(returned.alias_info is not None for returned in func._schema.returns)
        # Norms return their statistics too, which stay float32.
        tensor = result[0] if isinstance(result, (tuple, list)) and result else result
        floats = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() > 0
        if floats and not is_view and operator not in _PASSED_OVER and where not in self._islands:
            self._note(f"{where or self._name} ({operator})", tensor)
        return result

    def range(self) -> NetworkRange:
        """The magnitudes so far."""
        tensor, largest = max(self._largest.items(), key=lambda item: item[1])
        above = {name: value for name, value in self._largest.items() if value > LIMIT}
        return NetworkRange(largest, tensor, dict(sorted(above.items(), key=lambda item: -item[1])))

    def _note(self, label: str, tensor: Tensor) -> None:
        largest = float(tensor.abs().amax())
        if largest > _MASKED:
            largest = float(tensor.abs().masked_fill(tensor.abs() > _MASKED, 0.0).amax())
        if not np.isfinite(largest):
            raise ExportError(f"{self._name}: {label} is not finite in float32: the weights are damaged")
        self._largest[label] = max(largest, self._largest.get(label, 0.0))

    def _leave(self) -> None:
        self._path.pop()


def _run(name: str, network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run one network on what is known so far; returns what is new."""
    if name == "text_encoder":
        return {"text_embedding": network(tensors["input_ids"])}
    if name == "vae_encoder":
        return {"latent": network(tensors["image"])}
    if name == "vae_decoder":
        return {"generated": network(tensors["denoised"])}
    if name == "image_encoder":
        return {f"features of {image}": network(tensors[image]) for image in ("image", "generated")}
    inputs = ("latent", "noise", "timestep", "text_embedding", "mask", "token_mask", "emi_weight")
    return {"denoised": network(*(tensors[name] for name in inputs))}


def _inputs(source: Source, seed: int) -> dict[str, Tensor]:
    """Everything but the image, for batch 1."""
    dims, settings = source.dims, {**PAPER_SETTINGS, **source.recommended}
    tokenizer = Tokenizer.from_buffer(source.tokens.json)
    prefix, prompt = (tokenizer.encode(text, add_special_tokens=False).ids for text in (_PROMPT, f"{_PROMPT} {_CLASS}"))
    ids = [source.tokens.bos, *prompt[: dims.text_length - 2], source.tokens.eos]
    token_mask = torch.zeros(1, dims.text_length)
    token_mask[0, 1 + len(prefix) : len(ids) - 1] = 1.0
    axis = torch.linspace(-1.0, 1.0, dims.latent_size)
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 < 0.25).float()
    shape = (1, dims.latent_channels, dims.latent_size, dims.latent_size)
    return {
        "input_ids": torch.tensor([ids + [source.tokens.pad] * (dims.text_length - len(ids))]),
        "noise": torch.randn(shape, generator=torch.Generator().manual_seed(seed)),
        "timestep": torch.tensor([int(settings["timestep"])]),
        "mask": disc[None, None],
        "token_mask": token_mask,
        "emi_weight": torch.tensor([[float(settings["emi_self"]), float(settings["emi_cross"])]]),
    }


def _find_images(path: Path) -> Sequence[Path]:
    if path.is_file():
        return [path]
    suffixes = Image.registered_extensions()
    found = sorted(file for file in path.glob("*") if file.suffix.lower() in suffixes and file.is_file())
    if not found:
        raise ExportError(f"no pictures to check the range of float16 on: {path} is no picture and no folder of them")
    return found[:MOST_IMAGES]


def _read_image(path: Path, square: int) -> Tensor:
    """RGB float32 [1,3,square,square] in [0,1], upright."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ExportError(f"{path} cannot be read as a picture") from error
    pixels = np.asarray(image.resize((square, square), Image.Resampling.BICUBIC), dtype=np.float32) / 255.0
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]
